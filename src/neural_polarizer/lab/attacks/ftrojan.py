"""FTrojan: a little energy at two frequencies of the colour channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .base import Attack
from .frequency import idct2

# ITU-R BT.601: luma, and two colour differences scaled as in JPEG.
YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True, kw_only=True)
class FTrojan(Attack):
    """Frequency trojan.

    Paper: Wang, Yao, Xu, An, Tong, Wang, "An Invisible Black-box Backdoor Attack through Frequency Domain",
    arXiv 2111.10991. Trigger: in each block of `block` x `block` pixels a constant is added to two DCT coefficients,
    one of middle and one of the highest frequency, of the colour-difference channels (U and V); a grey image gets it in
    its only channel. Then clipped. Where the sides are no multiple of the block, the rest at the right and bottom stays
    as it is.

    Args:
        magnitude: what is added to each coefficient of the orthonormal DCT, in units of [0, 1] images; the paper's 30
        and 50
            of 255.
        block: side of the blocks in pixels; no more than the image's.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> FTrojan().trigger(torch.full((1, 3, 32, 32), 0.5)).shape
        torch.Size([1, 3, 32, 32])
    """

    name = "ftrojan"
    magnitude: float = 50 / 255
    block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.magnitude > 0 or self.block < 4:
            raise InputError(f"magnitude, block: found {self.magnitude}, {self.block}, wanted above 0 and at least 4")

    def pattern(self, height: int, width: int) -> Tensor:
        """What is added to U and V: (H, W)."""
        side = min(self.block, height, width)
        coefficients = torch.zeros(side, side)
        coefficients[side // 2 - 1, side // 2 - 1] = coefficients[side - 1, side - 1] = self.magnitude
        out = torch.zeros(height, width)
        rows, columns = height // side, width // side
        out[: rows * side, : columns * side] = idct2(coefficients).repeat(rows, columns)
        return out

    def trigger(self, images: Tensor) -> Tensor:
        pattern = self.pattern(*images.shape[2:]).to(images)
        if images.shape[1] != 3:
            return (images + pattern).clamp(0, 1)
        # Adding p to U and V is adding the sum of the two columns of YUV^-1 that belong to them, times p.
        colour = torch.linalg.inv(YUV)[:, 1:].sum(1).to(images)
        return (images + colour[:, None, None] * pattern).clamp(0, 1)
