"""VGG11 and VGG19 with BatchNorm, with a width factor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Stages = tuple[tuple[int, int], ...]  # channels in units of the width, and convolutions; a pooling behind each


class VGG19BN(nn.Module):
    """Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition" (arXiv 1409.1556).

    At `width=64` the parameter names and shapes are those of torchvision's `vgg19_bn`, which BackdoorBench uses. Images
    (B, `channels`, H, W) in [0, 1], any H and W -> logits (B, `classes`).

    Args:
        width: channels of the first stage; 64 is the full network (139.6 M parameters at 10 classes), 8 has 2.2 M.
        pooled: side of what enters the classifier; 1 for small images, whose last map is hardly larger.
        mean, std: normalisation inside the model, one value each for all channels; not saved in the state dict.
        dropout: in the classifier, while training.
        seed: of the initial weights.

    Example:
        >>> VGG19BN(classes=10, width=8)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    stages: Stages = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        pooled: int = 7,
        mean: float = 0.5,
        std: float = 0.25,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        hidden = 64 * width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            before = channels
            for factor, count in self.stages:
                for _ in range(count):
                    layers += [nn.Conv2d(before, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width)]
                    layers.append(nn.ReLU(inplace=True))
                    before = factor * width
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))  # the same for sides that are multiples of 32
            self.features = nn.Sequential(*layers)
            self.avgpool = nn.AdaptiveAvgPool2d(pooled)
            self.classifier = nn.Sequential(
                nn.Linear(before * pooled**2, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, classes),
            )
            for module in self.features:
                if isinstance(module, nn.Conv2d):  # the default is too small for sixteen convolutions in a row
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features((x - self.mean) / self.std))
        out: Tensor = self.classifier(x.flatten(1))
        return out


class VGG11BN(VGG19BN):
    """The same with eight convolutions in place of sixteen; at `width=64` torchvision's `vgg11_bn`.

    Example:
        >>> VGG11BN(classes=10, width=8, pooled=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    stages = ((1, 1), (2, 1), (4, 2), (8, 2), (8, 2))
