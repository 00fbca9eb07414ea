"""What the benchmarks share: the clock, intervals, a trained network with images, and rows with their bars."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_polarizer.files import write_atomically
from neural_polarizer.lab.backdoor import Backdoored, load_backdoored

ROOT = Path(__file__).parent.parent
NETWORK = ROOT / "benchmarks" / "networks" / "bbe10fe4e0806deb"  # BadNets on CIFAR-10, PreAct-ResNet18 of width 16
DATA = ROOT.parent / "shared" / "data" / "cifar10.zip"


def seconds(work: Callable[[], object]) -> float:
    """With one thread the processor's, which others on the machine do not lengthen; else the wall's."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def processor_seconds(command: list[str]) -> float:
    """Of a process of its own, with all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and a 95 % confidence interval for it from order statistics."""
    ordered, n = sorted(values), len(values)
    low = max(0, int((n - 1.96 * n**0.5) / 2))
    return statistics.median(ordered), ordered[low], ordered[n - 1 - low]


def network() -> Backdoored:
    return load_backdoored(NETWORK)


def clean_images(count: int, data: Path, shape: tuple[int, int, int] = (3, 32, 32)) -> tuple[Tensor, Tensor, str]:
    """Images (N, C, H, W) and labels (N,): of CIFAR-10 where it is at hand, else random; and what they are."""
    order = torch.Generator().manual_seed(0)
    if data.exists() and shape == (3, 32, 32):
        from neural_polarizer.lab.datasets.registry import load_dataset

        train = load_dataset("cifar10", data, progress=False).train
        rows = torch.randperm(len(train), generator=order)[:count]
        return train.floats(rows), train.labels[rows], "CIFAR-10"
    return torch.rand(count, *shape, generator=order), torch.randint(10, (count,), generator=order), "random"


class Table:
    """Rows of ratios: printed as they come, then written with the setting."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def tell(
        self, what: str, values: list[float], bar: float | None = None, *, at_most: bool = True, digits: int = 3
    ) -> None:
        """A row: the median of the values against its bar."""
        middle, low, high = (round(v, 5) for v in interval(values))
        met = bar is None or (middle <= bar if at_most else middle >= bar)
        self.rows.append({
            "what": what, "ratio": middle, "low": low, "high": high, "runs": len(values), "bar": bar,
            "at_most": at_most, "met": met,
        })  # fmt: skip
        said = "" if bar is None else f"{'at most' if at_most else 'at least'} {bar:g}: {'met' if met else 'missed'}"
        print(f"| {what} | {middle:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} | {said} |", flush=True)

    def write(self, path: Path, **setting: Any) -> int:
        """Write the record; returns the exit status: 1 where a bar is missed."""
        clock = "of the processor" if torch.get_num_threads() == 1 else "of the wall"
        setting |= {
            "threads": torch.get_num_threads(), "time": clock, "machine": platform.machine(), "torch": torch.__version__
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"setting": setting, "rows": self.rows}, indent=1) + "\n")
        print(setting)
        return int(not all(row["met"] for row in self.rows))
