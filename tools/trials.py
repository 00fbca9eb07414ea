"""What trials really cost and stop where no class is suspected: `python tools/trials.py [--images 500] [--every]`.

`purify` on the CIFAR-10 networks of `benchmarks/networks` that are clean or carry a development attack, with nothing
chosen and the suspect withheld; every trial that it makes is judged on test images, beside what its judges said. This
is what the rules of `choose` without a suspect were made on. No test attack is looked at. With --every all strengths
are tried at every layer, whatever the budget says, and nothing is sifted before the second look.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from development import arguments, clean_set, development_networks, figures, some_test_images, withheld, write_record

from neural_polarizer import choose, purify
from neural_polarizer.choose import Chooser
from neural_polarizer.cut import Cut
from neural_polarizer.fit import attempts_on
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.pool import Pool


class Watched(Chooser):
    """The last chooser is kept, with all that it has tried."""

    last: Chooser

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Watched.last = self


class Every(Watched):
    """All strengths are tried."""

    def climb(self, cut: Cut, pool: Pool, method: str) -> Pool:
        for strength in self.tried:
            self.trial(cut, pool, method, strength)
        return pool


def main() -> int:
    options = arguments(__doc__, 500, "trials.json", every="try all strengths at every layer")
    data, rows = load_dataset("cifar10", options.data, progress=False), list[dict[str, Any]]()
    test, some = some_test_images(data, options.test_images), clean_set(data, options.images)
    clean = some.floats(), some.labels
    choose.Chooser = Every if options.every else Watched  # type: ignore[misc]
    for name, found in development_networks(options.networks):
        attempts = attempts_on(found.model, clean, seed=0)
        purified = purify(found.model, clean, seed=0, progress=False, attempts=withheld(attempts))
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
    write_record(options.out, images=options.images, test_images=len(test), seed=0, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
