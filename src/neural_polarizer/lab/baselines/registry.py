"""All baselines by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...checks import check_choice
from ..options import check_options
from .anp import ANP
from .base import Baseline
from .bnp import BNP
from .clp import CLP
from .fp import FP
from .ft import FT
from .ft_sam import FTSAM
from .ibau import IBAU
from .nad import NAD
from .nc import NC
from .rnp import RNP
from .sau import SAU

BASELINES: dict[str, type[Baseline]] = {b.name: b for b in (FT, FP, NAD, NC, ANP, CLP, BNP, IBAU, FTSAM, SAU, RNP)}


def build_baseline(name: str, options: Mapping[str, Any]) -> Baseline:
    """A baseline by name, its options checked by name and type: they may come from a file.

    Raises:
        InputError: an unknown baseline or option, a value of the wrong type or outside its range.

    Example:
        >>> build_baseline("ft", {"epochs": 5}).options()["epochs"]
        5
    """
    check_choice("defence", name, BASELINES)
    cls = BASELINES[name]
    check_options(name, cls, [f.name for f in fields(cls)], options)
    return cls(**options)
