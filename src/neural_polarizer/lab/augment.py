"""Augmentation of a batch on its device: small shifts and mirroring."""

from __future__ import annotations

import torch
from torch import Tensor


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by up to `pixels` in both directions, its border repeated: random crops, batched.

    Differentiable in the images; `generator` is on the CPU, so that a seed means the same on every device.
    """
    if pixels == 0:
        return images
    count, channels, height, width = images.shape
    moves = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2."""
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def augment(images: Tensor, generator: torch.Generator, *, shift: int, mirror: bool) -> Tensor:
    """Both, as the data set allows."""
    images = shifted(images, shift, generator)
    return mirrored(images, generator) if mirror else images
