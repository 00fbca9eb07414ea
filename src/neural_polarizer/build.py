"""A polarizer by the name of its structure."""

from __future__ import annotations

from typing import Any

from .checks import check_choice
from .conditional import CONDITIONAL
from .errors import InputError
from .polarizers import STRUCTURES, Polarizer

ALL_STRUCTURES: dict[str, type[Polarizer]] = {**STRUCTURES, **CONDITIONAL}

# What stands behind the name of a method; NPD takes the structure of its config.
METHOD_STRUCTURE = {"r-cnpd": "replicated", "e-cnpd": "embedded", "a-cnpd": "attentive"}


def build_polarizer(structure: str, *, channels: int, channel_dim: int = 1, **options: Any) -> Polarizer:
    """A polarizer at the identity.

    Args:
        structure: a name of `STRUCTURES` (NPD) or `CONDITIONAL` (CNPD, which need `classes`).
        channels: C.
        channel_dim: 1 for (B, C, H, W), -1 for layouts that end in their channels.
        options: what the structure takes beside, such as `rank` or `classes`.

    Raises:
        InputError: an unknown structure, or an option that it does not take.

    Example:
        >>> build_polarizer("low-rank", channels=8, rank=2).options()
        {'rank': 2}
    """
    check_choice("structure", structure, ALL_STRUCTURES)
    try:
        return ALL_STRUCTURES[structure](channels, channel_dim, **options)
    except TypeError as error:
        raise InputError(f"structure {structure!r}: options {options} do not fit ({error})") from None
