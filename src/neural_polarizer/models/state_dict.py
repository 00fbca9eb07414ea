"""Find the state dict in a checkpoint, and give its tensors the names that they had in the model."""

from __future__ import annotations

from typing import Any, TypeGuard

from ..errors import InputError
from ..tensorfile import Stored

KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "classifier")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
DEPTH = 4


def find_state_dict(value: Any, source: str) -> dict[str, Stored]:
    """The state dict in what a checkpoint holds: the value itself, under one of `KEYS`, or the only one there is.

    The prefixes of `WRAPPERS` are taken off.

    Raises:
        InputError: none, or several; the message says what there is.
    """
    state = _below(value, DEPTH)
    if state is None:
        raise InputError(
            f"model: {source} holds no state dict; found {_described(value)}; wanted tensors by name, bare or under "
            f"one of {', '.join(KEYS)}"
        )
    return unwrapped(state)


def unwrapped(state: dict[str, Stored]) -> dict[str, Stored]:
    """Without the prefixes that wrappers of the model put before all names, however many."""
    names = {name: name for name in state}
    while names:
        prefix = next((w for w in WRAPPERS if all(n.startswith(w) and n != w for n in names.values())), None)
        if prefix is None:
            break
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {short: state[name] for name, short in names.items()}


def _below(value: Any, depth: int) -> dict[str, Stored] | None:
    if _is_state(value):
        return value
    if not isinstance(value, dict) or not depth:
        return None
    for key in KEYS:
        found = _below(value.get(key), depth - 1)
        if found is not None:
            return found
    states = [v for v in value.values() if _is_state(v)]
    return states[0] if len(states) == 1 else None


def _is_state(value: Any) -> TypeGuard[dict[str, Stored]]:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Stored) for k, v in value.items())
    )


def _described(value: Any) -> str:
    if isinstance(value, Stored):
        return f"a tensor {value.shape}"
    if isinstance(value, dict) and value:
        return ", ".join(f"{k!r:.40} (a {type(v).__name__})" for k, v in list(value.items())[:8])
    return f"a {type(value).__name__}"
