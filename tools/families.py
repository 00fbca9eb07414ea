"""How far each family of perturbations gets: `python tools/families.py [--images 100] [--data FILE] [--out FILE]`.

On the CIFAR-10 networks of `benchmarks/networks` that no attack, or a development attack, has trained: clean images are
perturbed as by `purify`, with a few families more. What a family reaches in the clean network decides how large it may
be, and how much it tells. No test attack is looked at here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from development import arguments, clean_set, development_networks, write_record

from neural_polarizer import FitConfig
from neural_polarizer.fit import attempts_on
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.mixture import Family

LEFT_OUT = (  # tried and not in the default mixture
    Family(threat="l2", radius=2.0, share="target", steps=20, step=0.2, focus=2),
    Family(threat="smooth", radius=4.0, grid=8, share="target", steps=20, step=0.2, focus=2),
    Family(threat="quantised", radius=4, share="target", steps=20, step=0.5, rule="sign", focus=2),
)


def main() -> int:
    options, rows = arguments(__doc__, 100, "families.json"), list[dict[str, Any]]()
    some = clean_set(load_dataset("cifar10", options.data, progress=False), options.images)
    default = FitConfig.in_rounds().mixture
    config = FitConfig.in_rounds(mixture=[*default, *LEFT_OUT])
    for name, found in development_networks(options.networks):
        told = attempts_on(found.model, (some.floats(), some.labels), config=config, seed=0, progress=False).suspicion
        for place, family in enumerate(config.mixture):
            row = {
                "network": name, "target": getattr(found.attack, "target", None), "family": asdict(family),
                "default": place < len(default), "reached": told.reached[place],
                "hardest": told.hardest[place],
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            rows.append(row)
    write_record(options.out, images=options.images, seed=0, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
