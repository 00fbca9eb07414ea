"""Fine-tuning: what most baselines do in the end, each with a loss of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cut import logits_of
from ..loop import Learner
from ..options import check_above, check_at_least
from .base import Baseline, Job

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Tuning(Baseline):
    """A baseline that trains all weights with SGD, its rate falling as a cosine.

    Args:
        epochs: passes over the clean set.
        lr, momentum, weight_decay: of SGD.
    """

    epochs: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, 0, "lr")
        check_at_least(self, 0, "momentum", "weight_decay")

    def passes(self, images: int, classes: int) -> float:
        return self.epochs * images

    def tune(self, job: Job, model: nn.Module, loss: Loss, *, epochs: int | None = None) -> None:
        """Train `model` in train mode on `loss(model, augmented images, labels, generator)`; it ends in eval mode."""
        epochs = epochs or self.epochs
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * self.batches(job))

        def of_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
            return loss(model, self.augmented(job.images[rows], generator), job.labels[rows], generator)

        model.train()
        self.learn(job, Learner(model, optimizer, schedule), of_rows, epochs=epochs)
        model.eval()


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return F.cross_entropy(logits_of(model(images)).float(), labels)
