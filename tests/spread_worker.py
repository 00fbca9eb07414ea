"""What a process of tests/test_spread.py does: `python -m torch.distributed.run ... tests/spread_worker.py OUT`."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from neural_polarizer import FitConfig
from neural_polarizer.capture import make_cut
from neural_polarizer.fit import fit_in_rounds, fit_per_batch, measure, started
from neural_polarizer.mixture import Family
from neural_polarizer.spread import spread_out
from tests.nets import CLASSES, images
from tests.test_rounds import lively

METHODS = ("npd", "r-cnpd", "e-cnpd", "a-cnpd")
COUNT = 21  # two batches of 8 and one of 5: shares are uneven
PER_BATCH = {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "radius": 2.0}
ROUNDS = {
    "mixture": (
        Family(radius=2.0, share="target", steps=3, focus=1), Family(threat="l2", radius=2.0, steps=2),
        Family(threat="patch", radius=2, share="target", steps=2),
    ),
    "epochs": 2, "batch_size": 8, "views": 1, "least_steps": 0,
}  # fmt: skip


def configs():
    return {
        "batch": FitConfig(**PER_BATCH),
        "early": FitConfig(**PER_BATCH, steps=4, early_exit=0.05),
        "reached": FitConfig(**PER_BATCH, condition="reached", target="random"),
        "rounds": FitConfig.in_rounds(**ROUNDS),
    }


def fits(capture="auto", **changes):
    """Every polarizer's parameters and last row of history, by name; all in float64, polarizers included."""
    torch.set_num_threads(1)
    net = lively("skips").double().eval()
    x = images(COUNT).double()
    y = torch.arange(COUNT) % CLASSES
    cut, out = make_cut(net, "block", x[:2], capture), {}
    for kind, config in ((k, replace(c, **changes)) for k, c in configs().items()):
        for method in METHODS:
            if config.loop == "rounds":
                start = partial(started, method, config, cut, 0)
                polarizer, history = fit_in_rounds(
                    cut, lambda *s, start=start: start(*s).double(), x, y, config, seed=0, progress=False
                )
            else:
                mean, var, original = measure(cut, x, config.batch_size)
                polarizer = started(method, config, cut, 0, mean, var).double()
                history = fit_per_batch(cut, polarizer, x, y, original, config, seed=0, progress=False)
            out[f"{kind} {method}"] = {k: v.detach().clone() for k, v in polarizer.state_dict().items()}
            out[f"{kind} {method} told"] = dict(history[-1])
    return out


if __name__ == "__main__":
    with spread_out(cpu=True) as processes:
        assert processes.world == 2
        found = fits()
    torch.save(found, Path(sys.argv[1]) / f"{processes.rank}.pt")
