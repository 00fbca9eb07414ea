"""Architectures by name, and model folders: `model.safetensors` beside `model.json`, which says how to build it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..checks import check_choice, near
from ..errors import InputError
from ..files import make_directory, read_json_object, write_atomically
from .elsewhere import LIBRARIES, build_elsewhere
from .preact_resnet import PreActResNet18
from .small_resnet import SmallResNet
from .vgg import VGG19BN

MODEL_FILE, MODEL_CARD = "model.safetensors", "model.json"
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": PreActResNet18,
    "small_resnet": SmallResNet,
    "vgg19_bn": VGG19BN,
}
MAX_SIZE = 4096  # of any one option (classes, width, channels): what claims more is not believed


def build_model(arch: str, **options: Any) -> nn.Module:
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
    if arch.partition(":")[0] in LIBRARIES:
        build: Callable[..., nn.Module] = partial(build_elsewhere, arch)
    else:
        check_choice("arch", arch, (*ARCHITECTURES, *(f"{x}:NAME" for x in LIBRARIES)))
        build = ARCHITECTURES[arch]
    known = inspect.signature(build).parameters
    for name, value in options.items():
        if name not in known:
            raise InputError(f"arch: {arch} takes no option {name!r}{near(name, known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SIZE:
            raise InputError(f"arch: {name}: found {value!r}, wanted a number up to {MAX_SIZE}")
        if isinstance(value, float) and name not in ("mean", "std", "dropout"):
            raise InputError(f"arch: {name}: found {value!r}, wanted a whole number")
    try:
        return build(**options).eval()
    except InputError:
        raise
    except (TypeError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"arch: {arch} cannot be built with {options} ({error})") from None


def save_model(directory: Path, model: nn.Module, arch: str, options: dict[str, Any]) -> None:
    """Write a model folder; `options` are those that `build_model` needs to build it again."""
    folder = make_directory("directory", directory)
    state = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    write_atomically(folder / MODEL_FILE, safetensors.torch.save(state))
    write_atomically(folder / MODEL_CARD, json.dumps({"arch": arch, "options": options}, indent=2) + "\n")


def load_model(path: Path, *, arch: str | None = None, **options: Any) -> nn.Module:
    """A network from a model folder, or from a safetensors file with the name of its architecture.

    Args:
        path: a folder with `model.safetensors` and `model.json`, or a `.safetensors` file.
        arch: for a file: its architecture; for a folder, only to insist on one.
        options: for a file: what `build_model` needs, `classes` for instance.

    Raises:
        InputError: nothing there, another kind of file, weights that do not fit.
    """
    if path.is_dir():
        card = read_json_object(path / MODEL_CARD)
        found, settings = card.get("arch"), card.get("options")
        if not isinstance(found, str) or not isinstance(settings, dict):
            raise InputError(f"model: {path / MODEL_CARD} does not name an arch and its options")
        if arch not in (None, found):
            raise InputError(f"arch: found {arch!r}, but {path / MODEL_CARD} says {found!r}")
        return _filled(build_model(found, **settings), path / MODEL_FILE)
    if path.suffix != ".safetensors":
        raise InputError(
            f"model: found {str(path)!r}, wanted a folder with {MODEL_FILE} and {MODEL_CARD}, or a .safetensors file; "
            "other formats can run code when they are opened and are not read"
        )
    if arch is None:
        raise InputError(f"arch: {path.name} does not say what it is; wanted one of {', '.join(ARCHITECTURES)}")
    return _filled(build_model(arch, **{k: v for k, v in options.items() if v is not None}), path)


def _filled(model: nn.Module, path: Path) -> nn.Module:
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            if found != wanted:
                odd = sorted(set(found.items()) ^ set(wanted.items()))[:4]
                raise InputError(f"model: the tensors of {path} do not fit the architecture, for instance {odd}")
            state = {k: file.get_tensor(k) for k in found}
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"model: {path} is no valid safetensors file ({error})") from None
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"model: {name} of {path} is not finite")
    model.load_state_dict(state)
    return model
