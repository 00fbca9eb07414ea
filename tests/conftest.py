from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neural_polarizer import FitConfig, pool, precision

torch.set_num_threads(1)  # two workers on two cores


@pytest.fixture(autouse=True)
def global_generator_untouched():
    """No test may move the global generator: seeds are explicit arguments everywhere."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "something drew from the global random number generator"


@pytest.fixture
def full_width(monkeypatch):
    """No bfloat16, whatever the processor is fast at."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: False)


@pytest.fixture
def few_views(monkeypatch):
    """As many views of a handful of images as of thousands, so that these tests do not take as long."""
    monkeypatch.setattr(pool, "VIEWED", 1)


@pytest.fixture
def short_rounds(monkeypatch, few_views):
    """The defaults of `purify` with two families, next to no steps, and few views."""
    usual = FitConfig.in_rounds()
    short = replace(usual, mixture=usual.mixture[:2], epochs=1, least_steps=0)
    monkeypatch.setattr(FitConfig, "in_rounds", lambda: short)
