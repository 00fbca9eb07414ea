"""SAU, Shared Adversarial Unlearning: unlearn the adversarial examples that fool network and backdoor alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cut import logits_of
from ...losses import log_one_minus_p
from ..options import check_above, check_at_least
from .base import Defended, Job, count
from .tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class SAU(Tuning):
    """Shared Adversarial Unlearning.

    Paper: Wei et al., "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial Examples"
    (NeurIPS 2023), arXiv 2307.10562. Adversarial examples are made that mislead the backdoored network and the one in
    training to the same class; the latter then learns that this class is wrong. Any network.

    Args:
        radius, step, steps: projected ascent in L∞, in units of images in [0, 1].
        clean_weight, share_weight: of the outer losses (λ1, λ2).
        adversarial_weight, agreement_weight: of the inner ones: mislead both, and to the same output (λ3, λ4).

    Example:
        >>> SAU(epochs=1).passes(images=100, classes=10)
        1200.0
    """

    name = "sau"
    batch_size: int = 256
    radius: float = 0.2
    step: float = 0.2
    steps: int = 5
    clean_weight: float = 1.0
    share_weight: float = 1.0
    adversarial_weight: float = 0.01
    agreement_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, 0, "radius", "step")
        check_at_least(self, 0, "clean_weight", "share_weight", "adversarial_weight", "agreement_weight")

    def passes(self, images: int, classes: int) -> float:
        return float(self.epochs * images * (2 + 2 * self.steps))

    def defend(self, job: Job) -> Defended:
        original = copy.deepcopy(job.model).requires_grad_(False)

        def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            model.eval()
            shared = self.shared_examples(model, original, images, labels, generator)
            model.train()
            with torch.no_grad():
                misled = logits_of(original(shared)).argmax(1)
            logits = logits_of(model(torch.cat([images, shared]))).float()
            clean, adversarial = logits.split(len(images))
            wrong = misled.ne(labels)
            unlearn = -(log_one_minus_p(adversarial, misled) * wrong).mean()
            return self.clean_weight * F.cross_entropy(clean, labels) + self.share_weight * unlearn

        self.tune(job, job.model, loss)
        return Defended(job.model, count(job.model), {})

    def shared_examples(
        self, model: nn.Module, original: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Images in [0, 1], within the ball, that mislead both networks to one output."""
        start = (torch.rand(images.shape, generator=generator).to(images) * 2 - 1) * self.radius
        moved = (images + start).clamp(0, 1)
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_()
            ours, theirs = logits_of(model(moved)).float(), logits_of(original(moved)).float()
            mislead = (F.cross_entropy(ours, labels) + F.cross_entropy(theirs, labels)) / 2
            gain = self.adversarial_weight * mislead - self.agreement_weight * jensen_shannon(ours, theirs)
            (gradient,) = torch.autograd.grad(gain, moved)
            delta = (moved.detach() + self.step * gradient.sign() - images).clamp(-self.radius, self.radius)
            moved = (images + delta).clamp(0, 1)
        return moved.detach()


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of two sets of logits (B, K)."""
    p, q = a.log_softmax(1), b.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, device=a.device))
    both = [F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (p, q)]
    return (both[0] + both[1]) / 2
