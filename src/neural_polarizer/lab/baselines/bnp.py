"""BNP: prune the channels whose BatchNorm statistics are not those of clean images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InputError
from .base import Baseline, Defended, Job
from .neurons import prune


@dataclass(frozen=True, kw_only=True)
class BNP(Baseline):
    """BatchNorm-statistics Pruning. Needs BatchNorm.

    Paper: Zheng et al., "Pre-activation Distributions Expose Backdoor Neurons" (NeurIPS 2022). Training left the
    moments of clean and poisoned images in the running statistics; per channel they are compared with the moments of
    the clean set by the KL divergence of two Gaussians, and the channels more than `u` standard deviations above
    their layer's mean are pruned.

    Args:
        u: the paper's 3.

    Example:
        >>> gaussian_kl(torch.zeros(1), torch.ones(1), torch.ones(1), torch.ones(1))
        tensor([0.5000])
    """

    name = "bnp"
    u: float = 3.0

    def passes(self, images: int, classes: int) -> float:
        return images / 3  # forward only

    @torch.no_grad()
    def defend(self, job: Job) -> Defended:
        norms = {n: m for n, m in job.model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}
        if not norms:
            raise InputError("model: found no BatchNorm, wanted some: bnp prunes by its statistics")
        moments = _moments(job.model, norms, job.images, self.batch_size)
        rows = {}
        for name, norm in norms.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, var = moments[name]
            kl = gaussian_kl(mean, var, norm.running_mean.double(), norm.running_var.double())
            rows[name] = kl > kl.mean() + self.u * kl.std()
        prune(job.model, rows, bias=True)
        pruned = sum(int(r.sum()) for r in rows.values())
        return Defended(job.model, 0, {"pruned": pruned, "channels": sum(len(r) for r in rows.values())})


def gaussian_kl(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """KL of N(mean, var) from N(other_mean, other_var), elementwise."""
    var, other_var = var.clamp_min(1e-12), other_var.clamp_min(1e-12)
    return ((other_var / var).log() + (var + (mean - other_mean).square()) / other_var - 1) / 2


def _moments(
    model: nn.Module, norms: dict[str, nn.BatchNorm2d], images: Tensor, batch_size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance (C,) of what enters each layer, over the clean set, everything in eval mode."""
    sums: dict[str, list[Tensor]] = {}

    def noter(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0].double()
            part = [x.mean((2, 3)).sum(0), x.square().mean((2, 3)).sum(0)]
            sums[name] = [a + b for a, b in zip(sums[name], part, strict=True)] if name in sums else part

        return note

    handles = [m.register_forward_pre_hook(noter(n)) for n, m in norms.items()]
    try:
        for batch in images.split(batch_size):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    out = {}
    for name in norms:
        mean, square = (s / len(images) for s in sums[name])
        out[name] = (mean, square - mean.square())
    return out
