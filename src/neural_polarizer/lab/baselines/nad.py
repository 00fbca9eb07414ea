"""NAD, Neural Attention Distillation: a fine-tuned copy teaches the network where to look."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..options import check_at_least
from .base import Defended, Job, count
from .trace import last_features, trace
from .tuning import Tuning, cross_entropy


def attention(features: Tensor) -> Tensor:
    """Where a feature map (B, C, H, W) or tokens (B, N, C) are active: (B, positions), each of length 1 (eq. 1)."""
    channels = 1 if features.ndim == 4 else 2
    return F.normalize(features.float().square().mean(channels).flatten(1), dim=1)


@dataclass(frozen=True, kw_only=True)
class NAD(Tuning):
    """Neural Attention Distillation.

    Paper: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks" (ICLR 2021),
    arXiv 2101.05930. The teacher is the network after `teacher_epochs` of fine-tuning; the student is the network,
    fine-tuned with the distance between both attention maps at the last feature maps of three sizes. Any network.

    Args:
        teacher_epochs: the paper's 10.
        beta_first, beta_second, beta_third: weights of the distances, largest map first (the paper's for WRN-16-1).

    Example:
        >>> attention(torch.ones(1, 8, 2, 2))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    name = "nad"
    batch_size: int = 64
    epochs: int = 20
    teacher_epochs: int = 10
    beta_first: float = 500.0
    beta_second: float = 1000.0
    beta_third: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "teacher_epochs")
        check_at_least(self, 0, "beta_first", "beta_second", "beta_third")

    def passes(self, images: int, classes: int) -> float:
        return images * (self.teacher_epochs + 1.4 * self.epochs)

    def defend(self, job: Job) -> Defended:
        teacher, student = copy.deepcopy(job.model), job.model
        layers = last_features(trace(student, job.images[:2]))
        betas = (self.beta_first, self.beta_second, self.beta_third)[-len(layers) :]
        self.tune(job, teacher, cross_entropy, epochs=self.teacher_epochs)
        teacher.requires_grad_(False)
        shown, wanted = Watched(student, layers), Watched(teacher, layers)

        def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                teacher(images)
            value = cross_entropy(model, images, labels, generator)
            for layer, beta in zip(layers, betas, strict=True):
                value = value + beta * F.mse_loss(attention(shown[layer]), attention(wanted[layer]))
            return value

        self.tune(job, student, loss)
        for handle in (*shown.handles, *wanted.handles):
            handle.remove()
        return Defended(student, count(student), {"layers": layers})


class Watched(dict[str, Tensor]):
    """The last output of each layer, by name."""

    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.handles = [model.get_submodule(name).register_forward_hook(self._keeper(name)) for name in layers]

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self[name] = output

        return keep
