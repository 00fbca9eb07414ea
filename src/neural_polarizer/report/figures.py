"""What a page shows, as plain figures: the lab measures them, `page` draws them. All tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..metrics import auroc, tpr_at_fpr, wilson


class Count(NamedTuple):
    """A share of images, as counted."""

    hits: int
    images: int

    @property
    def share(self) -> float:
        """In [0, 1]; of no image at all it is 0."""
        return self.hits / self.images if self.images else 0.0

    def __str__(self) -> str:
        """With its 95 % interval (Wilson), as in ``97.5% (87.1–99.6)``."""
        if not self.images:
            return "no image"
        low, high = wilson(self.hits, self.images)
        return f"{self.share:.1%} ({100 * low:.1f}–{100 * high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        interval = list(wilson(*self)) if self.images else None
        return {"share": self.share, "hits": self.hits, "images": self.images, "interval": interval}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with what is predicted of it, by name and with its confidence in [0, 1], before and after.

    `truth` is the class that it shows, by name; `image` is (C, H, W) in [0, 1].
    """

    caption: str
    image: Tensor
    truth: str
    before: str
    after: str
    before_confidence: float
    after_confidence: float


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The strongest pattern that sends images of other classes to one class, found once against each model.

    Attributes:
        index, name: of the class.
        before, after: what the pattern does to an image, as pictures (C, H, W) in [0, 1] around grey: the one found
            against the model as it came, and the one found against the purified model.
        reached: how many images the first one sends to the class, in the model as it came.
        left: how many the same one sends there in the purified model.
        again: how many the second one sends there in the purified model.
        stands_out: whether this is the class that stands out.
    """

    index: int
    name: str
    before: Tensor
    after: Tensor
    reached: Count
    left: Count
    again: Count
    stands_out: bool


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images by class: rows what they show, columns what is predicted, counts (K, K) before and after."""

    caption: str
    before: Tensor
    after: Tensor

    @staticmethod
    def count(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
        """Counts (K, K) of labels and predictions (N,)."""
        return torch.bincount(labels * classes + predictions, minlength=classes * classes).view(classes, classes)

    def mistakes(self, after: bool, most: int = 5) -> list[tuple[int, int, int]]:
        """The most frequent confusions: class, predicted class, images."""
        wrong = (self.after if after else self.before).clone().fill_diagonal_(0)
        size, at = wrong.flatten().topk(min(most, wrong.numel()))
        return [(int(a) // len(wrong), int(a) % len(wrong), int(n)) for a, n in zip(at, size, strict=True) if n]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the polarizer does.

    Attributes:
        distance: ‖W - I‖ / ‖I‖ (Frobenius), for every map that the polarizer has: one, or one per class; empty where
            it is no linear map over channels.
        difference: |W - I| of the map that is farthest, (D, D), the largest of each block where C is larger; None
            where there is none.
        changed_clean, changed_other: ‖g(m) - m‖ / ‖m‖ over clean images, and over triggered or perturbed ones.
        shift_before, shift_after: (C,) by how many standard deviations (of clean images, before) a channel's mean over
            the positions moves when an image is triggered or perturbed, on average.
    """

    distance: tuple[float, ...]
    difference: Tensor | None
    changed_clean: float
    changed_other: float
    shift_before: Tensor
    shift_after: Tensor

    @property
    def passed(self) -> float:
        """The share of that movement (L2 over the channels) that passes the polarizer."""
        return float(self.shift_after.norm() / self.shift_before.norm().clamp_min(1e-12))

    def strongest(self, most: int = 24) -> list[int]:
        """The channels that move most before, those first."""
        return self.shift_before.abs().topk(min(most, len(self.shift_before))).indices.tolist()


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Many numbers per image in two dimensions, rows (N, 2), all on the axes of those before.

    Attributes:
        what: what the numbers are.
        explained: the shares of the variance before that the two axes hold.
    """

    what: str
    clean_before: Tensor
    other_before: Tensor
    clean_after: Tensor
    other_after: Tensor
    explained: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Scores of clean images (N,) and of triggered or perturbed ones (M,), higher meaning more suspect."""

    clean: Tensor
    other: Tensor

    @property
    def auroc(self) -> float:
        return auroc(self.clean, self.other)

    @property
    def tpr_at_5_fpr(self) -> float:
        return tpr_at_fpr(self.clean, self.other)

    def curve(self) -> tuple[list[float], list[float]]:
        """False and true positive rates of all thresholds, from none flagged to all."""
        steps = torch.cat([self.clean, self.other]).unique().flip(0)
        rates = [
            torch.cat([torch.zeros(1), (s[None] >= steps[:, None]).float().mean(1)]) for s in (self.clean, self.other)
        ]
        return rates[0].tolist(), rates[1].tolist()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What both models do with images that no fit has seen.

    Attributes:
        other: what the images that are not clean are: ``"triggered"`` or ``"perturbed"``.
        trigger: in words, what was done to them.
        target: the class that they are sent to; None: to the next class each.
        labelled: whether the labels came from a person; else they are the original model's predictions.
        classes: names of all classes.
        acc, asr, ra: (before, after) on clean images, and on the others: sent to the target, and given their own class.
        pairs: clean images beside what became of them.
        ball: in words, how large the patterns may be.
    """

    other: str
    trigger: str
    target: int | None
    labelled: bool
    classes: Sequence[str]
    acc: tuple[Count, Count]
    asr: tuple[Count, Count]
    ra: tuple[Count, Count]
    pairs: Sequence[tuple[Sample, Sample]]
    patterns: Sequence[Pattern]
    ball: str
    confusions: Sequence[Confusion]
    layer: Layer
    projections: Sequence[Projection]
    detection: Detection

    def to_dict(self) -> dict[str, Any]:
        """The figures, without pictures and points, as plain JSON values."""
        both = {"acc": self.acc, "asr": self.asr, "ra": self.ra}
        return {
            "images": self.other,
            "trigger": self.trigger,
            "target": self.target,
            "labelled": self.labelled,
            **{name: {"before": b.to_dict(), "after": a.to_dict()} for name, (b, a) in both.items()},
            "auroc": self.detection.auroc,
            "tpr_at_5_fpr": self.detection.tpr_at_5_fpr,
            "pattern": self.ball,
            "classes": [
                {
                    "class": p.index, "name": p.name, "reached_before": p.reached.to_dict(), "left": p.left.to_dict(),
                    "reached_again": p.again.to_dict(), "stands_out": p.stands_out,
                }
                for p in self.patterns
            ],
            "distance_from_identity": list(self.layer.distance),
            "changed": {"clean": self.layer.changed_clean, self.other: self.layer.changed_other},
            "shift_that_passes": self.layer.passed,
        }  # fmt: skip
