"""A batch in several passes takes the same steps as in one."""

from __future__ import annotations

import pytest
import torch

from neural_polarizer import FitConfig, InputError
from neural_polarizer.perturb import Additive, Descent, descend

from .spread_worker import METHODS, configs, fits

CAPTURES = ("graph", "hooks")


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", configs())
def test_parts_of_a_batch_take_the_steps_of_the_whole(whole, parted, kind, method, capture):
    """With hooks nothing is kept at the layer, and the outer problem takes parts as well."""
    whole, parted = whole[capture], parted[capture]
    name = f"{kind} {method}"
    assert any(not torch.equal(parted[name][k], v) for k, v in whole[name].items()), "it ran in parts"
    for key, value in whole[name].items():
        torch.testing.assert_close(parted[name][key], value, atol=1e-8, rtol=1e-8)
    for key, value in whole[f"{name} told"].items():
        assert parted[f"{name} told"][key] == pytest.approx(value, abs=1e-6), key


@pytest.fixture(scope="module")
def whole():
    return {capture: fits(capture) for capture in CAPTURES}


@pytest.fixture(scope="module")
def parted():
    return {capture: fits(capture, micro_batch=3) for capture in CAPTURES}


@pytest.mark.parametrize("share", ["sample", "batch", "target"])
@pytest.mark.parametrize("early_exit", [None, 0.5, 2.0])
def test_a_descent_in_parts(share, early_exit):
    order = torch.Generator().manual_seed(0)
    x, targets = torch.rand(10, 3, 4, 4, generator=order, dtype=torch.float64), torch.arange(10) % 3
    weight = torch.randn(48, 3, generator=order, dtype=torch.float64)
    threat, sizes = Additive(radius=1.0, share=share), list[int]()

    def forward(some):
        sizes.append(len(some))
        return some.flatten(1) @ weight

    how = {"steps": 4, "step": 0.05, "rule": "normalized", "early_exit": early_exit}
    found = descend(threat, forward, x, targets, Descent(**how))
    whole = sizes.copy()
    sizes.clear()
    parts = descend(threat, forward, x, targets, Descent(**how, micro_batch=4))
    torch.testing.assert_close(parts.images, found.images)
    assert parts.seen == found.seen
    again = sizes.copy()
    for _ in whole:  # every step sees every part,
        assert again[:3] == [4, 4, 2]
        again = again[3:]
        if again[:2] == [4, 2]:  # and what was not expected to need gradients once more
            again = again[2:]
    assert not again
    if early_exit != 0.5:
        assert len(sizes) == 3 * len(whole)


@pytest.mark.parametrize(("first", "rest"), [(True, False), (False, True), (True, True)])
def test_the_first_part_misleads(first, rest):
    """Whether the descent ends is what the whole batch says, whatever the first part does."""
    x, targets = torch.full((10, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(10, dtype=torch.long)
    easy = torch.tensor([first] * 4 + [rest] * 6)
    needed = torch.where(easy, 0.501, 0.6).double()[:, None]

    def at(part):
        return lambda some: (some.flatten(1) - needed[part]) * torch.tensor([[1.0, -1.0]], dtype=torch.float64)

    how = {"steps": 4, "step": 0.002, "rule": "normalized", "early_exit": 0.6}
    threat = Additive(radius=1.0, share="sample")
    found = descend(threat, at(slice(None)), x, targets, Descent(**how))
    parts = descend(threat, at(slice(None)), x, targets, Descent(**how, micro_batch=4), at=at)
    torch.testing.assert_close(parts.images, found.images)
    assert parts.seen == found.seen == rest


def test_large_images_are_few_in_a_pass():
    config = FitConfig(batch_size=128)
    assert [config.pass_size((3, side, side), "cuda") for side in (32, 64, 224)] == [128, 128, 27]
    assert [config.pass_size((3, side, side), "cpu") for side in (32, 64, 224)] == [64, 64, 27]
    assert FitConfig(micro_batch=16).pass_size((3, 32, 32)) == 16
    assert FitConfig(micro_batch=500).pass_size((3, 32, 32)) == 128
    assert {how.micro_batch for _, how in FitConfig.in_rounds(micro_batch=5).families((3, 32, 32))} == {5}


def test_statistics_of_a_batch_do_not_add_up():
    with pytest.raises(InputError, match=r"micro_batch: found 8 with statistics='batch'"):
        FitConfig(micro_batch=8, statistics="batch")
