from __future__ import annotations

import math

import pytest

from neural_polarizer import FitConfig, InputError


def test_published_settings():
    cifar, gtsrb, tiny = (FitConfig.published(name) for name in ("cifar10", "gtsrb", "tiny"))
    for config in (cifar, gtsrb, tiny):
        assert (config.norm, config.steps, config.step, config.early_exit) == ("l2", 2, 0.1, 0.6)
        assert (config.lr, config.momentum, config.weight_decay) == (0.01, 0.9, 5e-4)
        assert (config.batch_size, config.epochs, config.target, config.aim) == (128, 50, None, "prediction")
        assert config.start == 0
    assert [c.radius for c in (cifar, gtsrb, tiny)] == [3.0, 5.0, 6.0]
    assert [c.step_rule for c in (cifar, gtsrb, tiny)] == ["sign", "sign", "plain"]
    assert [c.warmup_epochs for c in (cifar, gtsrb, tiny)] == [5, 5, 0]
    assert cifar.warmup_lr == 1e-4
    assert [c.statistics for c in (cifar, gtsrb, tiny)] == ["running", "running", "batch"]
    weights = [(c.lambda_bn, c.lambda_ce, c.lambda_max, c.lambda_asr) for c in (cifar, gtsrb, tiny)]
    assert weights == [(1, 0.4, 0.4, 0.4), (1, 0.5, 0.5, 0.5), (1, 1, 0.1, 0.1)]
    linf = FitConfig.published("cifar10", norm="linf")
    assert (linf.norm, linf.radius, linf.step, linf.steps, linf.start) == ("linf", 0.2, 0.44, 10, 0.2)


def test_radius_keeps_the_rms_per_pixel():
    assert FitConfig().radius_for((3, 32, 32)) == pytest.approx(3.0)
    assert FitConfig().radius_for((3, 64, 64)) == pytest.approx(6.0)
    assert FitConfig().radius_for((1, 16, 16)) == pytest.approx(3.0 * math.sqrt(256 / 3072))
    assert FitConfig.published("cifar10").radius_for((3, 64, 64)) == 3.0
    assert FitConfig(norm="linf").radius_for((3, 64, 64)) == 0.2
    assert FitConfig(norm="l1").radius_for((3, 32, 32)) == pytest.approx(3.0 * math.sqrt(3072) / 4)


def test_there_and_back():
    config = FitConfig(target=3, norm="l1", radius=2.0, hidden=4)
    assert FitConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="unknown names"):
        FitConfig.from_dict({"epoch": 3})


@pytest.mark.parametrize(
    "bad",
    [
        {"norm": "l3"}, {"radius": 0}, {"radius": math.nan}, {"radius": "3"}, {"steps": 0}, {"steps": 1.5}, {"epochs": -1},
        {"lr": 0}, {"lr": math.inf}, {"lambda_ce": -1}, {"target": "first"}, {"target": -1}, {"target": True}, {"structure": 3},
        {"batch_size": 0}, {"early_exit": 0}, {"statistics": None}, {"momentum": True}, {"target": [1]}, {"share": []},
    ],
)  # fmt: skip
def test_bad_values_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        FitConfig(**bad)


def test_mergeable_goes_there_and_back_and_is_refused_where_nothing_can_be_folded():
    assert FitConfig.from_dict(FitConfig(mergeable=True).to_dict()).mergeable
    assert not FitConfig.from_dict({k: v for k, v in FitConfig().to_dict().items() if k != "mergeable"}).mergeable
    for structure in ("relu", "position"):
        with pytest.raises(InputError, match=f"mergeable: found True for structure '{structure}'"):
            FitConfig(mergeable=True, structure=structure)
    with pytest.raises(InputError, match="mergeable: found 1,"):
        FitConfig(mergeable=1)
