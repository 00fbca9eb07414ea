"""Adaptive-Blend: pieces of a faint pattern, and cover images that carry it with their true label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from ..datasets.base import Split, to_bytes
from .base import Attack, Poisoned
from .blended import noise_pattern


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Attack):
    """Adaptive blending, built to evade defences that look for separate clusters of poisoned images.

    Paper: Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses",
    ICLR 2023, section 4. The pattern of a blended attack is cut into pieces x pieces squares. Poisoned training images
    get only a random part of them and the target's label; *cover* images get a random part and keep their true label,
    which keeps the network from relying on any part alone. At test time all of the pattern is used, and more of it.

    Args:
        poisoning_ratio, cover_ratio: shares of the training images; the paper uses 0.003 for each.
        pieces: per side; the paper cuts 4 x 4.
        kept: share of the pieces that a training image gets.
        alpha: weight of the pattern in training.
        test_alpha: weight of the pattern in `trigger`.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> (AdaptiveBlend(test_alpha=0.2).trigger(torch.zeros(1, 3, 8, 8)).amax() <= 0.2).item()
        True
    """

    name = "adaptive_blend"
    poisoning_ratio: float = 0.003
    cover_ratio: float = 0.003
    pieces: int = 4
    kept: float = 0.5
    alpha: float = 0.15
    test_alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (self.kept, self.alpha, self.test_alpha)
        if not all(0 < s <= 1 for s in shares) or not 1 <= self.pieces <= 512:
            raise InputError(
                f"kept, alpha, test_alpha, pieces: found {shares}, {self.pieces}, wanted (0, 1] and 1 to 512"
            )
        if not 0 <= self.cover_ratio < 1 - self.poisoning_ratio:
            raise InputError(
                f"cover_ratio: found {self.cover_ratio}, wanted a share that fits beside the poisoned images"
            )

    def trigger(self, images: Tensor) -> Tensor:
        c, h, w = images.shape[1:]
        pattern = noise_pattern(c, h, w, self.seed).to(images)
        return images + self.test_alpha * (pattern - images)

    def part(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image with its own random part of the pieces, as in training."""
        count, c, h, w = images.shape
        order = torch.rand(count, self.pieces**2, generator=generator).argsort(1)
        chosen = (order < max(1, round(self.kept * self.pieces**2))).view(count, 1, self.pieces, self.pieces)
        rows = torch.arange(h) * self.pieces // h
        columns = torch.arange(w) * self.pieces // w
        mask = chosen[:, :, rows][:, :, :, columns].to(images)
        return images + self.alpha * mask * (noise_pattern(c, h, w, self.seed).to(images) - images)

    def poison(self, data: Split, classes: int, seed: int) -> Poisoned:
        rows = self.candidates(data, classes, seed, self.poisoning_ratio + self.cover_ratio)
        generator = torch.Generator().manual_seed(seed)
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        share = self.poisoning_ratio / (self.poisoning_ratio + self.cover_ratio)
        bad, cover = shuffled[: round(share * len(rows))], shuffled[round(share * len(rows)) :]
        if len(bad) == 0:
            raise InputError(f"poisoning_ratio: {self.poisoning_ratio} of {len(data)} images is none at all")
        images, labels = data.images.clone(), data.labels.clone()
        for part in shuffled.to(images.device).split(1024):
            images[part] = to_bytes(self.part(data.floats(part), generator))
        at = bad.to(labels.device)
        labels[at] = self.relabel(labels[at], classes)
        return Poisoned(Split(images, labels), bad.sort().values, cover.sort().values)
