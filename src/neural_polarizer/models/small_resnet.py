"""A small residual network for the digits, trained in seconds on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut (a 1x1 convolution where the shape changes), then ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class SmallResNet(nn.Module):
    """Three stages of one block; images (B, `channels`, H, W) in [0, 1] -> logits (B, `classes`).

    Args:
        width: channels of the first stage; doubled in each of the next two.
        stride: of the first convolution; 2 for 32x32 images at the cost of 16x16 ones.
        seed: of the initial weights.

    Example:
        >>> SmallResNet(classes=10)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 16, stride: int = 1, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator: lend them a copy
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.layer1 = Block(width, width, 1)
            self.layer2 = Block(width, 2 * width, 2)
            self.layer3 = Block(2 * width, 4 * width, 2)
            self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1((x - 0.5) / 0.25)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out
