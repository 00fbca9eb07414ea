"""What a fit costs: `python benchmarks/fit.py [--images 2500] [--repeats 5] [--rounds]`.

A PreAct-ResNet18 of width 16 on 3x32x32, cut at `layer4.1.conv1`, NPD, batches of 128. In one run the sides alternate,
and ratios are taken within one turn; printed are medians:

- per batch: an epoch of `fit_per_batch` with the published settings over one of the plain loop (`plain_loop.py`), both
  on the same few batches; and over its floor, the same passes run bare;
- `--rounds`: `purify` at one layer with one method, and with everything chosen, over 50 epochs of the plain loop, which
  are extrapolated from one; and the share of the time that is not spent on perturbing.

Weights and images are random: what a pass costs does not depend on them. The early exit of the inner loop does; it is
off for both sides, so that both do both steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from inference import interval, seconds
from plain_loop import PlainLoop

from neural_polarizer import FitConfig, purify
from neural_polarizer.capture import make_cut
from neural_polarizer.cut import Cut
from neural_polarizer.files import write_atomically
from neural_polarizer.fit import _started, attempts_on, fit_per_batch, measure
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.rounds import fastest_layout

LAYER, BATCH, EPOCHS = "layer4.1.conv1", 128, 50
BATCHES, TURN = 2, 4  # batches of an epoch here, and epochs of a turn: what is kept is kept once


def floor_of(cut: Cut, images: torch.Tensor, steps: int) -> Callable[[], None]:
    """The passes that cannot be avoided: two inner steps, the prefix of perturbed images, the tail of all.

    The prefix of the clean images runs once for all epochs.
    """

    def bare() -> None:
        entered = []
        for x in images.split(BATCH):
            with torch.no_grad():
                entered.append(cut.prefix(x))
        for _ in range(TURN):
            for x, clean in zip(images.split(BATCH), entered, strict=True):
                for _ in range(steps):
                    wanted = x.clone().requires_grad_()
                    torch.autograd.grad(cut.original(wanted).sum(), wanted)
                with torch.no_grad():
                    perturbed = cut.prefix(x)
                for kept in (clean, perturbed):
                    m = kept.m.clone().requires_grad_()
                    torch.autograd.grad(cut.tail(kept._replace(m=m)).sum(), m)

    return bare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/fit.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.images, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (options.images,), generator=generator)
    net = PreActResNet18(classes=10, width=16).eval()
    few, those = images[: BATCHES * BATCH], labels[: BATCHES * BATCH]
    config = FitConfig(epochs=TURN, warmup_epochs=0, batch_size=BATCH, early_exit=None)
    cut = make_cut(net, LAYER, images[:2], "graph")
    mean, var, original = measure(cut, few, BATCH)
    ours, theirs = (_started("npd", config, cut, 0, mean, var) for _ in range(2))
    plain = PlainLoop(net, LAYER, theirs.eval(), config)

    def of_theirs() -> None:
        for _ in range(TURN):
            for rows in torch.arange(len(few)).split(BATCH):
                plain.step(few[rows], those[rows])

    sides: dict[str, Callable[[], object]] = {
        "per batch": lambda: fit_per_batch(cut, ours, few, those, original, config, seed=0, progress=False),
        "floor": floor_of(cut, few.contiguous(memory_format=fastest_layout(cut.original, few)), config.steps),
    }
    of_theirs()
    for side in sides.values():
        side()
    taken: dict[str, list[float]] = {name: [] for name in ("plain", *sides)}
    for _ in range(options.repeats):
        taken["plain"].append(seconds(of_theirs))
        for name, side in sides.items():
            taken[name].append(seconds(side))
    per_epoch = statistics.median(taken["plain"]) / TURN * len(images) / len(few)
    rows = []

    def tell(what: str, values: list[float], bar: float | None, at_most: bool = True) -> None:
        middle, low, high = interval(values)
        met = bar is None or (middle <= bar if at_most else middle >= bar)
        rows.append(
            {"what": what, "ratio": middle, "low": low, "high": high, "bar": bar, "at_most": at_most, "met": met}
        )
        said = "" if bar is None else f"{'at most' if at_most else 'at least'} {bar:g}: {'met' if met else 'missed'}"
        print(f"| {what} | {middle:.3f} | {low:.3f} to {high:.3f} | {said} |", flush=True)

    tell("per-batch fit / plain loop", [a / b for a, b in zip(taken["per batch"], taken["plain"], strict=True)], 0.5)
    tell("per-batch fit / floor", [a / b for a, b in zip(taken["per batch"], taken["floor"], strict=True)], 1.25)
    if options.rounds:
        clean = (images, labels)
        started = time.perf_counter()
        attempts = attempts_on(net, clean, progress=False)
        perturbing = time.perf_counter() - started
        whole = perturbing + seconds(
            lambda: purify(net, clean, attempts=attempts, max_accuracy_drop=1.0, progress=False)
        )
        one = perturbing + seconds(
            lambda: purify(net, clean, attempts=attempts, method="npd", layer="layer4.1", config=None, progress=False)
        )
        tell(
            f"{EPOCHS} epochs of the plain loop / one layer and method, strength chosen",
            [EPOCHS * per_epoch / one],
            10,
            False,
        )
        tell(f"{EPOCHS} epochs of the plain loop / everything chosen", [EPOCHS * per_epoch / whole], 10, False)
        tell("time outside the perturbing, one layer and method", [1 - perturbing / one], 0.25)
    setting = {
        "architecture": "PreActResNet18 width 16", "layer": LAYER, "images": options.images, "batch": BATCH,
        "batches": BATCHES, "epochs per turn": TURN, "repeats": options.repeats, "threads": torch.get_num_threads(),
        "plain epoch, seconds": round(per_epoch, 2), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    write_atomically(options.out, json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    print(setting)
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
