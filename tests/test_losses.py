"""Against values worked out by hand: p = (1/2, 1/4, 1/4) for logits (ln 2, 0, 0)."""

from __future__ import annotations

import math

import pytest
import torch

from neural_polarizer.losses import (
    asr_loss,
    bn_loss,
    ce_loss,
    kl_loss,
    log_one_minus_p,
    max_loss,
    still_loss,
)

LOGITS = torch.tensor([[math.log(2), 0.0, 0.0]])


@pytest.mark.parametrize(
    ("loss", "classes", "value"),
    [
        (bn_loss, 0, math.log(2)),
        (bn_loss, 1, math.log(4)),
        (ce_loss, 2, math.log(4)),
        (asr_loss, 0, math.log(2)),  # -log(1 - 1/2)
        (asr_loss, 1, math.log(4 / 3)),  # -log(1 - 1/4)
        (max_loss, 0, math.log(4 / 3)),  # strongest wrong class has 1/4
        (max_loss, 1, math.log(2)),  # strongest wrong class has 1/2
    ],
)
def test_by_hand(loss, classes, value):
    assert loss(LOGITS, torch.tensor([classes])).item() == pytest.approx(value, abs=1e-6)


def test_kl_by_hand():
    """KL((1/2, 1/4, 1/4) || uniform) = log 3 - 3/2 log 2; nothing where both agree."""
    assert kl_loss(torch.zeros(1, 3), LOGITS).item() == pytest.approx(math.log(3) - 1.5 * math.log(2), abs=1e-6)
    assert kl_loss(LOGITS + 5, LOGITS).item() == pytest.approx(0, abs=1e-6)


def test_still_by_hand():
    """Of four values one has moved by 2: a mean square of 1, a quarter of what was there; of nothing, nothing moves."""
    before, square = torch.tensor([[[2.0, -2.0], [2.0, 2.0]]]), torch.tensor(4.0)
    after = before + torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert still_loss(after, before, square).item() == pytest.approx(0.25)
    assert still_loss(0 * before, 0 * before, 0 * square).item() == 0


def test_mean_over_the_batch():
    both = asr_loss(LOGITS.repeat(2, 1), torch.tensor([0, 1]))
    assert both.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", [asr_loss, max_loss])
def test_gradient_lives_where_the_backdoor_fires_with_probability_one(loss):
    logits = torch.tensor([[200.0, 0.0, -5.0]], requires_grad=True)
    value = loss(logits, torch.tensor([0 if loss is asr_loss else 1]))
    value.backward()
    assert value.item() == pytest.approx(200 - math.log(1 + math.exp(-5)), rel=1e-5)
    assert logits.grad[0, 0].item() == pytest.approx(1, abs=1e-5)


def test_two_classes():
    logits = torch.tensor([[1.0, 3.0]])
    assert log_one_minus_p(logits, torch.tensor([1])).item() == pytest.approx(math.log(1 / (1 + math.exp(2))), abs=1e-6)


def test_half_precision_is_widened():
    out = asr_loss(torch.tensor([[30.0, 0.0]], dtype=torch.float16), torch.tensor([0]))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(30, rel=1e-3)
