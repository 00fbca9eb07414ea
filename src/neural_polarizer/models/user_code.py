"""A network that the user's own code builds: `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import inspect
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..checks import device_of, near
from ..errors import InputError, in_short
from ..files import regular_file

MAX_SOURCE = 16 << 20  # bytes


def is_user_code(arch: str) -> bool:
    """Whether the name of an architecture is a python file with a function."""
    return arch.rpartition(":")[0].endswith(".py")


def build_user_model(arch: str, *, classes: int | None = None) -> nn.Module:
    """The network that a function of the user's own file returns, in eval mode.

    This runs that file, as `import` would, with all that is in it: it has to be the user's own code, never something
    that came with a model. It is imported under a private name; `sys.path` stays as it is, so the file finds the
    packages that are installed, but not the files beside it.

    Args:
        arch: `path/to/file.py:function`.
        classes: handed to the function where it takes `classes`; it is called without arguments otherwise.

    Raises:
        InputError: no such file or function, an error in it, or a result that is no `nn.Module` on one device.

    Example:
        >>> build_user_model("my_model.py:build_model")  # doctest: +SKIP
    """
    path, _, name = arch.rpartition(":")
    function = getattr(_imported(Path(path)), name, None)
    if not callable(function):
        known = [n for n, v in vars(_imported(Path(path))).items() if callable(v) and not n.startswith("_")]
        raise InputError(f"arch: {path} has no function {name!r}{near(name, known)}")
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes = {}  # type: ignore[assignment]
    options: dict[str, Any] = {"classes": classes} if "classes" in takes and classes is not None else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = function(**options)
        except Exception as error:
            raise InputError(f"arch: {arch} failed with {options} ({in_short(error)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"arch: {arch} returned {type(model).__name__}, wanted an nn.Module")
    device_of(model)
    return model.eval()


class _Loader(SourceFileLoader):
    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Writes no compiled copy beside the user's file."""


def _imported(path: Path) -> ModuleType:
    """The file as a module; a second time, the same one."""
    regular_file(path, limit=MAX_SOURCE)
    place = str(path.resolve())
    content = hashlib.sha256(path.read_bytes() + place.encode()).hexdigest()[:16]
    name = f"_neural_polarizer_user_code_{content}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, place, loader=_Loader(name, place))
    assert isinstance(spec, ModuleSpec)
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"arch: {path} cannot be imported ({in_short(error)})") from error
    return module
