"""What L_still and mixed views save of few clean images: `python tools/few_images.py [--images 100] [--data FILE]`.

On the CIFAR-10 networks of `benchmarks/networks` that no attack, or a development attack, has trained: NPD before one
layer, fitted with and without each, at three strengths; what it costs and stops on test images. The perturbed images
are the same for all. No test attack is looked at here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from development import arguments, development_networks, figures, some_test_images, write_record
from torch import Tensor

from neural_polarizer import FitConfig
from neural_polarizer.capture import make_cut
from neural_polarizer.choose import STILL, Chooser
from neural_polarizer.cut import Cut
from neural_polarizer.fit import attempts_on, started
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.polarizers import Polarizer

LAYER = "layer4.1"
USUAL = FitConfig.in_rounds()
VARIANTS = {  # name -> options, and strengths that cost about as much
    "neither": ({}, (0.05, 0.1, 0.2)),
    "mixed views": ({"mix_views": True}, (0.05, 0.1, 0.2)),
    "L_still": ({"lambda_still": STILL}, (0.1, 0.2, 0.4)),
    "both": ({"lambda_still": STILL, "mix_views": True}, (0.1, 0.2, 0.4)),
}


def start(method: str, config: FitConfig, cut: Cut, mean: Tensor, var: Tensor) -> Polarizer:
    return started(method, config, cut, 0, mean, var)


def main() -> int:
    options = arguments(__doc__, 100, "few_images.json")
    data, rows = load_dataset("cifar10", options.data, progress=False), list[dict[str, Any]]()
    test = some_test_images(data, options.test_images)
    for name, found in development_networks(options.networks):
        some = data.train.take(data.hold_back(options.images, 0)[0])  # of the 2,500 that these networks have not seen
        attempts = attempts_on(found.model, (some.floats(), some.labels), seed=0)
        cut = make_cut(found.model, LAYER, some.floats()[:2], "auto")
        before = figures(cut, None, test, found.attack)
        for variant, (changes, strengths) in VARIANTS.items():
            config = replace(USUAL, **changes)
            chooser = Chooser(some.floats(), some.labels, attempts, config, start, budget=0.01, seed=0, few=True)
            pool = chooser.pool(cut)
            for strength in strengths:
                chooser.trial(cut, pool, "npd", strength)
                made = chooser.taken(len(chooser.trials) - 1)
                after = figures(cut, made.polarizer, test, found.attack)
                rows.append({
                    "network": name, "variant": variant, "strength": strength, "before": before, "after": after,
                    "doubt": chooser.trials[-1].doubt,
                })  # fmt: skip
                print(rows[-1], flush=True)
    write_record(
        options.out, images=options.images, test_images=len(test), layer=LAYER, seed=0, rows=rows,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
