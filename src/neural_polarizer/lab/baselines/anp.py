"""ANP, Adversarial Neuron Pruning: prune the neurons whose small changes would hurt most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..loop import Learner
from ..options import check_above, check_at_least, check_shares
from .base import Baseline, Defended, Job, count
from .neurons import Masked, Masks, prune_within


@dataclass(frozen=True, kw_only=True)
class ANP(Baseline):
    """Adversarial Neuron Pruning.

    Paper: Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models" (NeurIPS 2021), arXiv 2110.14430.
    Masks over neurons are trained to keep clean accuracy while an adversary scales neurons by up to 1 ± `eps`; neurons
    with small masks are pruned. The paper prunes below 0.2 on CIFAR-10; here (ours) the threshold is the largest
    that keeps clean-set accuracy within `tolerance`. Neurons are BatchNorm channels, or outputs of layers without it.

    Args:
        iterations: training steps of the masks.
        eps: the adversary's budget, relative to the weight.
        alpha: weight of the loss without the adversary; the rest is the loss with it.
        lr: of the masks, SGD with momentum 0.9.
        tolerance: share of clean accuracy that pruning may cost.

    Example:
        >>> ANP(iterations=500).passes(images=2500, classes=10)
        128000.0
    """

    name = "anp"
    iterations: int = 2000
    eps: float = 0.4
    alpha: float = 0.2
    lr: float = 0.2
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "alpha")
        check_above(self, 0, "lr")
        check_at_least(self, 0, "eps")

    def passes(self, images: int, classes: int) -> float:
        return 2.0 * self.iterations * min(images, self.batch_size)

    def defend(self, job: Job) -> Defended:
        masks, network = Masks(job.model), Masked(job.model)
        optimizer = torch.optim.SGD(masks.parameters(), lr=self.lr, momentum=0.9)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            masks.clamp_()
            images, labels = self.augmented(job.images[rows], generator), job.labels[rows]
            values = masks.by_name()
            noise, bias_noise = self.adversary(network, values, images, labels, generator)
            calm = F.cross_entropy(network(images, values).float(), labels)
            if self.eps == 0:
                return calm
            attacked = F.cross_entropy(network(images, values, noise, bias_noise).float(), labels)
            return self.alpha * calm + (1 - self.alpha) * attacked

        job.model.train()  # as the authors: statistics of the batch
        self.learn(job, Learner(masks, optimizer), loss, epochs=-(-self.iterations // self.batches(job)))
        masks.clamp_()
        job.model.eval()
        model, threshold, pruned = prune_within(job.model, masks.by_name(), job, self.tolerance, self.batch_size)
        return Defended(model, count(masks), {"threshold": threshold, "pruned": pruned, "neurons": count(masks)})

    def adversary(
        self, network: Masked, masks: dict[str, Tensor], images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Relative changes of weights and biases, within `eps`: from a random start one signed step up the loss."""
        fixed = {n: m.detach() for n, m in masks.items()}

        def start() -> dict[str, Tensor]:
            draw = {n: torch.rand(m.shape, generator=generator).to(m) * 2 - 1 for n, m in fixed.items()}
            return {n: (self.eps * d).requires_grad_() for n, d in draw.items()}

        noise, bias_noise = start(), start()
        leaves = [*noise.values(), *bias_noise.values()]
        value = F.cross_entropy(network(images, fixed, noise, bias_noise).float(), labels)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        moved = [
            (x.detach() + self.eps * (torch.zeros_like(x) if g is None else g.sign())).clamp(-self.eps, self.eps)
            for x, g in zip(leaves, gradients, strict=True)
        ]
        half = len(noise)
        return dict(zip(noise, moved[:half], strict=True)), dict(zip(bias_noise, moved[half:], strict=True))
