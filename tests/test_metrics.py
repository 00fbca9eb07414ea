from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neural_polarizer import InputError
from neural_polarizer.metrics import (
    accuracy,
    attack_success_rate,
    auroc,
    defence_effectiveness,
    der_ceiling,
    excess_asr,
    robust_accuracy,
    tpr_at_fpr,
    wilson,
)

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def test_accuracy():
    assert accuracy(torch.tensor([0, 1, 1, 1, 2, 0]), LABELS) == pytest.approx(4 / 6)


def test_all_to_one_leaves_the_target_class_out():
    predictions = torch.tensor([0, 0, 0, 1, 0, 0])
    assert attack_success_rate(predictions, LABELS, target=0) == pytest.approx(3 / 4)
    assert robust_accuracy(predictions, LABELS, target=0) == pytest.approx(1 / 4)


def test_all_to_all_counts_every_image():
    predictions = torch.tensor([1, 1, 2, 1, 0, 2])
    assert attack_success_rate(predictions, LABELS, target=None, classes=3) == pytest.approx(4 / 6)
    assert robust_accuracy(predictions, LABELS, target=None) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("acc", "asr", "value"),
    [
        ((0.9, 0.9), (1.0, 0.0), 1.0),
        ((0.9, 0.8), (1.0, 0.0), 0.95),
        ((0.9, 0.95), (0.5, 0.7), 0.5),
        ((0.9, 0.4), (1.0, 1.0), 0.25),
    ],
)
def test_der(acc, asr, value):
    der = defence_effectiveness(acc_before=acc[0], acc_after=acc[1], asr_before=asr[0], asr_after=asr[1])
    assert der == pytest.approx(value)


def test_ceiling_and_excess():
    assert der_ceiling(0.97) == pytest.approx(0.985)
    assert excess_asr(0.05, 0.02) == pytest.approx(0.03)


@given(
    clean=st.lists(st.integers(0, 6), min_size=1, max_size=12), bad=st.lists(st.integers(0, 6), min_size=1, max_size=12)
)
def test_auroc_counts_pairs(clean, bad):
    wins = sum((b > c) + 0.5 * (b == c) for b in bad for c in clean)
    found = auroc(torch.tensor(clean).float(), torch.tensor(bad).float())
    assert found == pytest.approx(wins / len(clean) / len(bad))


def test_tpr_at_fpr():
    clean = torch.arange(100.0)
    assert tpr_at_fpr(clean, torch.tensor([94.0, 94.5, 95.0, 200.0])) == pytest.approx(
        3 / 4
    )  # five clean ones above 94
    assert tpr_at_fpr(torch.zeros(100), torch.zeros(3)) == 0
    assert tpr_at_fpr(torch.zeros(3), torch.ones(3), fpr=0.0) == 1
    for metric in (auroc, tpr_at_fpr):
        with pytest.raises(InputError, match="no score"):
            metric(torch.zeros(0), torch.zeros(3))


def test_nothing_to_count():
    with pytest.raises(InputError, match="no image that counts"):
        attack_success_rate(torch.tensor([0]), torch.tensor([0]), target=0)
    with pytest.raises(InputError, match="classes"):
        attack_success_rate(torch.tensor([0]), torch.tensor([0]), target=None)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(39, 40, 0.8712, 0.9956), (0, 33, 0.0, 0.1043), (33, 33, 0.8957, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals(hits, count, low, high):
    """The last is the worked example of Newcombe, "Two-sided confidence intervals for the single proportion" (1998)."""
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_wants_a_share(hits, count):
    with pytest.raises(InputError, match="hits"):
        wilson(hits, count)
