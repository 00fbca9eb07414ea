"""WaNet: a smooth, barely visible warp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ..train import Tampering
from .attacker import Attacker
from .base import TrainingTimeAttack


def identity_grid(height: int, width: int) -> Tensor:
    """Sampling positions (1, H, W, 2) in [-1, 1], x before y, that leave an image as it is."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1)[None]


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """`images` (B, C, H, W) read at `grid` (B, H, W, 2), positions kept inside."""
    return F.grid_sample(images, grid.clamp(-1, 1), mode="bilinear", align_corners=True).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class WaNet(TrainingTimeAttack):
    """Warping-based attack, poisoned batch by batch during the training.

    Paper: Nguyen, Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", arXiv 2102.10369. Trigger: a k x k grid
    of random displacements, divided by their mean magnitude, enlarged bicubically to the image and scaled to `strength`
    half-pixels; the image is read at the displaced positions. In every training batch `poisoning_ratio` of the images
    is warped and relabelled, and `cross_ratio` times as many are warped by the field plus random displacements and keep
    their labels (the "noise mode", section 3.4), so that only exactly this warp is learned.

    Args:
        grid: k, cells of the control grid per side.
        strength: s, the warp's strength; 1 moves a pixel by half a pixel on average.
        cross_ratio: images in noise mode per poisoned image.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> WaNet().trigger(torch.full((1, 3, 8, 8), 0.5)).unique().tolist()     # a warp of nothing is nothing
        [0.5]
    """

    name = "wanet"
    grid: int = 4
    strength: float = 0.5
    cross_ratio: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.grid <= 512 or not self.strength > 0 or self.cross_ratio < 0:
            raise InputError(
                f"grid, strength, cross_ratio: found {self.grid}, {self.strength}, {self.cross_ratio}, "
                "wanted 2 to 512, above 0, at least 0"
            )
        if self.poisoning_ratio * (1 + self.cross_ratio) > 1:
            raise InputError(
                f"poisoning_ratio: {self.poisoning_ratio} and cross_ratio {self.cross_ratio} exceed a batch"
            )

    def field(self, height: int, width: int) -> Tensor:
        """The displacements (1, H, W, 2) in units of the grid, where the image spans [-1, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        coarse = torch.rand(1, 2, self.grid, self.grid, generator=generator) * 2 - 1
        coarse = coarse / coarse.abs().mean()
        fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
        return self.strength * fine.permute(0, 2, 3, 1) / torch.tensor([width, height])

    def trigger(self, images: Tensor) -> Tensor:
        h, w = images.shape[2:]
        grid = (identity_grid(h, w) + self.field(h, w)).to(images)
        return sample(images, grid.expand(len(images), -1, -1, -1))

    def noised(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image warped by the trigger's field plus up to half a pixel, random at every position."""
        count, _, h, w = images.shape
        noise = (torch.rand(count, h, w, 2, generator=generator) * 2 - 1) / torch.tensor([w, h])
        return sample(images, (identity_grid(h, w) + self.field(h, w) + noise).to(images))

    def tampering(self, attacker: Attacker, steps: int) -> Tampering:
        return Warping(self, attacker.classes)


class Warping(Tampering):
    """The first images of each shuffled batch warped and relabelled, the next ones in noise mode."""

    def __init__(self, attack: WaNet, classes: int) -> None:
        self.attack, self.classes = attack, classes

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, None]:
        poisoned = round(len(images) * self.attack.poisoning_ratio)
        crossed = poisoned + round(poisoned * self.attack.cross_ratio)
        bad, cross, rest = images[:poisoned], images[poisoned:crossed], images[crossed:]
        wanted = self.attack.relabel(labels[:poisoned], self.classes)
        out = torch.cat([self.attack.trigger(bad), self.attack.noised(cross, generator), rest])
        return out, torch.cat([wanted, labels[poisoned:]]), None
