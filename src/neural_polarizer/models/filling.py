"""Put tensors from a file into a network: compared first, read then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import InputError
from ..tensorfile import Stored, read_finite

COUNTER = ".num_batches_tracked"  # of BatchNorm; unused in eval mode and missing in old files
VARIANCE = ".running_var"
SHOWN = 3


class Misfit(InputError):
    """Weights of another network."""


def differences(wanted: Mapping[str, torch.Tensor], found: Mapping[str, Stored]) -> str:
    """What keeps the tensors of a file from fitting a state dict, in words; nothing where they fit."""
    missing = [n for n in wanted if n not in found and not n.endswith(COUNTER)]
    unexpected = [n for n in found if n not in wanted]
    both = [n for n in wanted if n in found]
    other = [n for n in both if found[n].shape != tuple(wanted[n].shape)]
    types = [n for n in both if found[n].dtype.is_floating_point != wanted[n].is_floating_point()]
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"))
        if names
    ]
    if other:
        sizes = [f"{n!r:.60} {_size(found[n].shape)} instead of {_size(tuple(wanted[n].shape))}" for n in other[:SHOWN]]
        parts.append(f"{len(other)} of another shape ({', '.join(sizes)}{_more(other)})")
    if types:
        parts.append(f"{len(types)} of another type of number ({_some(types)})")
    return "; ".join(parts)


def check_fit(wanted: Mapping[str, torch.Tensor], found: Mapping[str, Stored], source: str) -> None:
    odd = differences(wanted, found)
    if odd:
        raise Misfit(f"model: {source} does not fit the network: {odd}")


def fill(model: nn.Module, found: Mapping[str, Stored], source: str) -> nn.Module:
    """`model` with the weights of a file, in the model's own precision.

    Raises:
        InputError: names, shapes or types that differ (`Misfit`); NaN, infinity, or a variance below zero among them.
    """
    own = model.state_dict()
    check_fit(own, found, source)
    model.load_state_dict({**own, **read_weights(found, source)})
    return model


def read_weights(found: Mapping[str, Stored], source: str) -> dict[str, torch.Tensor]:
    """The values of a network's tensors, in float32 where they were in double precision.

    Raises:
        InputError: NaN, infinity, or a variance below zero among them.
    """
    state = read_finite(found, source)
    for name, value in state.items():
        if value.dtype == torch.float64:
            state[name] = value.float()
            if not state[name].isfinite().all():
                raise InputError(f"model: {source}: {name} has values beyond those of float32")
        if name.endswith(VARIANCE) and (value < 0).any():
            raise InputError(f"model: {source}: {name} has negative values, wanted variances")
    return state


def _some(names: list[str]) -> str:
    return ", ".join(f"{n!r:.60}" for n in names[:SHOWN]) + _more(names)


def _more(names: list[str]) -> str:
    return ", ..." if len(names) > SHOWN else ""


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape}" if len(shape) <= 8 else f"({len(shape)} dimensions)"
