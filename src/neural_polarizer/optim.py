"""Optimisers of a fit: SGD, and SGD that touches only the copies that a step uses."""

from __future__ import annotations

import torch
from torch import Tensor

from .conditional import Replicated
from .config import FitConfig
from .polarizers import Polarizer
from .spread import spread


class WholeSGD:
    """The papers' optimiser over all parameters: constant rate, momentum, weight decay."""

    by_rows = False
    scale = 1.0  # of the learning rate, set by the schedule

    def __init__(self, polarizer: Polarizer, lr: float, config: FitConfig) -> None:
        self._polarizer, self._lr, self._clip = polarizer, lr, config.clip
        self._sgd = torch.optim.SGD(
            polarizer.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def take(self, condition: Tensor | None) -> tuple[Polarizer, Tensor | None]:
        """What to compute a step with, and the conditions as it knows them."""
        return self._polarizer, condition

    def add_gradients(self) -> None:
        """Let the gradients be those of the whole batch, of which this process may have seen a share."""
        spread().add_gradients(self._polarizer.parameters())

    def step(self) -> None:
        """Follow the gradients and forget them."""
        _shorten(self._polarizer, self._clip)
        for group in self._sgd.param_groups:
            group["lr"] = self._lr * self.scale
        self._sgd.step()
        self._sgd.zero_grad()


class RowSGD:
    """The same update for r-CNPD, on the copies of the classes that a step needs: K(C² + 2C) numbers are never walked
    through. A copy that no image of the step needs keeps its weights and its momentum.
    """

    by_rows = True
    scale = 1.0

    def __init__(self, polarizer: Replicated, lr: float, config: FitConfig) -> None:
        self._polarizer, self._lr, self._config = polarizer, lr, config
        self._momentum = [torch.zeros_like(p) for p in polarizer.parameters()]

    def take(self, condition: Tensor | None) -> tuple[Polarizer, Tensor]:
        """The copies of the classes in `condition` (B,) as a polarizer of their own, and the conditions as its rows."""
        assert condition is not None
        self._classes, local = condition.unique(return_inverse=True)
        self._part = self._polarizer.rows(self._classes)
        return self._part, local

    def add_gradients(self) -> None:
        """As in `WholeSGD`; the copies are those that the whole batch needs."""
        spread().add_gradients(self._part.parameters())

    @torch.no_grad()
    def step(self) -> None:
        """Update those copies."""
        _shorten(self._part, self._config.clip)
        whole, part = self._polarizer.parameters(), self._part.parameters()
        for full, own, momentum in zip(whole, part, self._momentum, strict=True):
            if own.grad is not None:
                change = own.grad + self._config.weight_decay * own
                change = momentum[self._classes].mul_(self._config.momentum).add_(change)
                momentum[self._classes] = change
                full[self._classes] = own - self._lr * self.scale * change


def _shorten(polarizer: Polarizer, most: float | None) -> None:
    if most is not None:
        torch.nn.utils.clip_grad_norm_(polarizer.parameters(), most)


def stepper_for(polarizer: Polarizer, lr: float, config: FitConfig) -> WholeSGD | RowSGD:
    """The optimiser that fits the structure."""
    kind = RowSGD if isinstance(polarizer, Replicated) else WholeSGD
    return kind(polarizer, lr, config)  # type: ignore[arg-type]
