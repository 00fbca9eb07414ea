"""Normalisation is part of the model: images outside are in [0, 1], always."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import device_of, dtype_of
from ..errors import InputError


class Normalized(nn.Module):
    """`model` behind (x - mean) / std; layers inside are named ``model.<name>``."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        where = {"device": device_of(model), "dtype": dtype_of(model)}
        shift, scale = (torch.tensor(list(v), **where) for v in (mean, std))  # type: ignore[arg-type]
        if shift.ndim != 1 or shift.shape != scale.shape or not (scale > 0).all() or not shift.isfinite().all():
            raise InputError(f"mean, std: found {list(mean)} and {list(std)}, wanted one number per channel, std > 0")
        self.model = model
        self.register_buffer("mean", shift.view(1, -1, 1, 1))
        self.register_buffer("std", scale.view(1, -1, 1, 1))
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        if images.shape[1] != self.mean.shape[1]:
            raise InputError(f"images: found {images.shape[1]} channels, wanted {self.mean.shape[1]}")
        return self.model((images - self.mean) / self.std)


def with_normalization(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Normalized:
    """Wrap a network that expects normalised input, so that it takes images in [0, 1].

    Args:
        mean, std: one value per channel, in the units of images in [0, 1].

    Example:
        >>> net = with_normalization(nn.Sequential(nn.Conv2d(3, 8, 3)), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        >>> [name for name, _ in net.named_modules()]
        ['', 'model', 'model.0']
    """
    return Normalized(model, mean, std)
