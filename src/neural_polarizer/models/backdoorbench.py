"""BackdoorBench's `attack_result.pt`: a state dict and the name of its architecture, beside poisoned-set records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .normalization import NORMALIZATIONS

OWN_NAMES = {"preactresnet18": "preact_resnet18", "vgg19_bn": "vgg19_bn"}  # all others are torchvision's
RENAMED = {"tiny": "tiny_imagenet"}  # data sets


@dataclass(frozen=True)
class AttackResult:
    """What the file says about its network.

    Args:
        arch: by our name.
        normalization: (mean, std), which BackdoorBench keeps with the data set; None where it is not known.
    """

    arch: str
    classes: int
    data: str
    normalization: tuple[Sequence[float], Sequence[float]] | None
    model: Any


def attack_result(value: Any, source: str) -> AttackResult | None:
    """What `attack_result.pt` (or `defense_result.pt`) says; None for other files.

    BackdoorBench (Wu et al., NeurIPS 2022) writes a dict of `model_name`, `num_classes`, `model`, `data_path`,
    `img_size`, `clean_data`, `bd_train`, `bd_test`. The records of the poisoned sets are dicts of paths and labels,
    whose keys and indices are numpy's; they are read as plain data and not used.

    Raises:
        InputError: entries of the wrong type.
    """
    if not isinstance(value, Mapping) or not {"model_name", "num_classes", "model"} <= value.keys():
        return None
    name, classes, data = value["model_name"], value["num_classes"], value.get("clean_data")
    if not isinstance(name, str) or type(classes) is not int:
        raise InputError(f"model: {source}: found model_name {name!r:.80} and num_classes {classes!r:.80}")
    known = str(data) if isinstance(data, str) else ""
    return AttackResult(
        OWN_NAMES.get(name, f"torchvision:{name:.80}"),
        classes,
        known,
        NORMALIZATIONS.get(RENAMED.get(known, known)),
        value["model"],
    )
