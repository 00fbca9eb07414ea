"""What trials really cost and stop where no class is suspected: `python tools/trials.py [--images 500] [--data FILE]`.

`purify` on the CIFAR-10 networks of `benchmarks/networks` that are clean or carry a development attack, with nothing
chosen and the suspect withheld; every trial that it makes is judged on test images, beside what its judges said. This
is what the rules of `choose` without a suspect were made on. No test attack is looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from development import CIFAR10, ROOT, clean_set, development_networks, figures, some_test_images

from neural_polarizer import choose, purify
from neural_polarizer.choose import Chooser
from neural_polarizer.files import write_atomically
from neural_polarizer.fit import attempts_on
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.machine import machine, versions


class Watched(Chooser):
    """The last chooser is kept, with all that it has tried."""

    last: Chooser

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Watched.last = self


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "trials.json")
    options = parser.parse_args()
    data, rows = load_dataset("cifar10", options.data, progress=False), list[dict[str, Any]]()
    test, some = some_test_images(data, options.test_images), clean_set(data, options.images)
    clean = some.floats(), some.labels
    choose.Chooser = Watched  # type: ignore[misc]
    for name, found in development_networks():
        attempts = attempts_on(found.model, clean, seed=0)
        nobody = replace(attempts.suspicion, excess=tuple(0.0 for _ in attempts.suspicion.excess))
        purified = purify(found.model, clean, seed=0, progress=False, attempts=replace(attempts, suspicion=nobody))
        assert purified.choice is not None
        before = None
        for place, trial in enumerate(purified.choice.trials):
            if trial.error:
                continue
            made = Watched.last.taken(place)
            before = before or figures(made.cut, None, test, found.attack)
            after = figures(made.cut, made.polarizer, test, found.attack)
            taken = place == purified.choice.chosen
            rows.append({"network": name, "trial": asdict(trial), "taken": taken, "before": before, "after": after})
            print(name, trial.layer, trial.method, trial.strength, taken, after, flush=True)
    record = {
        "images": options.images, "test_images": len(test), "seed": 0, "rows": rows, "machine": machine("cpu"),
        "versions": versions(),
    }  # fmt: skip
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
