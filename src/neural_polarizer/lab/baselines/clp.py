"""CLP, Channel Lipschitz Pruning: prune, without any data, the channels that could amplify most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InputError
from .base import Baseline, Defended, Job
from .neurons import prune
from .trace import Step, trace


@dataclass(frozen=True, kw_only=True)
class CLP(Baseline):
    """Channel Lipschitz Pruning. Data-free; needs BatchNorm. The clean set only gives the shape of an image.

    Paper: Zheng et al., "Data-free Backdoor Removal Based on Channel Lipschitzness" (ECCV 2022), arXiv 2208.03111. The
    Lipschitz bound of a channel is the spectral norm of its filter times |γ| / σ of its BatchNorm; in each layer the
    channels more than `u` standard deviations above the mean are pruned. A BatchNorm goes with the convolution that
    ran last before it with as many outputs.

    Args:
        u: the paper's 3.

    Example:
        >>> CLP().passes(images=2500, classes=10)
        0.0
    """

    name = "clp"
    u: float = 3.0

    def passes(self, images: int, classes: int) -> float:
        return 0.0

    def defend(self, job: Job) -> Defended:
        rows = {}
        for norm, conv in pairs_of(trace(job.model, job.images[:2])):
            bound = channel_bounds(conv.module, norm.module)
            rows[norm.name] = bound > bound.mean() + self.u * bound.std()
        if not rows:
            raise InputError("model: found no BatchNorm behind a convolution, wanted one: clp prunes by it")
        prune(job.model, rows, bias=True)
        pruned = sum(int(r.sum()) for r in rows.values())
        return Defended(job.model, 0, {"pruned": pruned, "channels": sum(len(r) for r in rows.values())})


def pairs_of(steps: list[Step]) -> list[tuple[Step, Step]]:
    """Each BatchNorm with the convolution before it."""
    out, seen = [], list[Step]()
    for step in steps:
        if isinstance(step.module, nn.Conv2d):
            seen.append(step)
        elif isinstance(step.module, nn.BatchNorm2d) and step.module.affine:
            fitting = [c for c in seen if c.made[1] == step.module.num_features]
            if fitting:
                out.append((step, fitting[-1]))
    return out


@torch.no_grad()
def channel_bounds(conv: nn.Module, norm: nn.Module) -> Tensor:
    """Upper bound (C,) of each channel's Lipschitz constant (the paper's eq. 9)."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    filters = conv.weight.float().flatten(2)  # (C, inputs, kernel)
    spectral = torch.linalg.matrix_norm(filters, ord=2)
    return spectral * norm.weight.float().abs() / (norm.running_var.float() + norm.eps).sqrt()
