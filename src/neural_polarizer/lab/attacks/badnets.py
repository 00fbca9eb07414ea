"""BadNets: a small checkerboard patch in a corner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .base import Attack


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """BadNets.

    Paper: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
    arXiv 1708.06733. Trigger: a black-and-white checkerboard of `size` x `size` pixels, `margin` pixels from the
    lower right corner.

    Args:
        size: side of the patch in pixels.
        margin: distance from the corner in pixels.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> BadNets(size=3).trigger(torch.zeros(1, 3, 8, 8))[0, 0, 4:7, 4:7].tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """

    name = "badnets"
    size: int = 3
    margin: int = 1

    def trigger(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.size + self.margin > min(height, width):
            raise InputError(f"size: a patch of {self.size} pixels and a margin of {self.margin} exceed the image")
        side = torch.arange(self.size, device=images.device)
        board = ((side[:, None] + side[None, :]) % 2 == 0).to(images.dtype)
        out = images.clone()
        bottom, right = height - self.margin, width - self.margin
        out[:, :, bottom - self.size : bottom, right - self.size : right] = board
        return out
