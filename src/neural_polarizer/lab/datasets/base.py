"""A data set in memory: one uint8 tensor of images and one of labels, per split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded: what an 8-bit file would keep of them."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def to_floats(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def floats(self, rows: Tensor | None = None) -> Tensor:
        """All images, or those of some rows, as floats in [0, 1]."""
        return to_floats(self.images if rows is None else self.images[rows])


@dataclass(frozen=True)
class ImageData:
    """A training and a test split with the names of the classes.

    `mirror`: a mirrored image is still of its class (photographs, not digits or traffic signs). `shift`: by how many
    pixels an image may be moved and still be the same.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mirror: bool = False
    shift: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def hold_back(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows of `count` training images, drawn class by class, as the defender's clean set; and all other rows."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        labels = self.train.labels.cpu()[order]
        rank = torch.zeros_like(labels)  # how many of its class stand before each image
        for c in range(len(self.classes)):
            mine = labels == c
            rank[mine] = torch.arange(int(mine.sum()))
        chosen = torch.argsort(rank, stable=True)
        return order[chosen[:count]], order[chosen[count:]]
