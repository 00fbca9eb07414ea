"""Normalisation is part of the model: images outside are in [0, 1], always."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import device_of, dtype_of
from ..errors import InputError

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std, one value per channel

# As they are used for published networks; of gtsrb, BackdoorBench's: none at all.
NORMALIZATIONS: dict[str, Statistics] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def statistics_of(value: str | Statistics) -> Statistics:
    """Mean and std by the name of a data set, as text, or as they are.

    Raises:
        InputError: an unknown name, or other than one finite mean and one positive std per channel.

    Example:
        >>> statistics_of("cifar10")[0]
        (0.4914, 0.4822, 0.4465)
        >>> statistics_of("0.5,0.5,0.5/0.25,0.25,0.25")
        ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    """
    wanted = f"one of {', '.join(NORMALIZATIONS)}, or means and deviations such as 0.5,0.5,0.5/0.25,0.25,0.25"
    if isinstance(value, str):
        if value in NORMALIZATIONS:
            return NORMALIZATIONS[value]
        try:
            mean, std = ([float(x) for x in part.split(",")] for part in value.split("/"))
        except ValueError:
            raise InputError(f"normalization: found {value!r}, wanted {wanted}") from None
    else:
        try:
            mean, std = ([float(x) for x in part] for part in value)
        except (TypeError, ValueError):
            raise InputError(f"normalization: found {value!r:.200}, wanted {wanted}") from None
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise InputError(f"normalization: found {mean} and {std}, wanted as many finite means as deviations above 0")
    return mean, std


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
