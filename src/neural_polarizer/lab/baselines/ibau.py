"""i-BAU: unlearn one universal perturbation, with the gradient through how it was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...cut import logits_of
from ..loop import Learner
from ..options import check_above, check_at_least, check_shares
from .base import Baseline, Defended, Job, count, passing


@dataclass(frozen=True, kw_only=True)
class IBAU(Baseline):
    """Implicit Backdoor Adversarial Unlearning.

    Paper: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient" (ICLR 2022), arXiv 2110.03735.
    Each round finds the universal perturbation (L2) that raises the loss most, then trains the weights against it; the
    perturbation's own dependence on the weights enters through a fixed-point iteration. Any network.

    Args:
        rounds: how often a perturbation is found and unlearned.
        lr: of Adam on the weights.
        radius: L2 bound of the perturbation, in units of images in [0, 1]. The published 10 is one of images that are
            normalised, by standard deviations of about a quarter.
        inner_lr: of the perturbation's ascent; damping: weight of its squared length.
        fixed_point: iterations K; contraction: step of the map whose fixed point the perturbation is.
        stamped: share of each batch that carries the perturbation while the weights are trained: few, since the
            perturbation also acts through the hypergradient. 0.97 at radius 10 cost a narrow network a quarter of its
            accuracy.

    Example:
        >>> IBAU(rounds=3).passes(images=100, classes=10)
        4200.0
    """

    name = "ibau"
    rounds: int = 5
    lr: float = 5e-4
    radius: float = 2.5
    inner_lr: float = 10.0
    damping: float = 1e-3
    fixed_point: int = 5
    contraction: float = 0.1
    stamped: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "rounds", "fixed_point")
        check_above(self, 0, "lr", "radius", "inner_lr", "contraction")
        check_at_least(self, 0, "damping")
        check_shares(self, "stamped")

    def passes(self, images: int, classes: int) -> float:
        return float(self.rounds * images * (4 + 2 * self.fixed_point))

    def defend(self, job: Job) -> Defended:
        model, weights = job.model, [p for p in job.model.parameters() if p.requires_grad]
        learner = Learner(model, torch.optim.Adam(weights, lr=self.lr))

        def harm(delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            """What the perturbation minimises; statistics of images that all carry it do not stay."""
            logits = passing(model, images + delta).float()
            return -F.cross_entropy(logits, labels) + self.damping * delta.square().sum()

        for turn in range(self.rounds):
            delta = self._perturbation(job, harm)

            def loss(rows: Tensor, generator: torch.Generator, delta: Tensor = delta) -> Tensor:
                images, labels = self.augmented(job.images[rows], generator), job.labels[rows]
                chosen = torch.rand(len(images), generator=generator).to(images) < self.stamped
                stamp = chosen.to(images).view(-1, 1, 1, 1)

                def outer(d: Tensor) -> Tensor:
                    return F.cross_entropy(logits_of(model(images + stamp * d)).float(), labels)

                inner = partial(harm, images=images, labels=labels)
                with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                    return surrogate(outer, inner, delta, self.contraction, self.fixed_point)

            model.train()  # or most of the accuracy goes: running statistics do not follow what the steps do
            self.learn(job, learner, loss, epochs=1, seed=job.seed + turn)
            model.eval()
        return Defended(model, sum(p.numel() for p in weights) or count(model), {})

    def _perturbation(self, job: Job, harm: Callable[..., Tensor]) -> Tensor:
        """The universal perturbation (1, C, H, W) after one pass over the clean set."""
        delta = torch.zeros_like(job.images[:1])
        for images, labels in zip(job.images.split(self.batch_size), job.labels.split(self.batch_size), strict=True):
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(harm(delta, images, labels), delta)
            delta = delta.detach() - self.inner_lr * gradient
        return delta * (self.radius / delta.norm().clamp_min(1e-12)).clamp(max=1)


def surrogate(
    outer: Callable[[Tensor], Tensor],
    inner: Callable[[Tensor], Tensor],
    delta: Tensor,
    step: float,
    iterations: int,
) -> Tensor:
    """A loss whose gradient in the weights is the hypergradient of `outer` at the minimiser of `inner`.

    With the map Φ(δ, θ) = δ - step ∇δ inner(δ, θ) and v the fixed point of v = (∂Φ/∂δ)ᵀ v + ∂ outer/∂δ, the
    hypergradient is ∂ outer/∂θ + (∂Φ/∂θ)ᵀ v (the paper's eq. 5; Grazzi et al. 2020).
    """
    delta = delta.detach().requires_grad_()
    value = outer(delta)
    (direct,) = torch.autograd.grad(value, delta, retain_graph=True)
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    mapped = delta - step * slope
    v = direct
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(mapped, delta, grad_outputs=v, retain_graph=True)
        v = pulled + direct
    return value + _only_gradient((mapped * v.detach()).sum())


def _only_gradient(value: Tensor) -> Tensor:
    """Zero, with the gradient of `value`."""
    return value - value.detach()
