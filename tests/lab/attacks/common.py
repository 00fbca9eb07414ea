"""Small data and attackers for the tests of attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_polarizer.lab.attacks.attacker import Attacker
from neural_polarizer.lab.datasets.base import Split
from neural_polarizer.lab.train import Recipe
from neural_polarizer.models.small_resnet import SmallResNet


def photographs(count: int = 8, channels: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def split(count: int = 200, classes: int = 4, channels: int = 3, height: int = 16, width: int = 16) -> Split:
    images = (photographs(count, channels, height, width) * 255).round().to(torch.uint8)
    return Split(images, torch.arange(count) % classes)


def attacker(data: Split | None = None, classes: int = 4, folder=None) -> Attacker:
    data = data or split()

    def build(seed: int) -> nn.Module:
        return SmallResNet(classes=classes, channels=data.images.shape[1], width=4, seed=seed).eval()

    return Attacker(data, classes, build, Recipe(epochs=1), folder=folder, progress=False, clean=build(0))
