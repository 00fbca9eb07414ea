"""What the speed is compared with must be the same method: plain loop and library take the same steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from neural_polarizer import FitConfig
from neural_polarizer.capture import make_cut
from neural_polarizer.fit import fit_per_batch, measure, started

from .nets import images, labels
from .test_rounds import lively

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from plain_loop import PlainLoop


@pytest.mark.parametrize("options", [{}, {"radius": 0.4}, {"steps": 3, "early_exit": 0.1}])
def test_the_same_steps(options):
    config = FitConfig(**{"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "radius": 1.5, **options})
    net, x, y = lively("skips").double(), images(24).double(), labels(24)
    cut = make_cut(net, "block", x[:2], "graph")
    mean, var, original = measure(cut, x, 8)
    ours, plain = (started("npd", config, cut, 0, mean, var).double() for _ in range(2))
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    fit_per_batch(cut, ours, x, y, original, config, seed=3, progress=False)
    loop = PlainLoop(net, "block", plain.eval(), config)
    for rows in torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(8):
        loop.step(x[rows], y[rows])
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, atol=1e-9, rtol=1e-6)
    assert not torch.equal(
        start["weight"] if "weight" in start else next(iter(start.values())), next(iter(plain.state_dict().values()))
    )
