"""Neural Polarizer: remove a backdoor from an image classifier with one small linear layer and a few clean images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .config import FitConfig as FitConfig
    from .cut import list_layers as list_layers
    from .deploy.export import to_exported as to_exported
    from .deploy.export import write_exported as write_exported
    from .deploy.merging import merge as merge
    from .errors import InputError as InputError
    from .fit import FitDiverged as FitDiverged
    from .fit import purify as purify
    from .models.normalization import with_normalization as with_normalization
    from .polarized import PolarizedModel as PolarizedModel

_ROOMS = {
    "FitConfig": "config",
    "FitDiverged": "fit",
    "InputError": "errors",
    "PolarizedModel": "polarized",
    "list_layers": "cut",
    "merge": "deploy.merging",
    "purify": "fit",
    "to_exported": "deploy.export",
    "with_normalization": "models.normalization",
    "write_exported": "deploy.export",
}

__all__ = [*_ROOMS]


def __getattr__(name: str) -> Any:
    # Rooms open at first use: `polarize --help` must not wait for torch.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
