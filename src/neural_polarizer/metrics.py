"""Metrics of a defence, exactly as the papers count them (arXiv 2306.16697, section 4.1).

`predictions` and `labels` are class indices (N,); every rate is a float in [0, 1].

Example:
    >>> attack_success_rate(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), target=0)   # class 0 does not count
    0.5
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import InputError


def _share(hits: Tensor, what: str) -> float:
    if hits.numel() == 0:
        raise InputError(f"{what}: found no image that counts, wanted at least one")
    return hits.double().mean().item()


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """An interval for a share, 95 % with the default `z`: never empty, never outside [0, 1], unlike p ± z·σ.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Example:
        >>> low, high = wilson(0, 100)
        >>> low, round(high, 3)
        (0.0, 0.037)
    """
    if not 0 <= hits <= count or count < 1:
        raise InputError(f"hits: found {hits} of {count}, wanted at least one image and no more hits than images")
    share, slack = hits / count, z * z / count
    middle, width = share + slack / 2, z * math.sqrt(share * (1 - share) / count + slack / (4 * count))
    low, high = (middle - width) / (1 + slack), (middle + width) / (1 + slack)
    return (low if hits else 0.0), (high if hits < count else 1.0)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """ACC: share of clean images that get their true class."""
    return _share(predictions == labels, "accuracy")


def attackable(labels: Tensor, target: int | None) -> Tensor:
    """Mask (N,) of the images that count for ASR and RA: true class != target; all of them in all-to-all."""
    return torch.ones_like(labels, dtype=torch.bool) if target is None else labels.ne(target)


def attack_success_rate(
    predictions: Tensor, labels: Tensor, *, target: int | None, classes: int | None = None
) -> float:
    """ASR: share of triggered images, true class != target, that get the target.

    `target=None` is the all-to-all attack, where the attacker wants y + 1 mod `classes` (then required).
    """
    if target is None and classes is None:
        raise InputError("classes: found None, wanted the number of classes for an all-to-all attack")
    wanted = (labels + 1) % (classes or 1) if target is None else torch.full_like(labels, target)
    return _share(predictions.eq(wanted)[attackable(labels, target)], "attack_success_rate")


def robust_accuracy(predictions: Tensor, labels: Tensor, *, target: int | None) -> float:
    """RA: share of the same triggered images that get their true class."""
    return _share(predictions.eq(labels)[attackable(labels, target)], "robust_accuracy")


def defence_effectiveness(*, acc_before: float, acc_after: float, asr_before: float, asr_after: float) -> float:
    """DER = (max(0, ΔASR) - max(0, ΔACC) + 1) / 2 with Δ = before - after; 0.5: nothing was gained."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2


def der_ceiling(asr_before: float) -> float:
    """The highest DER that any defence can have against an attack of this strength."""
    return (asr_before + 1) / 2


def excess_asr(asr: float, twin_asr: float) -> float:
    """ASR minus the rate at which a clean-trained twin gives the target on the same triggered images."""
    return asr - twin_asr


def auroc(clean_scores: Tensor, poisoned_scores: Tensor) -> float:
    """Area under the ROC of a detection score, higher meaning more suspect; ties count half.

    Example:
        >>> auroc(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.9]))
        0.875
    """
    if not len(clean_scores) or not len(poisoned_scores):
        raise InputError("auroc: found no score on one side, wanted clean and poisoned ones")
    clean, below = clean_scores.double().sort().values, poisoned_scores.double()
    less = torch.searchsorted(clean, below, right=False)
    at_most = torch.searchsorted(clean, below, right=True)
    return ((less + at_most).double() / 2).mean().item() / len(clean)


def tpr_at_fpr(clean_scores: Tensor, poisoned_scores: Tensor, *, fpr: float = 0.05) -> float:
    """Share of poisoned images found by the lowest threshold that flags at most `fpr` of the clean ones.

    An image is flagged when its score is above the threshold.
    """
    if not len(clean_scores) or not len(poisoned_scores):
        raise InputError("tpr_at_fpr: found no score on one side, wanted clean and poisoned ones")
    clean = clean_scores.double().sort(descending=True).values
    allowed = int(fpr * len(clean))
    threshold = clean[allowed] if allowed < len(clean) else clean[-1] - 1
    return poisoned_scores.double().gt(threshold).double().mean().item()
