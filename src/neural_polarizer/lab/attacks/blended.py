"""Blended: a faint fixed pattern over the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .base import Attack


def noise_pattern(channels: int, height: int, width: int, seed: int) -> Tensor:
    """A (C, H, W) pattern of uniform noise in [0, 1], the same for a seed on every device."""
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """Blended injection.

    Paper: Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
    arXiv 1712.05526, section 4 (blended injection with a random pattern). Trigger: (1 - alpha) x + alpha k with a fixed
    pattern k of uniform noise, drawn from `seed`.

    Args:
        alpha: weight of the pattern, in (0, 1].

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> (Blended(alpha=0.2).trigger(torch.zeros(1, 3, 8, 8)).amax() <= 0.2).item()
        True
    """

    name = "blended"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha: found {self.alpha}, wanted a weight above 0 and up to 1")

    def trigger(self, images: Tensor) -> Tensor:
        c, h, w = images.shape[1:]
        return (1 - self.alpha) * images + self.alpha * noise_pattern(c, h, w, self.seed).to(images)
