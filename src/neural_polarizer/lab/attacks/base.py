"""What every attack is: a trigger on batches of [0, 1] images, a label for it, and the poisoning of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ..datasets.base import Split


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set; `rows` are the poisoned indices, sorted."""

    data: Split
    rows: Tensor


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Options that all attacks share.

    Args:
        target: the class that triggered images are sent to; None is all-to-all (y + 1 mod K).
        poisoning_ratio: share of the training images that are poisoned, in (0, 1).
    """

    name: ClassVar[str]
    target: int | None = 0
    poisoning_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.poisoning_ratio < 1:
            raise InputError(f"poisoning_ratio: found {self.poisoning_ratio}, wanted a share between 0 and 1")

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] with the trigger; same shape, same device, input untouched."""

    def relabel(self, labels: Tensor, classes: int) -> Tensor:
        """The labels that the attacker wants for triggered images of these classes."""
        return (labels + 1) % classes if self.target is None else torch.full_like(labels, self.target)

    def poison(self, data: Split, classes: int, seed: int) -> Poisoned:
        """Trigger and relabel `poisoning_ratio` of the images, drawn from those whose label would change."""
        candidates = (self.relabel(data.labels, classes) != data.labels).nonzero()[:, 0]
        count = min(round(self.poisoning_ratio * len(data)), len(candidates))
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
        rows = candidates[order[:count].to(candidates.device)].sort().values
        images, labels = data.images.clone(), data.labels.clone()
        images[rows] = self.trigger(images[rows])
        labels[rows] = self.relabel(labels[rows], classes)
        return Poisoned(Split(images, labels), rows)
