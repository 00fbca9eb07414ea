"""What was tried for a model, and how it was judged: the record that `choose` leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .suspicion import Suspicion

JUDGED = (
    "held_back", "labelled", "accuracy_before", "accuracy_after", "accuracy_drop", "drop_low", "drop_high", "perturbed",
    "repaired", "within_budget", "max_accuracy_drop",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One polarizer that was tried, judged on clean images that its fit has not seen.

    Attributes:
        strength: λ of its losses on perturbed images.
        accuracy_drop: clean accuracy lost, in [-1, 1]. Without labels: as `doubt`, on the images themselves.
        doubt: on all their views, the confidence of the original model in its own class minus that in the one that the
            polarizer gives, on average: the same drop, with less luck in it.
        repaired: share in [0, 1] of the perturbed images that get their true class, the mean over the families.
        score: repaired - 10 * max(0, doubt, the low end of the 95 % interval of accuracy_drop): a drop that may be luck
            must not decide between two polarizers. Without a suspect it is doubt and some of what the drop is above it,
            and of fewer than 128 clean images neither.
        within_budget: accuracy_drop is, or is two images (of fewer than 16, one): of a few dozen, two tell nothing;
            and the low end of the 95 % interval of doubt is: what may be luck breaks no budget. Without a suspect, and
            with 128 clean images or more, it is the low end for accuracy_drop, and doubt with some of the drop above.
        suspect: the class that all perturbed images which judge were sent to, and all that were fitted on, or half of
            them where it leads by less than 0.6; None: all were alike. Scores of two suspects do not compare. The first
            trial alone may have one, and clear it.
        look: 1: the perturbed images are those that fool the original model. 2: also those that fool it and the best
            polarizer of the first look; `score` and `repaired` count them.
        twice: fitted for twice as many steps as the others.
        alone: fitted on what was sent to such a suspect and nothing else, to see whether it is one; never chosen.
        error: why there is none of this.
    """

    layer: str
    method: str
    strength: float
    accuracy_drop: float = 0.0
    doubt: float = 0.0
    repaired: float = 0.0
    score: float = 0.0
    within_budget: bool = False
    seconds: float = 0.0
    suspect: int | None = None
    look: int = 1
    twice: bool = False
    alone: bool = False
    error: str = ""


@dataclass(frozen=True)
class Choice:
    """What was tried, and what came of it.

    Attributes:
        trials: in the order in which they were made.
        chosen: the place of the one that was taken; None: none kept the budget, and the polarizer is the identity.
        best: the place of the best one, in the budget or not; None: none was finite.
        labelled: the labels came from the user; otherwise they are the original model's predictions.
        held_back: clean images that judged.
        accuracy_before, accuracy_after: on them; `accuracy_drop` is what trials call so, of what is returned.
        drop_interval: 95 % of it, from the images that changed (normal approximation).
        repaired: share of the held-back perturbed images, all of which fooled the original model, that get their true
            class from what is returned; the mean over the families. `perturbed` is their number.
        suspicion: where the perturbations of the original model end. Where a class stands out, what was sent to it
            judges, and is what was fitted on, or half of it, unless the first trial has cleared it.
        poisoned: rows of the clean images that seem to carry a trigger; they were neither fitted on nor judged by.
    """

    trials: tuple[Trial, ...]
    chosen: int | None
    best: int | None
    max_accuracy_drop: float
    labelled: bool
    held_back: int
    accuracy_before: float
    accuracy_after: float
    accuracy_drop: float
    drop_interval: tuple[float, float]
    repaired: float
    perturbed: int
    suspicion: Suspicion
    poisoned: tuple[int, ...] = ()

    @property
    def within_budget(self) -> bool:
        """Whether anything was found that keeps the budget; if not, the polarizer is the identity."""
        return self.chosen is not None

    def judged(self) -> dict[str, float]:
        """The figures that go with the polarizer: on its card, and in its file."""
        drop = (self.accuracy_drop, *self.drop_interval)
        return dict(zip(JUDGED, (
            self.held_back, self.labelled, self.accuracy_before, self.accuracy_after, *drop, self.perturbed,
            self.repaired, self.within_budget, self.max_accuracy_drop,
        ), strict=True))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "within_budget": self.within_budget, "suspicion": self.suspicion.to_dict()}
