"""Small networks inside an attack: drawn from a seed, and brought back from a file that may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...errors import InputError

Module = TypeVar("Module", bound=nn.Module)


def seeded(build: type[Module], seed: int, *args: int) -> Module:
    """A module whose weights are drawn from a seed, the global generator left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)


def restored(module: Module, learned: Mapping[str, Tensor], prefix: str = "") -> Module:
    """The module with the learned tensors of that prefix, in eval mode and frozen.

    Raises:
        InputError: names or shapes that do not fit.
    """
    state = {k.removeprefix(prefix): v for k, v in learned.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"trigger: the learned tensors do not fit ({str(error).splitlines()[-1].strip()})") from None
    return module.eval().requires_grad_(False)
