"""Peak memory of a fit: `python benchmarks/memory.py [--images 2500] [--width 16] [--repeats 5] [--rounds]`.

The per-batch fit with what it keeps, and the plain loop (`plain_loop.py`), each in a process of its own: the process's
peak minus that of one that only makes network and images and runs a batch. The sides alternate. Images are random: real
ones would have to be decoded, which takes more than a fit. One epoch takes as much memory as fifty; of the plain
loop, which keeps nothing, four steps do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import Table
from plain_loop import PlainLoop

from neural_polarizer import FitConfig, purify
from neural_polarizer.capture import make_cut
from neural_polarizer.fit import measure, started
from neural_polarizer.models.preact_resnet import PreActResNet18

LAYER, BATCH, BAR = "layer4.1.conv1", 128, 1.0
ROUNDS_TURNS = 3  # rounds perturb everything with every family: a minute or two each
SIDES = ("loaded", "cut", "plain loop", "per batch", "rounds")


def work(side: str, count: int, width: int) -> None:
    """One side, in this process; prints its peak in KiB."""
    order = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 3, 32, 32, generator=order), torch.randint(10, (count,), generator=order)
    net = PreActResNet18(classes=10, width=width).eval()
    with torch.no_grad():
        net(images[:BATCH])
    config = FitConfig(epochs=1, warmup_epochs=0, batch_size=BATCH)
    if side == "plain loop":
        cut = make_cut(net, LAYER, images[:2], "hooks")
        polarizer = started("npd", config, cut, 0, *measure(cut, images[:BATCH], BATCH)[:2])
        loop = PlainLoop(net, LAYER, polarizer.eval(), config)
        for rows in torch.randperm(count, generator=order).split(BATCH)[:4]:  # all steps take the same
            loop.step(images[rows], labels[rows])
    elif side == "cut":  # what `torch.export` brings along, once per process
        make_cut(net, LAYER, images[:2], "graph")
    elif side == "per batch":
        purify(net, (images, labels), method="npd", layer=LAYER, config=config, progress=False)
    elif side == "rounds":
        rounds = FitConfig.in_rounds(epochs=1)
        purify(net, (images, labels), method="npd", layer="layer4.1", config=rounds, progress=False)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", action="store_true", help="measure rounds, too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("docs/results/memory.json"))
    options = parser.parse_args()
    if options.side:
        work(options.side, options.images, options.width)
        return 0

    def peak(side: str, **environment: str) -> float:
        command = [sys.executable, __file__, "--side", side]
        sizes = ["--images", str(options.images), "--width", str(options.width)]
        env = {**os.environ, **environment}
        done = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True, env=env)
        return json.loads(done.stdout) / 1024

    def peaks(sides: Sequence[str], turns: int, **environment: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(turns):
            for side, values in found.items():
                values.append(peak(side, **environment))
        return found

    def beyond(side: str, start: str = "loaded") -> list[float]:
        return [a - b for a, b in zip(taken[side], taken[start], strict=True)]

    def ratios(side: str, start: str = "loaded") -> list[float]:
        return [a / b for a, b in zip(beyond(side, start), beyond("plain loop"), strict=True)]

    table, taken = Table(), peaks(SIDES[:-1], options.repeats)
    table.tell("plain loop, MiB beyond the loaded process", beyond("plain loop"), digits=1)
    table.tell("per-batch fit, MiB beyond the loaded process", beyond("per batch"), digits=1)
    table.tell("of that, what torch.export brings along, MiB", beyond("cut"), digits=1)
    table.tell("per-batch fit / plain loop", ratios("per batch"), BAR)
    table.tell("per-batch fit beyond a process that has cut a model / plain loop", ratios("per batch", "cut"))
    if options.rounds:
        for how, environment in (("", {}), (", freed at once", {"MALLOC_MMAP_THRESHOLD_": "131072"})):
            taken = peaks([side for side in SIDES if side != "per batch"], ROUNDS_TURNS, **environment)
            for side in ("plain loop", "rounds"):
                table.tell(f"{side}{how}, MiB beyond the loaded process", beyond(side), digits=1)
            table.tell(f"rounds at one layer / plain loop{how}", ratios("rounds"))
            table.tell(f"rounds beyond a process that has cut / plain loop{how}", ratios("rounds", "cut"))
    return table.write(
        options.out, network=f"PreActResNet18 width {options.width}", layer=LAYER, images=options.images, batch=BATCH,
        turns=options.repeats, rounds=f"{ROUNDS_TURNS} turns" if options.rounds else "not measured",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
