"""A network from whatever file or folder a user names, read as input from strangers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from ..tensorfile import Stored, open_safetensors
from .backdoorbench import attack_result
from .elsewhere import FromElsewhere
from .filling import Misfit, fill
from .huggingface import CONFIG, read_hugging_face
from .matching import advice, completed, renamed
from .normalization import Statistics, statistics_of, with_normalization
from .state_dict import find_state_dict, unwrapped
from .torch_file import read_torch_file
from .user_code import build_user_model, is_user_code
from .zoo import ARCHITECTURES, MODEL_CARD, build_filled, load_model, options_of


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    classes: int | None = None,
    normalization: str | Statistics | None = None,
    **options: Any,
) -> nn.Module:
    """The network in a file or folder, in eval mode, on the CPU, for images in [0, 1].

    Nothing in it is executed, sizes are compared before anything is allocated, NaN and infinity are refused. It may be:

    - a model folder of this library (`model.json`), or of Hugging Face (`config.json`);
    - a safetensors file;
    - what `torch.save` wrote of plain data: a state dict, bare or under a usual key (`state_dict`, `model`, `net`,
      ...), with or without the prefixes of DataParallel and torch.compile;
    - BackdoorBench's `attack_result.pt`, which names its architecture, classes and data set.

    Args:
        path: the file or folder; its content decides what it is.
        arch: for a file that does not say: a name of `zoo.ARCHITECTURES`, `transformers:NAME`, `timm:NAME`,
            `torchvision:NAME`, or `path/to/file.py:function`, **the user's own code, which is run** (`user_code.py`).
        classes: how many; None takes what the file says, here an error where they differ.
        normalization: what the network was trained with, see `statistics_of`; it becomes part of the network, whose
            layers are then named `model.<name>`. None takes what the file says, or the architecture's own.
        options: of `build_model` (`width`, `channels`, `size`, ...); None, or without them: what the file's shapes say.

    Raises:
        InputError: nothing there, another kind of file, a damaged or hostile one; weights that do not fit, with the
            names that are missing and the architectures that would fit.

    Example:
        >>> read_checkpoint("suspicious.pt", arch="preact_resnet18", normalization="cifar10")  # doctest: +SKIP
        >>> read_checkpoint("attack_result.pt")  # doctest: +SKIP
    """
    path = Path(path)
    given = {k: v for k, v in options.items() if v is not None}
    statistics = None if normalization is None else statistics_of(normalization)
    if path.is_dir():
        return _from_folder(path, arch, classes, statistics, given)
    if not path.exists():
        raise InputError(f"model: {str(path)!r} does not exist, wanted a file or a folder")
    stored, arch, said, statistics = _from_file(path, arch, statistics)
    if classes is not None and said is not None and classes != said:
        raise InputError(f"classes: found {classes}, but {path} says {said}; leave it out")
    classes = said if classes is None else classes
    if arch is None:
        raise InputError(f"arch: {path} does not say what it is; {advice(stored)}")
    if is_user_code(arch):
        if given:
            raise InputError(f"arch: {arch} takes no options, found {', '.join(given)}; leave them out")
        model = fill(build_user_model(arch, classes=classes), stored, str(path))
        return model if statistics is None else with_normalization(model, *statistics)
    if classes is not None:
        given["classes"] = classes
    return _built(arch, given, stored, statistics, str(path))


def _from_folder(
    path: Path, arch: str | None, classes: int | None, statistics: Statistics | None, options: dict[str, Any]
) -> nn.Module:
    if (path / MODEL_CARD).exists() or not (path / CONFIG).exists():
        if not (path / MODEL_CARD).exists():
            raise InputError(f"model: {str(path)!r} has neither {MODEL_CARD} (ours) nor {CONFIG} (Hugging Face)")
        if statistics is not None:
            raise InputError(
                f"normalization: found {statistics}, but the network of a model folder has its own; leave it out"
            )
        return load_model(path, arch=arch, classes=classes, **options)
    for name, value in {"arch": arch, **options}.items():
        if value is not None:
            raise InputError(f"{name}: found {value!r}, but {path / CONFIG} says what the network is; leave it out")
    return read_hugging_face(path, classes=classes, normalization=statistics)


def _from_file(
    path: Path, arch: str | None, statistics: Statistics | None
) -> tuple[dict[str, Stored], str | None, int | None, Statistics | None]:
    """Tensors by name; architecture, classes and normalisation where they are known."""
    if _is_safetensors(path):
        return unwrapped(open_safetensors(path)), arch, None, statistics
    value = read_torch_file(path)
    result = attack_result(value, str(path))
    if result is None:
        return find_state_dict(value, str(path)), arch, None, statistics
    statistics = statistics or result.normalization
    if statistics is None:
        raise InputError(
            f"normalization: {path} is of the data set {result.data!r:.80}, whose normalisation is not known; say it"
        )
    return find_state_dict(result.model, str(path)), arch or result.arch, result.classes, statistics


def _is_safetensors(path: Path) -> bool:
    """By the JSON object that follows eight bytes of length; by its name where it is neither a zip nor a pickle."""
    if not path.is_file():
        return True  # whose reader says what is wrong with pipes and devices
    with open(path, "rb") as file:
        start = file.read(9)
    named = path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80"))
    return named or start[8:] == b"{"


def _built(
    arch: str, options: dict[str, Any], stored: Mapping[str, Stored], statistics: Statistics | None, source: str
) -> nn.Module:
    named = renamed(arch, stored)
    options = completed(arch, options, named)
    if statistics is not None and arch in ARCHITECTURES:
        options = {**_plain(arch, options), **options}
    try:
        model = build_filled(arch, options, named, source)
    except Misfit as error:
        shown = ", ".join(f"{k}={v}" for k, v in options.items())
        raise InputError(f"{error}. Asked for: {arch} ({shown}); {advice(stored)}") from None
    if statistics is None:
        return model
    if isinstance(model, FromElsewhere):
        return FromElsewhere(model.model, *statistics).eval()
    return with_normalization(model, *statistics)


def _plain(arch: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Options that take an architecture's own normalisation away."""
    if "mean" not in options_of(arch) or not {"mean", "std"}.isdisjoint(options):
        raise InputError(f"normalization: {arch} has one of its own; leave it out")
    return {"mean": 0.0, "std": 1.0}
