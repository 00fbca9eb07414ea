from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from neural_polarizer.perturb import (
    NORMS,
    PROJECTIONS,
    SHARES,
    STEP_RULES,
    Additive,
    Descent,
    descend,
    project_l1,
    project_l2,
    project_linf,
)

ORDER = {"l2": 2, "linf": math.inf, "l1": 1}


def length(delta: torch.Tensor, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), ord=ORDER[norm], dim=1)


def linear(seed: int = 0, classes: int = 4) -> nn.Module:
    weight = torch.randn(classes, 12, generator=torch.Generator().manual_seed(seed)) * 3
    return lambda x: x.flatten(1) @ weight.T


IMAGES = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(5))
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_closed_forms():
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(project_l2(v, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    torch.testing.assert_close(project_linf(v, 1.0), torch.tensor([[1.0, 1.0], [0.3, 0.4]]))
    # L1: (3, 4) onto radius 1 is (0, 1); (2, 1) onto radius 2 is (1.5, 0.5)
    torch.testing.assert_close(project_l1(torch.tensor([[3.0, -4.0], [2.0, 1.0]]), 1.0)[0], torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(project_l1(torch.tensor([[2.0, 1.0]]), 2.0), torch.tensor([[1.5, 0.5]]))


@settings(max_examples=60, deadline=None)
@given(
    v=arrays("float64", (3, 7), elements=st.floats(-5, 5, allow_nan=False)),
    w=arrays("float64", (3, 7), elements=st.floats(-5, 5, allow_nan=False)),
    radius=st.floats(0.05, 6),
    norm=st.sampled_from(NORMS),
)
def test_projection_is_the_nearest_point(v, w, radius, norm):
    """Inside stays; outside lands on the ball; and <v - p, q - p> <= 0 for every q of the ball: p is nearest."""
    v, q = torch.from_numpy(v), torch.from_numpy(w)
    p = PROJECTIONS[norm](v, radius)
    size = length(v, norm)
    assert (length(p, norm) <= radius + 1e-9).all()
    inside = size <= radius
    torch.testing.assert_close(p[inside], v[inside], atol=1e-9, rtol=0)
    q = q * (radius / length(q, norm).clamp_min(1e-12)).clamp(max=1)[:, None]
    assert (((v - p) * (q - p)).sum(1) <= 1e-7 * (1 + size * radius)).all()
    torch.testing.assert_close(PROJECTIONS[norm](p, radius), p, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rule", STEP_RULES)
@pytest.mark.parametrize("start", [0.0, 0.2])
def test_never_leaves_the_ball_or_the_box(norm, share, rule, start):
    threat = Additive(norm=norm, radius=0.3, share=share, start=start)
    out = descend(threat, linear(), IMAGES, TARGETS, Descent(steps=4, step=0.4, rule=rule))
    assert out.images.min() >= 0
    assert out.images.max() <= 1
    assert (length(out.images - IMAGES, norm) <= 0.3 + 1e-5).all()
    assert not out.images.requires_grad


@pytest.mark.parametrize("share", SHARES)
def test_moves_towards_the_target(share):
    model = linear()
    targets = torch.zeros(6, dtype=torch.long) if share == "batch" else TARGETS
    before = model(IMAGES).softmax(1).gather(1, targets[:, None]).mean()
    out = descend(Additive(radius=0.8, share=share), model, IMAGES, targets, Descent(steps=5, step=0.2))
    assert model(out.images).softmax(1).gather(1, targets[:, None]).mean() > before + 0.05


def test_sharing():
    for share, units in (("sample", 6), ("batch", 1), ("target", 4)):
        out = descend(Additive(share=share, radius=0.1), linear(), IMAGES, TARGETS, Descent())
        assert len(out.parameters) == units
    out = descend(Additive(share="target", radius=0.01), linear(), IMAGES * 0 + 0.5, TARGETS, Descent())
    delta = out.images - 0.5
    torch.testing.assert_close(delta[0], delta[4])
    torch.testing.assert_close(delta[1], delta[5])
    assert not torch.equal(delta[0], delta[1])


def test_samples_do_not_see_each_other():
    together = descend(Additive(radius=0.5), linear(), IMAGES, TARGETS, Descent(steps=3, rule="plain", step=0.05))
    alone = descend(
        Additive(radius=0.5), linear(), IMAGES[2:3], TARGETS[2:3], Descent(steps=3, rule="plain", step=0.05)
    )
    torch.testing.assert_close(together.images[2:3], alone.images)


def test_step_rules():
    gradient = torch.tensor([[[[3.0, -4.0]]]])
    assert Descent(rule="sign").direction(gradient).flatten().tolist() == [1, -1]
    assert Descent(rule="plain").direction(gradient).flatten().tolist() == [3, -4]
    torch.testing.assert_close(Descent(rule="normalized").direction(gradient).flatten(), torch.tensor([0.6, -0.8]))


def test_untargeted_runs_away():
    model = linear()
    predicted = model(IMAGES).argmax(1)
    out = descend(Additive(radius=2.0), model, IMAGES, predicted, Descent(steps=6, step=0.2), away=True)
    assert (model(out.images).argmax(1) != predicted).double().mean() >= 0.5


def test_early_exit_stops_exactly_when_enough_have_arrived():
    model, calls = linear(), []

    def counted(x):
        calls.append(1)
        return model(x)

    how = Descent(steps=10, step=0.3, early_exit=0.6)
    out = descend(Additive(radius=5.0), counted, IMAGES, TARGETS, how)
    assert len(calls) < 10
    assert (model(out.images).argmax(1) == TARGETS).double().mean() >= 0.6
    one_less = descend(Additive(radius=5.0), model, IMAGES, TARGETS, Descent(steps=len(calls) - 1, step=0.3))
    torch.testing.assert_close(out.images, one_less.images)


def test_several_models_are_fooled_at_once():
    """The gradient is that of the mean loss; the early exit waits for all of them."""
    first, second = linear(0), linear(1)
    how = Descent(steps=1, step=1e-3, rule="plain")
    threat = Additive(radius=10.0)
    inside = IMAGES * 0.5 + 0.25
    both = descend(threat, lambda x: (first(x), second(x)), inside, TARGETS, how).parameters
    alone = [descend(threat, f, inside, TARGETS, how).parameters for f in (first, second)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2, atol=1e-6, rtol=1e-4)
    how = Descent(steps=40, step=0.2, early_exit=1.0)
    target = torch.ones(6, dtype=torch.long)
    out = descend(threat, lambda x: (first(x), second(x)), inside, target, how).images
    assert (first(out).argmax(1) == target).all() == (second(out).argmax(1) == target).all()


def test_descent_is_written_over_any_threat_model():
    """A threat model that is not additive: one brightness factor per image. Nothing else is needed."""
    from neural_polarizer.perturb import ThreatModel

    class Brightness(ThreatModel):
        share = "sample"

        def begin(self, units, images):
            return torch.ones(units, 1)

        def act(self, parameters, images):
            return (images * parameters[:, :, None, None]).clamp(0, 1)

        def project(self, parameters, images):
            return parameters.clamp(0.5, 1.5)

    out = descend(Brightness(), linear(), IMAGES, TARGETS, Descent(steps=3, step=0.3))
    assert out.parameters.shape == (6, 1)
    assert ((out.parameters >= 0.5) & (out.parameters <= 1.5)).all()
    assert not torch.equal(out.images, IMAGES)


@pytest.mark.parametrize(("most", "exits"), [(0.1, True), (None, False)])
def test_says_when_the_last_pass_was_of_what_it_returns(most, exits):
    passed = []

    def forward(x):
        passed.append(x.detach().clone())
        return linear()(x)

    threat = Additive(norm="l2", radius=2.0)
    out = descend(threat, forward, IMAGES, TARGETS, Descent(steps=4, step=0.3, early_exit=most))
    assert out.seen == exits
    assert torch.equal(passed[-1], out.images) == exits
