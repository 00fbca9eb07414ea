"""How a fit grows: `python benchmarks/scaling.py [--repeats 5]`.

Two epochs of the per-batch fit on random images, all inner steps, against those of the base (128 images of 3x32x32, ten
classes, PreAct-ResNet18 of width 16, NPD), with one thing changed: images, classes, side or width. Beside the ratio
stands what it is over the growth of that thing; 1 is linear. For r-CNPD the base is r-CNPD of ten classes. Sides
alternate; making networks, cuts and polarizers is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import Table, seconds

from neural_polarizer import FitConfig
from neural_polarizer.capture import make_cut
from neural_polarizer.fit import fit_per_batch, measure, started
from neural_polarizer.models.preact_resnet import PreActResNet18

LAYER, BASE = "layer4.1.conv1", {"images": 128, "classes": 10, "side": 32, "width": 16}
R_CNPD_BAR, LINEAR_BAR = 2.5, 1.1  # the second: of time over images, what is left to noise


def fit_of(images: int, classes: int, side: int, width: int, method: str = "npd") -> Callable[[], object]:
    order = torch.Generator().manual_seed(0)
    x = torch.rand(images, 3, side, side, generator=order)
    y = torch.randint(classes, (images,), generator=order)
    cut = make_cut(PreActResNet18(classes=classes, width=width).eval(), LAYER, x[:2], "graph")
    config = FitConfig(epochs=2, warmup_epochs=0, early_exit=None)
    mean, var, original = measure(cut, x, config.batch_size)
    polarizer = started(method, config, cut, 0, mean, var)
    return lambda: fit_per_batch(cut, polarizer, x, y, original, config, seed=0, progress=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/scaling.json"))
    options = parser.parse_args()
    changes: dict[str, dict[str, int]] = {
        "images x 2": {"images": 256},
        "images x 4": {"images": 512},
        "classes x 100": {"classes": 1000},
        "side x 2": {"side": 64},
        "width x 2": {"width": 32},
    }
    sides = {"base": fit_of(**BASE), **{name: fit_of(**{**BASE, **change}) for name, change in changes.items()}}
    sides |= {f"r-CNPD {k}": fit_of(**{**BASE, "classes": k}, method="r-cnpd") for k in (10, 1000)}
    for side in sides.values():
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            taken[name].append(seconds(side))

    def over(a: str, b: str, growth: float = 1) -> list[float]:
        return [x / y / growth for x, y in zip(taken[a], taken[b], strict=True)]

    table = Table()
    for name in changes:
        table.tell(f"NPD, {name}", over(name, "base"))
    table.tell("NPD, images x 2, over linear growth", over("images x 2", "base", 2), LINEAR_BAR)
    table.tell("NPD, images x 4, over linear growth", over("images x 4", "base", 4), LINEAR_BAR)
    table.tell("NPD, side x 2, over growth with the pixels", over("side x 2", "base", 4))
    table.tell("NPD, width x 2, over growth with the multiplications", over("width x 2", "base", 4))
    table.tell("r-CNPD, classes x 100", over("r-CNPD 1000", "r-CNPD 10"), R_CNPD_BAR)
    return table.write(options.out, base=", ".join(f"{k} {v}" for k, v in BASE.items()), turns=options.repeats)


if __name__ == "__main__":
    sys.exit(main())
