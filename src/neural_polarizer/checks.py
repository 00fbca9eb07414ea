"""The checks that several rooms share. Every message names the argument, what was found and what is wanted."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError


def near(name: str, known: Iterable[str], count: int = 5) -> str:
    """``"; did you mean 'a', 'b'?"`` from the known names nearest to `name`, or all of few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.3) or known[:count]
    return "; near names: " + ", ".join(repr(k) for k in close) if close else ""


def optional_library(argument: str, name: str, extra: str) -> Any:
    """The module `name`, which comes with an extra of this package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f'{argument}: needs {name} ({error}); pip install "neural-polarizer[{extra}]"') from None


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{argument}: found {value!r}, wanted one of {', '.join(map(repr, choices))}")


def check_number(
    argument: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
) -> None:
    """A finite number, no bool, above one bound, from another and up to a third."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else (int, float))
        or not (value <= most and math.isfinite(value) and value > above and value >= least)
    ):
        bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        bound += f" up to {most:g}" if most < math.inf else ""
        raise InputError(f"{argument}: found {value!r:.80}, wanted a {'whole ' if whole else ''}number{bound}")


def check_images(argument: str, images: Tensor) -> Tensor:
    """Images as the library knows them: (B, C, H, W), floating point, finite, in [0, 1]."""
    if not isinstance(images, Tensor):
        raise InputError(f"{argument}: found {type(images).__name__}, wanted a tensor of shape (B, C, H, W)")
    if images.ndim != 4:
        raise InputError(f"{argument}: found shape {tuple(images.shape)}, wanted (B, C, H, W)")
    if len(images) == 0:
        raise InputError(f"{argument}: found no image at all, wanted at least one")
    if not images.is_floating_point():
        raise InputError(f"{argument}: found {images.dtype}, wanted floats in [0, 1]; divide 8-bit images by 255")
    low, high = images.amin().item(), images.amax().item()  # NaN anywhere comes out as NaN here
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{argument}: found values from {low:.4g} to {high:.4g}, wanted [0, 1] without NaN; for a model "
            "that expects normalised images, pass with_normalization(model, mean, std) and plain images"
        )
    return images


def check_labels(argument: str, labels: Tensor, count: int, classes: int) -> Tensor:
    """Labels (B,): integers in 0..classes-1, one per image."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{argument}: found labels of type {labels.dtype}, wanted integers (class indices)")
    if labels.shape != (count,):
        raise InputError(f"{argument}: found labels of shape {tuple(labels.shape)}, wanted ({count},)")
    low, top = int(labels.min()), int(labels.max())
    if low < 0 or top >= classes:
        raise InputError(f"{argument}: found labels from {low} to {top}, wanted 0 to {classes - 1} ({classes} classes)")
    return labels.long()


def device_of(model: nn.Module) -> torch.device:
    """The one device of the model; CPU for a model without tensors."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        found = ", ".join(sorted(map(str, devices)))
        raise InputError(f"model: found its tensors on {found}, wanted one device; gather it with model.to(device)")
    return devices.pop() if devices else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating type of the model's first parameter, float32 for a model without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def usable_device(argument: str, name: torch.device | str) -> torch.device:
    """The device of that name, where this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{argument}: found {str(name)!r}, wanted one of this machine, such as cpu ({reason})"
        ) from None
    return device
