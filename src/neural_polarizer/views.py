"""Views of clean images: moved a little, mirrored or not. What the original model says of them is to be kept."""

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
