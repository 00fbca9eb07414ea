"""What every attack is: a trigger on batches of [0, 1] images, a label for it, and the poisoning of a data set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ...errors import InputError
from ..datasets.base import Split, to_bytes
from ..train import Tampering
from .attacker import Attacker

DEVELOPMENT_ATTACKS = ("badnets", "blended", "wanet")
"""The attacks that any choice of this project may look at (BadNets all-to-one only). All others are test attacks: they
are for the final tables, and nothing is tuned on them, so that the tables say how the defaults do on the unseen."""

NO_OPTION = {"option": False}  # metadata of a field that is no option of the attack
NOTHING = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    `rows` are the poisoned indices, sorted; `cover` those that carry the trigger and keep their true label.
    """

    data: Split
    rows: Tensor
    cover: Tensor = NOTHING


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Options that all attacks share.

    An attack overrides `trigger`, and where its paper has it: `poison` (which images, which labels), `prepare` (what
    is learned before the training: an encoder, a pattern) and `tampering` (what happens during the training).

    Args:
        target: the class that triggered images are sent to; None is all-to-all (y + 1 mod K).
        poisoning_ratio: share of the training images that are poisoned, in (0, 1).
        seed: of the trigger, where it is drawn at random.
        learned: tensors of a trigger that was learned, filled by `prepare` or by the training.
    """

    name: ClassVar[str]
    clean_label: ClassVar[bool] = False  # poisons images of the target class and leaves the labels alone
    retrains: ClassVar[bool] = False  # starts from a clean network instead of from random weights
    target: int | None = 0
    poisoning_ratio: float = 0.1
    seed: int = 0
    learned: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        if not 0 < self.poisoning_ratio < 1:
            raise InputError(f"poisoning_ratio: found {self.poisoning_ratio}, wanted a share between 0 and 1")
        if self.target is not None and self.target < 0:
            raise InputError(f"target: found {self.target}, wanted a class index, or None for all-to-all")
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{option.name}: found {value}, wanted a finite number")

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] with the trigger; same shape, same device, input untouched."""

    def relabel(self, labels: Tensor, classes: int) -> Tensor:
        """The labels that the attacker wants for triggered images of these classes."""
        return (labels + 1) % classes if self.target is None else torch.full_like(labels, self.target)

    def prepare(self, attacker: Attacker) -> Self:
        """The attack with everything learned that its trigger needs before the training; here nothing."""
        return self

    def poison(self, data: Split, classes: int, seed: int) -> Poisoned:
        """Trigger and relabel `poisoning_ratio` of the images, drawn from those whose label would change."""
        return self.poison_rows(data, classes, self.candidates(data, classes, seed, self.poisoning_ratio))

    def tampering(self, attacker: Attacker, steps: int) -> Tampering | None:
        """What a training-time attack does during that many training steps; None for all others."""
        return None

    def finished(self, tampering: Tampering) -> Self:
        """The attack after the training it tampered with."""
        return self

    # What the overriding attacks are built from.

    def candidates(self, data: Split, classes: int, seed: int, share: float) -> Tensor:
        """Rows of `share` of all images, sorted, drawn from those whose label would change."""
        labels = data.labels.cpu()
        may = (self.relabel(labels, classes) != labels).nonzero()[:, 0]
        order = torch.randperm(len(may), generator=torch.Generator().manual_seed(seed))
        return may[order[: round(share * len(data))]].sort().values

    def poison_rows(self, data: Split, classes: int, rows: Tensor) -> Poisoned:
        """Those rows triggered and relabelled; images are kept as 8-bit files would keep them."""
        if len(rows) == 0:
            raise InputError(f"poisoning_ratio: {self.poisoning_ratio} of {len(data)} images is none at all")
        images, labels, at = data.images.clone(), data.labels.clone(), rows.to(data.labels.device)
        for part in at.split(1024):
            images[part] = to_bytes(self.trigger(data.floats(part)))
        labels[at] = self.relabel(labels[at], classes)
        return Poisoned(Split(images, labels), rows)

    def with_learned(self, tensors: Mapping[str, Tensor]) -> Self:
        return replace(self, learned={k: v.detach().cpu() for k, v in tensors.items()})

    def need(self, name: str) -> Tensor:
        """A learned tensor; asking too early is the caller's mistake."""
        if name not in self.learned:
            raise InputError(f"attack: {self.name} learns its trigger; call prepare() or load it before trigger()")
        return self.learned[name]

    def options(self) -> dict[str, Any]:
        """All options as plain JSON values, without what was learned."""
        return {name: getattr(self, name) for name in self.option_names()}

    @classmethod
    def option_names(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.metadata != NO_OPTION]


@dataclass(frozen=True, kw_only=True)
class TrainingTimeAttack(Attack):
    """An attack that poisons every batch of the training anew, in its `tampering`, and no image for good."""

    def poison(self, data: Split, classes: int, seed: int) -> Poisoned:
        return Poisoned(data, NOTHING)


@dataclass(frozen=True, kw_only=True)
class CleanLabelAttack(Attack):
    """An attack that only poisons images of its target class, whose labels stay true.

    Args:
        class_share: at most this share of the target class is poisoned, so that the class itself stays to be learned.
    """

    clean_label = True
    class_share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is None:
            raise InputError(f"target: found None (all-to-all), but {self.name} is a clean-label attack on one class")
        if not 0 < self.class_share <= 1:
            raise InputError(f"class_share: found {self.class_share}, wanted a share above 0 and up to 1")

    def candidates(self, data: Split, classes: int, seed: int, share: float) -> Tensor:
        mine = data.labels.cpu().eq(self.target or 0).nonzero()[:, 0]
        order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))
        return mine[order[: min(round(share * len(data)), int(self.class_share * len(mine)))]].sort().values
