"""How far each family of perturbations gets: `python tools/families.py [--images 500] [--data FILE] [--out FILE]`.

On the CIFAR-10 networks of `benchmarks/networks` that no attack, or a development attack, has trained: one pattern per
class and family, learned on batches of its own; the share of other classes' images that it sends there. What a family
reaches in the clean network decides how large it may be. No test attack is looked at here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from development import CIFAR10, ROOT, development_networks, some_test_images
from torch import Tensor, nn

from neural_polarizer import FitConfig
from neural_polarizer.cut import frozen_view, logits_of
from neural_polarizer.files import write_atomically
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.machine import machine, versions
from neural_polarizer.mixture import Family
from neural_polarizer.perturb import learn_patterns
from neural_polarizer.precision import quick
from neural_polarizer.rounds import fastest_layout, scan
from neural_polarizer.spread import rows_of
from neural_polarizer.sweep import FOCUS_BATCH

JUDGED = 128  # images of other classes that a pattern is tried on
LEFT_OUT = (  # tried and not in the default mixture
    Family(threat="l2", radius=2.0, share="target", steps=20, step=0.2),
    Family(threat="smooth", radius=4.0, grid=8, share="target", steps=20, step=0.2),
    Family(threat="wave", radius=6.0, grid=24, share="target", steps=0),
    Family(threat="quantised", radius=4, share="target", steps=20, step=0.5, rule="sign"),
)


def rates(model: nn.Module, images: Tensor, labels: Tensor, family: Family, classes: int) -> list[float]:
    """Per class the share of other classes' images that its pattern sends there."""
    view = frozen_view(model)
    forward: Callable[[Tensor], Tensor] = lambda x: logits_of(view(x))  # noqa: E731
    layout, hasty = fastest_layout(forward, images), quick(forward, images)

    def attacked(x: Tensor, _: Tensor | None = None) -> Tensor:
        with hasty:
            return forward(x.contiguous(memory_format=layout))

    threat, how, out = family.threat_model(images.shape[1:]), family.descent(images.shape[1:]), []
    first = torch.Generator().manual_seed(0)
    begin = scan(threat, attacked, images, labels, classes, FOCUS_BATCH, first)
    for target in range(classes):
        order, rows = torch.Generator().manual_seed(target), (labels != target).nonzero()[:, 0]
        pattern = learn_patterns(
            threat, attacked, images[rows], labels[rows], torch.tensor([target]), how, batch_size=FOCUS_BATCH,
            order=order, begin=rows_of(begin, torch.tensor([target])),
        )  # fmt: skip
        some = rows[torch.randperm(len(rows), generator=order)[:JUDGED]]
        with torch.no_grad():
            found = forward(threat.act(pattern.expand(len(some), *pattern.shape[1:]), images[some])).argmax(1)
        out.append((found == target).double().mean().item())
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "families.json")
    options = parser.parse_args()
    data = load_dataset("cifar10", options.data, progress=False)
    some, classes = some_test_images(data, options.images), len(data.classes)
    images, labels, rows = some.floats(), some.labels, []
    mixture = [(replace(f, focus=0), True) for f in FitConfig.in_rounds().mixture] + [(f, False) for f in LEFT_OUT]
    for name, found in development_networks():
        target = getattr(found.attack, "target", None)
        for family, default in mixture:
            shares = rates(found.model, images, labels, family, classes)
            first, second = sorted(shares, reverse=True)[:2]
            row = {
                "network": name, "target": target, "family": family.threat, "radius": family.radius,
                "grid": family.grid, "default": default, "rates": shares, "leader": shares.index(first),
                "lead": first - second,
            }  # fmt: skip
            print(name, family.threat, family.radius, [round(s, 2) for s in shares], flush=True)
            rows.append(row)
    record = {"images": options.images, "seed": 0, "rows": rows, "machine": machine("cpu"), "versions": versions()}
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
