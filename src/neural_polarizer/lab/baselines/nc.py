"""NC, Neural Cleanse: find the class that a small trigger leads to, rebuild the trigger, unlearn it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cut import logits_of
from ...progress import Progress
from ..options import check_above, check_at_least, check_shares
from .base import Defended, Job, count
from .tuning import Tuning, cross_entropy

PATIENCE = 5  # steps of success or failure in a row after which the weight of the mask's size changes
EARLY = 25  # steps without a smaller mask after which a search ends


@dataclass(frozen=True, kw_only=True)
class NC(Tuning):
    """Neural Cleanse.

    Paper: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (S&P 2019).
    For every class a mask and a pattern are sought that send all clean images there, the mask as small as possible. A
    class whose mask is an outlier below the median (anomaly index above `index`) is taken for a target; the network is
    then fine-tuned on clean images, `stamped` of them with the rebuilt trigger and their true label. Where no class
    stands out the network is returned as it came. Any network.

    Args:
        search_steps: at most so many batches per class.
        search_lr: of Adam on mask and pattern.
        weight, factor: of the mask's L1 size at first, and what it is multiplied or divided by.
        success: share of a batch that must reach the class.
        index: of the anomaly, in consistent median absolute deviations.
        stamped: share of each batch while the trigger is unlearned.
        epochs: of unlearning.

    Example:
        >>> anomaly_indices(torch.tensor([10.0, 11.0, 9.0, 10.0, 1.0]))[4] > 2
        tensor(True)
    """

    name = "nc"
    epochs: int = 10
    search_steps: int = 500
    search_lr: float = 0.1
    weight: float = 1e-3
    factor: float = 1.5
    success: float = 0.99
    index: float = 2.0
    stamped: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "search_steps")
        check_above(self, 0, "search_lr", "weight", "index")
        check_above(self, 1, "factor")
        check_shares(self, "success", "stamped")

    def passes(self, images: int, classes: int) -> float:
        return classes * self.search_steps * min(images, self.batch_size) + self.epochs * images

    def defend(self, job: Job) -> Defended:
        triggers = []
        for target in Progress(job.classes, f"{self.name}: search", enabled=job.progress):
            triggers.append(self.search(job, target))
        sizes = torch.stack([mask.sum() for mask, _ in triggers]).cpu()
        indices = anomaly_indices(sizes)
        flagged = [c for c in range(job.classes) if indices[c] > self.index and sizes[c] < sizes.median()]
        notes = {"sizes": sizes.tolist(), "indices": indices.tolist(), "flagged": flagged}
        if not flagged:
            return Defended(job.model, 0, notes)

        masks, patterns = (torch.cat(parts) for parts in zip(*(triggers[c] for c in flagged), strict=True))

        def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            chosen = (torch.rand(len(images), generator=generator) < self.stamped).to(images.device)
            which = torch.randint(len(flagged), (len(images),), generator=generator).to(images.device)
            stamped = stamp(images, masks[which], patterns[which])
            return cross_entropy(model, torch.where(chosen.view(-1, 1, 1, 1), stamped, images), labels, generator)

        self.tune(job, job.model, loss)
        return Defended(job.model, count(job.model), notes)

    def search(self, job: Job, target: int) -> tuple[Tensor, Tensor]:
        """The smallest mask (1, 1, H, W) found that still works, and its pattern (1, C, H, W), both in [0, 1]."""
        generator = torch.Generator().manual_seed(job.seed * 1000 + target)
        _, channels, height, width = job.images.shape

        def start(c: int) -> Tensor:
            return torch.randn(1, c, height, width, generator=generator).to(job.images).requires_grad_()

        raw_mask, raw_pattern = start(1), start(channels)
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=self.search_lr, betas=(0.5, 0.9))
        best: tuple[Tensor, Tensor] | None = None
        smallest, weight, up, down, since = float("inf"), self.weight, 0, 0, 0
        for _ in range(self.search_steps):
            rows = torch.randint(len(job.images), (self.batch_size,), generator=generator).to(job.images.device)
            mask, pattern = (raw_mask.tanh() + 1) / 2, (raw_pattern.tanh() + 1) / 2
            logits = logits_of(job.model(stamp(job.images[rows], mask, pattern))).float()
            wanted = torch.full((len(rows),), target, device=logits.device)
            size = mask.sum()
            optimizer.zero_grad()
            gradients = torch.autograd.grad(F.cross_entropy(logits, wanted) + weight * size, [raw_mask, raw_pattern])
            raw_mask.grad, raw_pattern.grad = gradients
            works = logits.argmax(1).eq(wanted).double().mean().item() >= self.success
            since += 1
            if best is None or (works and size.item() < smallest):
                best = mask.detach().clone(), pattern.detach().clone()
                smallest, since = (size.item(), 0) if works else (smallest, since)
            optimizer.step()
            up, down = (up + 1, 0) if works else (0, down + 1)
            if up >= PATIENCE:
                weight, up = weight * self.factor, 0
            elif down >= PATIENCE:
                weight, down = weight / self.factor**1.5, 0
            if smallest < float("inf") and since >= EARLY * PATIENCE:
                break
        assert best is not None
        # A class that nothing leads to has no small trigger: the whole image stands for it.
        return best if smallest < float("inf") else (torch.ones_like(best[0]), best[1])


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Images (B, C, H, W) under a mask and a pattern."""
    return images * (1 - mask) + pattern * mask


def anomaly_indices(sizes: Tensor) -> Tensor:
    """How far each size lies from the median, in consistent median absolute deviations (section 4.2).

    Where most sizes are the same their deviation is nothing: it counts as at least 5 % of the median (ours).
    """
    median = sizes.median()
    away = (sizes - median).abs()
    return away / (1.4826 * away.median().clamp_min(0.05 * median)).clamp_min(1e-12)
