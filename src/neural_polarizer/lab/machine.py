"""Where a figure was measured: what every record says of it."""

from __future__ import annotations

import platform

import torch

from .. import __version__


def machine(device: torch.device | str) -> str:
    """The processor, torch's threads and the device."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.device(device)}"


def versions() -> dict[str, str]:
    return {"neural-polarizer": __version__, "torch": torch.__version__, "python": platform.python_version()}
