"""Options of attacks and baselines: fields of a dataclass, checked by name and type: anybody may have sent them."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..checks import near
from ..errors import InputError

LARGEST = 1e9  # of any number: what claims more is not believed


def check_options(owner: str, cls: type, known: Iterable[str], options: Mapping[str, Any]) -> None:
    """Refuse options that `cls` does not know, or whose value is of another type than its field.

    Args:
        owner: the name of the attack or baseline, for the message.
        known: the fields of `cls` that are options.

    Raises:
        InputError: an unknown name, another type, a number that is not finite or beyond `LARGEST`.
    """
    hints, known = typing.get_type_hints(cls), sorted(known)
    for option, value in options.items():
        if option not in known:
            raise InputError(f"option: {owner} takes no {option!r}{near(option, known)}")
        kinds = typing.get_args(hints[option]) if isinstance(hints[option], types.UnionType) else (hints[option],)
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits or (isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= LARGEST)):
            wanted = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
            raise InputError(f"option: {option} of {owner}: found {value!r}, wanted {wanted}")


def check_finite(options: Any) -> None:
    """Every float among the fields of a dataclass is a number."""
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{field.name}: found {value}, wanted a finite number")


def check_at_least(options: Any, low: float, *names: str) -> None:
    for name in names:
        if not getattr(options, name) >= low:
            raise InputError(f"{name}: found {getattr(options, name)}, wanted at least {low:g}")


def check_above(options: Any, low: float, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > low:
            raise InputError(f"{name}: found {getattr(options, name)}, wanted a number above {low:g}")


def check_shares(options: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(options, name) <= 1:
            raise InputError(f"{name}: found {getattr(options, name)}, wanted a share from 0 to 1")
