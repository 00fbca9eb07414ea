"""FT-SAM: fine-tune towards weights in whose whole neighbourhood the clean loss is low."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...cut import logits_of
from ..options import check_above, check_at_least, check_shares
from .base import Defended, Job, count, passing
from .tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class FTSAM(Tuning):
    """Fine-tuning with adaptive sharpness-aware minimisation.

    Paper: Zhu et al., "Enhancing Fine-tuning Based Backdoor Defense with Sharpness-Aware Minimization" (ICCV 2023),
    arXiv 2304.11823. The weights are moved against the clean set within an ellipsoid scaled by their own size, T = |w|
    + eta, ε = rho T² ∇ / ‖T ∇‖, and the gradient is taken there. Any network.

    Args:
        rho: radius of the ellipsoid (the paper's 2 for CIFAR-10).
        eta: added to the size of each weight.
        smoothing: of the labels.

    Example:
        >>> FTSAM(epochs=20).passes(images=2500, classes=10)
        100000.0
    """

    name = "ft_sam"
    batch_size: int = 256
    rho: float = 2.0
    eta: float = 0.01
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, 0, "rho")
        check_at_least(self, 0, "eta")
        check_shares(self, "smoothing")

    def passes(self, images: int, classes: int) -> float:
        return 2.0 * self.epochs * images

    def defend(self, job: Job) -> Defended:
        def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            weights = dict(model.named_parameters())
            first = self._loss(passing(model, images), labels)
            names = [n for n, p in weights.items() if p.requires_grad]
            gradients = torch.autograd.grad(first, [weights[n] for n in names])
            moves = ascent([weights[n].detach() for n in names], list(gradients), self.rho, self.eta)
            moved = {n: weights[n] + m for n, m in zip(names, moves, strict=True)}
            return self._loss(logits_of(functional_call(model, moved, (images,))), labels)

        self.tune(job, job.model, loss)
        return Defended(job.model, count(job.model), {})

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)


def ascent(weights: list[Tensor], gradients: list[Tensor], rho: float, eta: float) -> list[Tensor]:
    """How the weights move to raise the loss most, within the ellipsoid."""
    scales = [w.abs() + eta for w in weights]
    scaled = [t * g for t, g in zip(scales, gradients, strict=True)]
    length = torch.stack([s.norm() for s in scaled]).norm().clamp_min(1e-12)
    return [rho * t * s / length for t, s in zip(scales, scaled, strict=True)]
