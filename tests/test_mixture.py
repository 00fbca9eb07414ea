from __future__ import annotations

import json
import math

import pytest

from neural_polarizer import FitConfig, InputError
from neural_polarizer.mixture import MAX_FAMILIES, SPARSE, THREATS, Family
from neural_polarizer.perturb import NORMS, Additive, Flow, Sparse
from neural_polarizer.threats import Quantised, Smooth, Wave


def test_sizes_keep_their_share_of_the_image():
    """Twice the side: L2 and displacements twice, L1 and pixels four times as large; L∞ stays."""
    growth = {"l2": 2, "linf": 1, "l1": 4, "smooth": 2, "wave": 2, "flow": 2, "patch": 2, "pixels": 4, "quantised": 1}
    assert set(growth) == set(THREATS)
    for threat, factor in growth.items():
        family = Family(threat=threat, radius=3.0)
        assert family.size_for((3, 32, 32)) == pytest.approx(3.0)
        assert family.size_for((3, 64, 64)) == pytest.approx(3.0 * factor)
    assert Family(radius=3.0).size_for((1, 32, 32)) == pytest.approx(3.0 / math.sqrt(3))


def test_families_are_threat_models_with_a_descent():
    shape = (3, 64, 64)
    for norm in NORMS:
        assert isinstance(Family(threat=norm).threat_model(shape), Additive)
    assert Family(threat="l2", radius=1.0, share="target").threat_model(shape) == Additive(
        norm="l2", radius=2.0, share="target"
    )
    assert Family(threat="flow", radius=1.5, grid=5).threat_model(shape) == Flow(reach=3.0, grid=5)
    assert Family(threat="smooth", radius=2.0, grid=6).threat_model(shape) == Smooth(radius=4.0, grid=6)
    assert Family(threat="wave", radius=4.5, grid=24).threat_model(shape) == Wave(radius=9.0, grid=24)
    assert Family(threat="patch", radius=3).threat_model(shape) == Sparse(size=6, window=True)
    assert Family(threat="pixels", radius=4).threat_model(shape) == Sparse(size=16)
    assert Family(threat="patch", radius=1).threat_model((1, 8, 8)) == Sparse(size=1, window=True)
    assert Family(threat="patch", radius=5).threat_model((1, 8, 8)) == Sparse(
        size=5, window=True
    )  # no fewer on small ones
    assert Family(threat="pixels", radius=9).threat_model((1, 8, 8)) == Sparse(size=9)
    assert Family(threat="quantised", radius=4).threat_model(shape) == Quantised(levels=4)
    assert Family(threat="quantised", radius=3, step=0.1).descent(shape).step == pytest.approx(0.025 * math.sqrt(3))
    assert Family(threat="l2", radius=1.0, step=0.5).descent(shape).step == pytest.approx(1.0)
    assert Family(threat="patch", radius=3, step=0.5).descent((3, 32, 32)).step == pytest.approx(1.5 * math.sqrt(3))


def test_what_a_class_may_be_suspected_by():
    """Not by a family that reaches a class of a clean network alone: docs/results.md."""
    assert [f.telling for f in FitConfig.in_rounds().mixture if f.threat in SPARSE] == [1.0, 0.5, 0.5]
    assert {f.telling for f in FitConfig.in_rounds().mixture if f.threat == "wave"} == {0.45}
    assert all(f.telling == 1 for f in FitConfig.in_rounds().mixture if f.threat not in (*SPARSE, "wave"))
    assert Family(threat="patch", radius=2).telling == 1
    assert Family(threat="pixels", radius=2).telling == 0.5


def test_there_and_back_as_json():
    config = FitConfig.in_rounds(
        rounds=2, mixture=[Family(), Family(threat="flow", radius=2.0, grid=5), {"threat": "patch", "radius": 3}]
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert FitConfig.from_dict(values) == config
    assert [family.threat for family in config.mixture] == ["l2", "flow", "patch"]
    assert isinstance(hash(config), int)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (None, "wanted a list"), ("l2", "wanted a list"), ({"threat": "l2"}, "wanted a list"), (3, "wanted a list"),
        ([{}] * (MAX_FAMILIES + 1), "at most 16"), ([3], "wanted an object"), (["l2"], "wanted an object"),
        ([{"threat": "l3"}], "threat: found 'l3'"), ([{"radius": 0}], "radius"), ([{"radius": math.inf}], "radius"),
        ([{"radius": math.nan}], "radius"), ([{"radius": 10**400}], "radius"), ([{"radius": "1"}], "radius"),
        ([{"radius": True}], "radius"), ([{"steps": 10**9}], "steps"), ([{"steps": 1.5}], "steps"), ([{"threat": "wave", "steps": 0}], "steps"), ([{"step": -1}], "step"),
        ([{"threat": "flow", "grid": 1}], "grid"), ([{"threat": "flow", "grid": 10**6}], "grid"), ([{"grid": 8}], "for 'l2'"),
        ([{"share": []}], "share"), ([{"focus": -1}], "focus"), ([{"threat": "quantised", "radius": 1}], "radius"),
        ([{"focus": 2}], "focus: found 2 for share 'sample'"), ([{"rule": None}], "rule"), ([{"name": "x"}], "wanted an object"), ([{3: 3}], "wanted an object"),
    ],
)  # fmt: skip
def test_bad_mixtures_are_named(mixture, message):
    with pytest.raises(InputError, match=message) as caught:
        FitConfig(loop="rounds", mixture=mixture)
    assert "mixture: " in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 2}, "loop: found 'batch'"), ({"mixture": [{}]}, "loop: found 'batch'"), ({"loop": "epochs"}, "loop"),
        ({"loop": "rounds", "rounds": 0}, "rounds"), ({"loop": "rounds", "target": "runner-up"}, "target"),
        ({"loop": "rounds", "target": "none"}, "target"), ({"loop": "rounds", "conditioning": "label"}, "conditioning"),
        ({"loop": "rounds", "mixture": [{}], "radius": 2.0}, "radius: found 2.0 beside a mixture"),
        ({"loop": "rounds", "mixture": [{}], "steps": 3}, "steps"), ({"loop": "rounds", "mixture": [{}], "share": "target"}, "share"),
    ],
)  # fmt: skip
def test_no_option_that_the_loop_would_ignore(options, message):
    with pytest.raises(InputError, match=message):
        FitConfig(**options)
