"""All attacks by name, and a saved attack brought back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...checks import check_choice
from ..options import check_options
from .adaptive_blend import AdaptiveBlend
from .badnets import BadNets
from .base import Attack
from .blended import Blended
from .bpp import Bpp
from .ftrojan import FTrojan
from .input_aware import InputAware
from .label_consistent import LabelConsistent
from .low_frequency import LowFrequency
from .polarizer_aware import PolarizerAware
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
        PolarizerAware,
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
    check_options(name, cls, cls.option_names(), options)
    return cls(**options, learned=dict(learned or {}))
