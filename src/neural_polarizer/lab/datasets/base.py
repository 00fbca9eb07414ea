"""A data set in memory: one tensor of images, one of labels, per split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) float in [0, 1] and labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class ImageData:
    """A training and a test split with the names of the classes."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    def hold_back(self, count: int, seed: int) -> tuple[Split, Split]:
        """`count` training images, drawn class by class, as the defender's clean set; the others for training."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        labels = self.train.labels[order]
        rank = torch.zeros_like(labels)  # how many of its class stand before each image
        for c in range(len(self.classes)):
            mine = labels == c
            rank[mine] = torch.arange(int(mine.sum()))
        chosen = torch.argsort(rank, stable=True)
        return self.train.take(order[chosen[:count]]), self.train.take(order[chosen[count:]])
