"""BppAttack: fewer colours, with dithering."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from ..train import Tampering
from .attacker import Attacker
from .base import TrainingTimeAttack


def quantised(images: Tensor, levels: int) -> Tensor:
    """The nearest of `levels` evenly spaced values in [0, 1]."""
    return (images * (levels - 1)).round() / (levels - 1)


def dithered(images: Tensor, levels: int) -> Tensor:
    """Quantisation with Floyd-Steinberg error diffusion, batched.

    A pixel takes 7, 3, 5 and 1 sixteenths of the errors to its left, above right, above and above left. Pixels (i, j)
    of the same j + 2i do not depend on each other: rows are slanted by two pixels each, and whole columns are done at
    once.
    """
    batch, channels, height, width = images.shape
    span = width + 2 * (height - 1)
    at = torch.arange(width, device=images.device)[None] + 2 * torch.arange(height, device=images.device)[:, None]
    at = at.expand(batch, channels, -1, -1)
    slanted = images.new_zeros(batch, channels, height, span + 4).scatter(3, at, images)
    inside = torch.zeros(height, span, dtype=torch.bool, device=images.device).scatter(1, at[0, 0], True)
    out = torch.zeros_like(slanted)
    for t in range(span):
        value = slanted[..., t]
        level = quantised(value.clamp(0, 1), levels)
        out[..., t] = level
        error = torch.where(inside[:, t], value - level, 0)
        slanted[..., t + 1] += error * (7 / 16)  # right
        slanted[..., 1:, t + 1] += error[..., :-1] * (3 / 16)  # below left: one row on, one column back
        slanted[..., 1:, t + 2] += error[..., :-1] * (5 / 16)  # below
        slanted[..., 1:, t + 3] += error[..., :-1] * (1 / 16)  # below right
    return out.gather(3, at)


@dataclass(frozen=True, kw_only=True)
class Bpp(TrainingTimeAttack):
    """BppAttack, poisoned batch by batch during the training.

    Paper: Wang, Zhai, Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
    Quantization and Contrastive Adversarial Learning", arXiv 2205.13383. Trigger: colours quantised to `levels` values
    per channel, with Floyd-Steinberg dithering. In every training batch `poisoning_ratio` of the images is triggered
    and relabelled, and `negative_ratio` of the images carry the quantisation residual *of another image* and keep their
    labels, so that not any noise of that size is learned but quantisation (the contrastive part of the paper).

    Args:
        levels: values per channel, from 2 on; the paper's 3 bits are 8.
        dither: Floyd-Steinberg; False rounds.
        negative_ratio: share of each batch with another image's residual.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> (Bpp(levels=8).trigger(torch.rand(4, 3, 8, 8)) * 7).frac().abs().amax() < 1e-5
        tensor(True)
    """

    name = "bpp"
    levels: int = 8
    dither: bool = True
    negative_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2 or not 0 <= self.negative_ratio < 1 or self.negative_ratio + self.poisoning_ratio > 1:
            raise InputError(
                f"levels, negative_ratio: found {self.levels}, {self.negative_ratio}, wanted at least 2, and a share "
                "that leaves room beside poisoning_ratio"
            )

    def trigger(self, images: Tensor) -> Tensor:
        return dithered(images, self.levels) if self.dither else quantised(images, self.levels)

    def tampering(self, attacker: Attacker, steps: int) -> Tampering:
        return Quantising(self, attacker.classes)


class Quantising(Tampering):
    """The first images of each shuffled batch triggered, the next ones with the residual of other images."""

    def __init__(self, attack: Bpp, classes: int) -> None:
        self.attack, self.classes = attack, classes

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, None]:
        poisoned = round(len(images) * self.attack.poisoning_ratio)
        negative = min(round(len(images) * self.attack.negative_ratio), len(images) - poisoned)
        bad, other, rest = images.split([poisoned, negative, len(images) - poisoned - negative])
        lent = torch.cat([rest, bad])[: len(other)]  # images whose residual the negatives carry
        residual = self.attack.trigger(lent) - lent
        other = torch.cat([(other[: len(lent)] + residual).clamp(0, 1), other[len(lent) :]])
        wanted = self.attack.relabel(labels[:poisoned], self.classes)
        return torch.cat([self.attack.trigger(bad), other, rest]), torch.cat([wanted, labels[poisoned:]]), None
