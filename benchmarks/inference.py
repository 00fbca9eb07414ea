"""What a polarizer costs at inference: `python benchmarks/inference.py [--width 64] [--batch 64] [--repeats 9]`.

A PreAct-ResNet18 on 32x32 images, cut early, in the middle and late. In one run, the sides alternate: the base, NPD,
NPD merged into the layer behind it (the base's own architecture, which is checked), each CNPD with the shared prefix,
each CNPD without it (two full passes by hooks), and the tail alone, whose share is what a second pass through it must
cost. Printed are medians of ratios to the base, each taken within one round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import interval, seconds
from torch import Tensor, nn

from neural_polarizer import PolarizedModel, merge
from neural_polarizer.build import METHOD_STRUCTURE, build_polarizer
from neural_polarizer.capture import make_cut
from neural_polarizer.files import write_atomically
from neural_polarizer.models.preact_resnet import PreActResNet18

CUTS = {"early": "layer1.0.conv1", "middle": "layer3.0.conv1", "late": "layer4.1.conv1"}
SLACK = 0.03  # NPD may cost this much more than the base, CNPD with the shared prefix beside the tail's share


def sides_of(base: nn.Module, layer: str, images: Tensor, classes: int) -> dict[str, Callable[[], object]]:
    """What is timed at one cut, by name."""
    cuts = {kind: make_cut(base, layer, images[:2], kind) for kind in ("graph", "hooks")}
    kept = cuts["graph"].prefix(images)

    def polarized(method: str, kind: str) -> Callable[[], object]:
        options = {} if method == "npd" else {"classes": classes}
        structure = METHOD_STRUCTURE.get(method, "full")
        model = PolarizedModel(
            base,
            build_polarizer(structure, channels=cuts[kind].channels, **options),
            layer,
            image_shape=(3, 32, 32),
            method=method,
            capture=kind,
            cut=cuts[kind],
        )
        return lambda: model(images)

    linear = build_polarizer("full", channels=cuts["graph"].channels)
    linear.hold_linear()  # no constant part: exact before a convolution that pads with zeros
    merged = merge(PolarizedModel(base, linear, layer, image_shape=(3, 32, 32), cut=cuts["graph"]))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (base, merged)]
    assert type(merged) is type(base)
    assert shapes[0] == shapes[1]
    sides: dict[str, Callable[[], object]] = {
        "base": lambda: base(images),
        "tail alone": lambda: cuts["graph"].tail(kept),
        "npd": polarized("npd", "graph"),
        "npd, merged": lambda: merged(images),
    }
    for method in METHOD_STRUCTURE:
        sides[method] = polarized(method, "graph")
        sides[f"{method}, two full passes"] = polarized(method, "hooks")
    return sides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/results/inference.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    base = PreActResNet18(classes=options.classes, width=options.width).eval()
    images = torch.rand(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    records, broken = [], 0
    print("| cut | model | time / base | 95 % | bar |")
    print("|---|---|---|---|---|")
    for where, layer in CUTS.items():
        sides = sides_of(base, layer, images, options.classes)
        ratios: dict[str, list[float]] = {name: [] for name in sides}
        with torch.no_grad():
            for side in sides.values():
                side()
            for _ in range(options.repeats):
                # each side between two runs of the base, so that a slow moment of the machine hits both
                for name, side in sides.items():
                    before = seconds(sides["base"])
                    own = seconds(side)
                    ratios[name].append(2 * own / (before + seconds(sides["base"])))
        share = statistics.median(ratios["tail alone"])
        for name, values in ratios.items():
            median, low, high = interval(values)
            bar = 1 + share + SLACK if name in METHOD_STRUCTURE else 1 + SLACK if name == "npd" else None
            broken += bar is not None and median > bar
            said = "" if bar is None else f"{bar:.3f}"
            print(f"| {where} ({layer}) | {name} | {median:.3f} | {low:.3f} to {high:.3f} | {said} |", flush=True)
            records.append({"cut": layer, "model": name, "ratio": median, "low": low, "high": high, "bar": bar})
    setting = {
        "architecture": f"PreActResNet18 width {options.width}", "batch": options.batch, "image": "3x32x32",
        "classes": options.classes, "repeats": options.repeats, "threads": torch.get_num_threads(),
        "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    write_atomically(options.out, json.dumps({"setting": setting, "rows": records}, indent=1) + "\n")
    print(f"{setting}; {broken} bars missed")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
