"""All attacks by name, and a saved attack brought back."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...checks import check_choice, near
from ...errors import InputError
from .adaptive_blend import AdaptiveBlend
from .badnets import BadNets
from .base import Attack
from .blended import Blended
from .bpp import Bpp
from .ftrojan import FTrojan
from .input_aware import InputAware
from .label_consistent import LabelConsistent
from .low_frequency import LowFrequency
from .sig import SIG
from .ssba import SSBA
from .trojannn import TrojanNN
from .wanet import WaNet

ATTACKS: dict[str, type[Attack]] = {
    a.name: a
    for a in (
        BadNets,
        Blended,
        SIG,
        LowFrequency,
        SSBA,
        TrojanNN,
        WaNet,
        InputAware,
        Bpp,
        LabelConsistent,
        FTrojan,
        AdaptiveBlend,
    )
}


def build_attack(name: str, options: Mapping[str, Any], learned: Mapping[str, Tensor] | None = None) -> Attack:
    """An attack by name, its options checked by name and type: they may come from a command line or from a file.

    Raises:
        InputError: an unknown attack or option, a value of the wrong type or outside its range.

    Example:
        >>> build_attack("blended", {"alpha": 0.1}).alpha
        0.1
    """
    check_choice("attack", name, ATTACKS)
    cls = ATTACKS[name]
    hints = typing.get_type_hints(cls)
    known = sorted(cls.option_names())
    for option, value in options.items():
        if option not in known:
            raise InputError(f"option: {name} takes no {option!r}{near(option, known)}")
        kinds = typing.get_args(hints[option]) if isinstance(hints[option], types.UnionType) else (hints[option],)
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits or (isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= 1e9)):
            wanted = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
            raise InputError(f"option: {option} of {name}: found {value!r}, wanted {wanted}")
    return cls(**options, learned=dict(learned or {}))
