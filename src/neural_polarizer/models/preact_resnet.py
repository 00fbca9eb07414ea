"""PreAct-ResNet18 for small images, the network of both papers, with a width factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; where the shape changes, a 1x1 convolution reads the same tensor as `conv1`."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + short


class PreActResNet18(nn.Module):
    """He et al., "Identity mappings in deep residual networks" (arXiv 1603.05027), in the form for 32x32 images.

    At `width=64` the parameter names and shapes are those of BackdoorBench's `preact_resnet18`. Images
    (B, `channels`, H, W) in [0, 1], any H and W from 8 on -> logits (B, `classes`).

    Args:
        width: channels of the first stage; 64 is the full network, 16 has about 0.7 M parameters.
        mean, std: normalisation inside the model, one value each for all channels; not saved in the state dict.
        seed: of the initial weights.

    Example:
        >>> PreActResNet18(classes=10, width=16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        mean: float = 0.5,
        std: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
            self.layer1 = self._stage(width, width, 1)
            self.layer2 = self._stage(width, 2 * width, 2)
            self.layer3 = self._stage(2 * width, 4 * width, 2)
            self.layer4 = self._stage(4 * width, 8 * width, 2)
            self.linear = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(PreActBlock(channels_in, channels, stride), PreActBlock(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1((x - self.mean) / self.std)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out
