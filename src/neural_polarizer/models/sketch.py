"""A network on the meta device: names and shapes without a number, to be compared before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from ..errors import InputError

MODULES = 4  # per tensor of the file, more than any network has
SPARE = 4096
MOST = 50_000  # however large the file


class _Unfilled(TorchFunctionMode):
    """Initialisation does nothing: on the meta device there is nothing to do, and PyTorch needs seconds to find out."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func in FILLS else func(*args, **(kwargs or {}))


FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_)


def sketch(build: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """What `build` builds, without numbers; given up when it has many more layers than a file has tensors for.

    Args:
        build: makes the network, from settings that a stranger may have chosen.
        tensors: in the file that the network is for.

    Raises:
        InputError: settings that build nothing, or too much.
    """
    limit = min(MODULES * tensors + SPARE, MOST)
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise InputError(f"model: its settings describe more than {limit} layers, its file holds {tensors} tensors")

    handle = register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"), _Unfilled():
            return build()
    finally:
        handle.remove()
