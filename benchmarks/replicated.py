"""r-CNPD with many classes: `python benchmarks/replicated.py [--channels 512] [--batch 128] [--side 4]`.

Forward and training step of the layer alone at K = 1,000 against K = 10, alternating in one run (medians of ratios),
and the memory that a forward takes beside the weights, against the B x C x C tensor that it must not make.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from neural_polarizer.conditional import Replicated
from neural_polarizer.config import FitConfig
from neural_polarizer.files import write_atomically
from neural_polarizer.optim import RowSGD


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs/results/replicated.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    m = torch.rand(options.batch, options.channels, options.side, options.side, generator=generator)
    forwards, steps = {}, {}
    extra = 0
    for classes in (10, 1000):
        polarizer = Replicated(options.channels, classes=classes)
        condition = torch.randint(classes, (options.batch,), generator=generator)
        sgd = RowSGD(polarizer, 0.01, FitConfig())

        def forward(polarizer: Replicated = polarizer, condition: torch.Tensor = condition) -> None:
            with torch.no_grad():
                polarizer(m, condition)

        def step(sgd: RowSGD = sgd, condition: torch.Tensor = condition) -> None:
            g, local = sgd.take(condition)
            g(m, local).square().mean().backward()
            sgd.step()

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        forward()
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        step()
        forwards[classes], steps[classes] = forward, step
    ratios: dict[str, list[float]] = {"forward": [], "training step": []}
    for _ in range(options.repeats):
        for name, work in (("forward", forwards), ("training step", steps)):
            ratios[name].append(seconds(work[1000]) / seconds(work[10]))
    record = {
        "forward, K = 1000 / K = 10": statistics.median(ratios["forward"]),
        "training step, K = 1000 / K = 10": statistics.median(ratios["training step"]),
        "peak memory added by a forward at K = 1000, MiB": extra,
        "a B x C x C tensor would take, MiB": options.batch * options.channels**2 * 4 // 2**20,
        "setting": {
            "channels": options.channels, "batch": options.batch, "side": options.side, "repeats": options.repeats,
            "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
        },
    }  # fmt: skip
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
