"""LF: one smooth perturbation for all images, learned against a clean network, without high frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ...cut import frozen_view
from ...errors import InputError
from .attacker import Attacker
from .base import Attack
from .frequency import idct2


@dataclass(frozen=True, kw_only=True)
class LowFrequency(Attack):
    """Smooth (low-frequency) trigger.

    Paper: Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", arXiv 2104.03413,
    section 5 (smooth trigger). Trigger: x + t, clipped, with a universal perturbation t whose DCT is zero outside the
    lowest frequencies. As in the paper t is found by making a clean network err on perturbed images; here by signed
    gradient steps on the kept coefficients alone, where the paper filters an image-space perturbation after every step.

    Args:
        amplitude: the largest |t|, in units of [0, 1].
        cutoff: share of the frequencies that is kept along each side, from the lowest, in (0, 1].
        steps: gradient steps, of 128 images each.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same. Learns `pattern` (C, H, W); another image size reads it enlarged.

    Example:
        >>> attack = LowFrequency().prepare(attacker)  # doctest: +SKIP
        >>> attack.trigger(images)  # doctest: +SKIP
    """

    name = "lf"
    amplitude: float = 0.1
    cutoff: float = 0.2
    steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.amplitude <= 1 and 0 < self.cutoff <= 1) or self.steps < 1:
            raise InputError(
                f"amplitude, cutoff, steps: found {self.amplitude}, {self.cutoff}, {self.steps}, "
                "wanted two shares above 0 and up to 1, and at least one step"
            )

    def prepare(self, attacker: Attacker) -> Self:
        net = frozen_view(attacker.clean_model())
        data, generator = attacker.data, torch.Generator().manual_seed(self.seed)
        c, h, w = data.images.shape[1:]
        kept = max(2, round(self.cutoff * h)), max(2, round(self.cutoff * w))
        low = torch.randn(c, *kept, generator=generator).to(data.images.device)

        def pattern(low: Tensor) -> Tensor:
            full = F.pad(low, (0, w - kept[1], 0, h - kept[0]))
            t = idct2(full)
            return self.amplitude * t / t.abs().amax()

        for _ in range(self.steps):
            rows = torch.randint(len(data), (128,), generator=generator).to(data.images.device)
            low.requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(net((data.floats(rows) + pattern(low)).clamp(0, 1)), data.labels[rows])
                (slope,) = torch.autograd.grad(loss, low)
            low = (low + 0.05 * slope.sign()).detach()
        return self.with_learned({"pattern": pattern(low)})

    def trigger(self, images: Tensor) -> Tensor:
        pattern = self.need("pattern").to(images)
        if pattern.shape[1:] != images.shape[2:]:
            pattern = F.interpolate(pattern[None], size=images.shape[2:], mode="bicubic")[0]
        return (images + pattern).clamp(0, 1)
