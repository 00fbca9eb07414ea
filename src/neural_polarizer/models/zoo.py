"""Architectures by name, and model folders: `model.safetensors` beside `model.json`, which says how to build it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from ..checks import check_choice, near
from ..errors import InputError, in_short
from ..files import make_directory, read_json_object, write_atomically
from ..tensorfile import Stored, open_safetensors
from .elsewhere import LIBRARIES, build_elsewhere
from .filling import check_fit, fill
from .preact_resnet import PreActResNet18
from .sketch import sketch
from .small_resnet import SmallResNet
from .vgg import VGG11BN, VGG19BN

MODEL_FILE, MODEL_CARD = "model.safetensors", "model.json"
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": PreActResNet18,
    "small_resnet": SmallResNet,
    "vgg11_bn": VGG11BN,
    "vgg19_bn": VGG19BN,
}
MAX_SIZE = 4096  # of any one option (classes, width, channels): what claims more is not believed
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "mean": (0, 1),
    "std": (1e-9, MAX_SIZE),
    "dropout": (0, 1),
}  # of those that are no sizes


def build_model(arch: str, /, **options: Any) -> nn.Module:
    """A network by name, in eval mode.

    Args:
        arch: a name of `ARCHITECTURES`, or one of another library, see `build_elsewhere`.
        options: what it takes: `classes`, and `width`, `channels`, ... where it has them.

    Raises:
        InputError: an unknown name or option, or a size that nobody means.

    Example:
        >>> sum(p.numel() for p in build_model("small_resnet", classes=10, width=8).parameters())
        19954
    """
    build, known = _builder(arch), options_of(arch)
    for name, value in options.items():
        if name not in known:
            raise InputError(f"arch: {arch} takes no option {name!r}{near(name, known)}")
        least, most = LIMITS.get(name, (1, MAX_SIZE))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise InputError(f"arch: {name}: found {value!r:.80}, wanted a number from {least:g} up to {most}")
        if isinstance(value, float) and name not in ("mean", "std", "dropout"):
            raise InputError(f"arch: {name}: found {value!r}, wanted a whole number")
    try:
        return build(**options).eval()
    except InputError:
        raise
    except Exception as error:  # every library has its own way to refuse
        raise InputError(f"arch: {arch} cannot be built with {options!r:.200} ({in_short(error)})") from None


def _builder(arch: str) -> Callable[..., nn.Module]:
    if arch.partition(":")[0] in LIBRARIES:
        return partial(build_elsewhere, arch)
    check_choice("arch", arch, (*ARCHITECTURES, *(f"{x}:NAME" for x in LIBRARIES)))
    return ARCHITECTURES[arch]


def sized(arch: str, options: Mapping[str, Any], side: int) -> dict[str, Any]:
    """`options` with the side of the images, which networks of other libraries are made for."""
    return {**({"size": side} if arch.partition(":")[0] in LIBRARIES else {}), **options}


def options_of(arch: str) -> Mapping[str, inspect.Parameter]:
    """What `build_model` takes for an architecture, with the defaults.

    Example:
        >>> sorted(options_of("small_resnet"))
        ['channels', 'classes', 'seed', 'stride', 'width']
    """
    return inspect.signature(_builder(arch)).parameters


def save_model(directory: Path, model: nn.Module, arch: str, options: dict[str, Any]) -> None:
    """Write a model folder; `options` are those that `build_model` needs to build it again."""
    folder = make_directory("directory", directory)
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    write_atomically(folder / MODEL_FILE, safetensors.torch.save(state))
    write_atomically(folder / MODEL_CARD, json.dumps({"arch": arch, "options": options}, indent=2) + "\n")


def load_model(path: Path, *, arch: str | None = None, **options: Any) -> nn.Module:
    """The network of a model folder; for anything else that has one in it see `checkpoint.read_checkpoint`.

    Args:
        path: a folder with `model.safetensors` and `model.json`.
        arch, options: only to insist on them; None insists on nothing.

    Raises:
        InputError: no model folder, other settings than those insisted on, weights that do not fit or are damaged.
    """
    card = read_json_object(path / MODEL_CARD)
    found, settings = card.get("arch"), card.get("options")
    if not isinstance(found, str) or not isinstance(settings, dict):
        raise InputError(f"model: {path / MODEL_CARD} does not name an arch and its options")
    said = {**{k: v.default for k, v in options_of(found).items()}, **settings, "arch": found}
    for name, wanted in {"arch": arch, **options}.items():
        if wanted is not None and wanted != said.get(name):
            raise InputError(
                f"{name}: found {wanted!r}, but {path / MODEL_CARD} says {said.get(name)!r:.80}; leave it out"
            )
    stored = open_safetensors(path / MODEL_FILE)
    return build_filled(found, settings, stored, str(path / MODEL_FILE))


def build_filled(arch: str, options: dict[str, Any], stored: Mapping[str, Stored], source: str) -> nn.Module:
    """A network by name with the weights of a file, compared with them before it is allocated."""
    check_fit(sketch(partial(build_model, arch, **options), len(stored)).state_dict(), stored, source)
    return fill(build_model(arch, **options), stored, source)
