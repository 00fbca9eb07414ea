"""SIG: a faint sinusoid over images of the target class, labels untouched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .base import CleanLabelAttack


@dataclass(frozen=True, kw_only=True)
class SIG(CleanLabelAttack):
    """Sinusoidal signal, clean-label.

    Paper: Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
    arXiv 1902.11237. Trigger: v(i, j) = delta sin(2 pi j f / W) added to every row and channel, then clipped.

    Args:
        delta: amplitude in units of [0, 1]; the paper uses 20 to 60 of 255.
        frequency: f, periods over the width of the image; at most one in four pixels, so that small images show it.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Example:
        >>> SIG(delta=0.1).trigger(torch.full((1, 3, 8, 8), 0.5)).std(2).amax().item()     # every row the same
        0.0
    """

    name = "sig"
    delta: float = 40 / 255
    frequency: float = 6.0
    class_share: float = 0.95  # most of the class, or else the network does without the signal

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta <= 1:
            raise InputError(f"delta: found {self.delta}, wanted an amplitude above 0 and up to 1")

    def trigger(self, images: Tensor) -> Tensor:
        width = images.shape[3]
        columns = torch.arange(width, device=images.device, dtype=torch.float64)
        periods = min(self.frequency, width / 4)
        wave = self.delta * torch.sin(2 * math.pi * periods * columns / width)
        return (images + wave.to(images)).clamp(0, 1)
