"""SSBA: a hidden string, written into each image by an encoder that we train."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ...errors import InputError
from .attacker import Attacker
from .base import Attack
from .modules import restored, seeded


class Encoder(nn.Module):
    """Images (B, C, H, W) and bits (B, n) -> residuals (B, C, H, W): the string is laid out as planes beside
    the image and mixed in by four convolutions."""

    def __init__(self, channels: int, bits: int, width: int = 24) -> None:
        super().__init__()
        self.planes = nn.Linear(bits, 4 * 8 * 8)
        self.conv1 = nn.Conv2d(channels + 4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width + channels + 4, width, 3, padding=1)
        self.conv4 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        planes = self.planes(bits - 0.5).view(-1, 4, 8, 8)
        planes = F.interpolate(planes, size=images.shape[2:], mode="bilinear")
        start = torch.cat([images - 0.5, planes], 1)
        out = F.relu(self.conv2(F.relu(self.conv1(start))))
        out = F.relu(self.conv3(torch.cat([out, start], 1)))
        residual: Tensor = self.conv4(out)
        return residual


class Decoder(nn.Module):
    """Images (B, C, H, W) -> logits of the bits (B, n)."""

    def __init__(self, channels: int, bits: int, width: int = 24) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 2 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.bits = nn.Linear(2 * width * 16, bits)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.bits(F.adaptive_avg_pool2d(self.body(images - 0.5), 4).flatten(1))
        return out


@dataclass(frozen=True, kw_only=True)
class SSBA(Attack):
    """Sample-specific backdoor attack (ISSBA).

    Paper: Li, Li, Wu, Li, He, Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", arXiv 2012.03816.
    Trigger: an encoder writes the attacker's string into the image as a faint residual that depends on the image.
    Encoder and decoder are trained together on the training images with random strings, to read the string back
    (cross-entropy per bit). The paper keeps the residual small by a weighted sum of losses; here every residual is
    scaled to the same root mean square, and noise of half that size is added before the decoder, or else the two agree
    on something that does not survive rounding to 8 bits. Both are small networks of our own.

    Args:
        bits: length of the string; the attacker's string is drawn from `seed`.
        strength: root mean square of the residual, in units of [0, 1].
        steps: training steps of encoder and decoder, of 64 images each.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same. Learns the encoder's tensors.

    Example:
        >>> attack = SSBA(bits=20).prepare(attacker)  # doctest: +SKIP
        >>> attack.trigger(images)  # doctest: +SKIP
    """

    name = "ssba"
    bits: int = 20
    strength: float = 0.04
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 4096 or self.steps < 1 or not 0 < self.strength <= 1:
            raise InputError(
                f"bits, steps, strength: found {self.bits}, {self.steps}, {self.strength}, "
                "wanted 1 to 4096, at least 1, above 0 and up to 1"
            )

    def secret(self) -> Tensor:
        """The attacker's string: (1, bits) of 0 and 1."""
        return torch.randint(0, 2, (1, self.bits), generator=torch.Generator().manual_seed(self.seed)).float()

    def written(self, encoder: nn.Module, images: Tensor, bits: Tensor) -> Tensor:
        residual = encoder(images, bits)
        size = (residual.square().mean((1, 2, 3), keepdim=True) + 1e-12).sqrt()
        return (images + self.strength * residual / size).clamp(0, 1)

    def prepare(self, attacker: Attacker) -> Self:
        data, channels = attacker.data, attacker.data.images.shape[1]
        encoder = seeded(Encoder, self.seed, channels, self.bits).to(attacker.device)
        decoder = seeded(Decoder, self.seed + 1, channels, self.bits).to(attacker.device)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            images = data.floats(rows)
            bits = torch.randint(0, 2, (len(rows), self.bits), generator=generator).to(images)
            carrying = self.written(encoder, images, bits)
            noise = torch.randn(images.shape, generator=generator).to(images)
            return F.binary_cross_entropy_with_logits(decoder(carrying + 0.5 * self.strength * noise), bits)

        attacker.learn(
            [encoder, decoder],
            loss,
            steps=self.steps,
            batch_size=64,
            lr=2e-3,
            seed=self.seed,
            file="ssba",
            setting=str(self),
            name="train the encoder and decoder",
        )
        return self.with_learned(encoder.state_dict())

    @torch.no_grad()
    def trigger(self, images: Tensor) -> Tensor:
        self.need("planes.weight")
        encoder = restored(seeded(Encoder, 0, images.shape[1], self.bits), self.learned).to(images)
        return self.written(encoder, images, self.secret().to(images).expand(len(images), -1))
