"""What each part of the defaults is worth, alone: `python tools/leads.py [--images 500] [--data FILE] [--out FILE]`.

On the CIFAR-10 networks of `benchmarks/networks` that no attack, or a development attack, has trained: one layer, the
default fit and fits that differ from it in one thing, at two strengths; what they cost and stop on test images. The
perturbed images are the same for all; a mixture with fewer families has those of the rest. No test attack is looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from development import CIFAR10, ROOT, clean_set, development_networks, figures, some_test_images

from neural_polarizer import FitConfig
from neural_polarizer.attempts import Attempts
from neural_polarizer.capture import make_cut
from neural_polarizer.choose import Chooser
from neural_polarizer.files import write_atomically
from neural_polarizer.fit import attempts_on, started
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.machine import machine, versions
from neural_polarizer.mixture import Family
from neural_polarizer.pool import Pool

LAYER, STRENGTHS = "layer4.1", (0.05, 0.2)
MIXTURE = FitConfig.in_rounds().mixture


def every(_: Family) -> bool:
    return True


@dataclass(frozen=True)
class Variant:
    """What differs from the default: options of the fit, the method, the families, whether a suspect counts."""

    options: dict[str, Any] = field(default_factory=dict)
    method: str = "npd"
    wanted: Callable[[Family], bool] = every
    suspect: bool = True


VARIANTS = {
    "the default": Variant(),
    "r-CNPD": Variant(method="r-cnpd"),
    "e-CNPD": Variant(method="e-cnpd"),
    "a-CNPD": Variant(method="a-cnpd"),
    "no class suspected": Variant(suspect=False),
    "only L2": Variant(wanted=lambda f: f.threat == "l2"),
    "no L2": Variant(wanted=lambda f: f.threat != "l2"),
    "only displacements": Variant(wanted=lambda f: f.threat == "flow"),
    "no displacements": Variant(wanted=lambda f: f.threat != "flow"),
    "no waves": Variant(wanted=lambda f: f.threat != "wave"),
    "no waves of 9": Variant(wanted=lambda f: f.threat != "wave" or f.radius < 9),
    "no squares, no pixels": Variant(wanted=lambda f: f.threat not in ("patch", "pixels")),
    "no views": Variant({"views": 0}),
    "labels for logits, no views": Variant({"views": 0, "benign": "label"}),
    "mixed views": Variant({"mix_views": True}),
    "L_still": Variant({"lambda_still": 4.0}),
    "push away what was sent to": Variant({"condition": "target"}),
    "aim at the prediction": Variant({"aim": "prediction"}),
    "gradients not clipped": Variant({"clip": None}),
    "constant rate": Variant({"schedule": "constant"}),
    "three times the steps": Variant({"epochs": 45, "least_steps": 720}),
    "a third of the steps": Variant({"epochs": 5, "least_steps": 80}),
    "rank 8": Variant({"structure": "low-rank"}),
    "a scale per channel": Variant({"structure": "diagonal"}),
    "a scale per channel and position": Variant({"structure": "position"}),
    "no BatchNorm": Variant({"structure": "conv"}),
}


def only(attempts: Attempts, variant: Variant) -> Attempts:
    """Those of the families that the variant has, and no suspect where none counts."""
    found = [a for a in attempts.found if variant.wanted(MIXTURE[a.family])]
    suspicion = attempts.suspicion
    if not variant.suspect:
        suspicion = replace(suspicion, excess=tuple(0.0 for _ in suspicion.excess))
    return replace(attempts, found=found, suspicion=suspicion)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "leads.json")
    options = parser.parse_args()
    data, rows = load_dataset("cifar10", options.data, progress=False), list[dict[str, Any]]()
    test, some = some_test_images(data, options.test_images), clean_set(data, options.images)
    for name, found in development_networks():
        attempts = attempts_on(found.model, (some.floats(), some.labels), seed=0)
        cut = make_cut(found.model, LAYER, some.floats()[:2], "auto")
        before = figures(cut, None, test, found.attack)
        pools = dict[Any, Pool]()  # of variants that keep the same
        for title, variant in VARIANTS.items():
            chooser = Chooser(
                some.floats(), some.labels, only(attempts, variant), config=FitConfig.in_rounds(**variant.options),
                start=lambda method, config, cut, mean, var: started(method, config, cut, 0, mean, var),
                max_accuracy_drop=0.01, seed=0, progress=False,
            )  # fmt: skip
            shown = variant.wanted, variant.suspect, variant.options.get("views"), variant.options.get("mix_views")
            pool = pools[shown] if shown in pools else pools.setdefault(shown, chooser.pool(cut))
            if not len(pool.copies.of):
                continue  # a suspect that no family of this variant has reached: nothing to fit on
            for strength in STRENGTHS:
                trial = chooser.trial(cut, pool, variant.method, strength)
                row = {"network": name, "variant": title, "strength": strength, "before": before, "error": trial.error}
                if not trial.error:
                    row["after"] = figures(cut, chooser.taken(len(chooser.trials) - 1).polarizer, test, found.attack)
                rows.append(row)
            print(
                name,
                title,
                [round(before["acc"] - r["after"]["acc"], 4) for r in rows[-2:] if "after" in r],
                flush=True,
            )
    record = {
        "images": options.images, "test_images": len(test), "layer": LAYER, "seed": 0, "rows": rows,
        "machine": machine("cpu"), "versions": versions(),
    }  # fmt: skip
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
