"""Views of clean images: moved a little, mirrored, mixed. What the original model says of them is to be kept.

Nothing here resamples an image, zooms or turns it: a warp may be the trigger, and what the original model says of one
is then the attacker's class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moved_and_mirrored(images: Tensor, order: torch.Generator, mirror: bool = True) -> Tensor:
    """Each image (B, C, H, W) moved by up to a sixteenth of its sides, its border repeated, and mirrored or not.

    What the original model says of such a view is to be kept, whatever it is: no label has to survive.
    """
    height, width = images.shape[2:]
    down, across = height // 16, width // 16
    padded = F.pad(images.float(), (across, across, down, down), mode="replicate").to(images.dtype)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (len(images), 1), generator=order)

    rows = draw(2 * down + 1) + torch.arange(height)
    columns = draw(2 * across + 1) + torch.arange(width)
    mirrored = draw(2) == 1
    columns = torch.where(mirrored & mirror, columns.flip(1), columns)
    which = torch.arange(len(images))[:, None, None]
    picked = padded.movedim(1, -1)[tuple(i.to(images.device) for i in (which, rows[:, :, None], columns[:, None]))]
    return picked.movedim(-1, 1)


def mixed(images: Tensor, others: Tensor, order: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) with another: both in every pixel, or a rectangle of the other; half at least is own.

    Source: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), without their labels.
    """

    def draw() -> Tensor:
        return torch.rand((len(images), 1, 1, 1), generator=order).to(images.device, images.dtype)

    def strip(length: int) -> Tensor:
        """A part `side` of so many places, somewhere: (B, 1, 1, length)."""
        at, first = (torch.arange(length, device=images.device) + 0.5) / length, draw() * (1 - side)
        return (at >= first) & (at < first + side)

    share = draw() / 2  # of the other
    side = share.sqrt()
    rectangle = strip(images.shape[2]).transpose(2, 3) & strip(images.shape[3])
    return torch.lerp(images, others, torch.where(draw() < 0.5, share, rectangle.to(images.dtype)))
