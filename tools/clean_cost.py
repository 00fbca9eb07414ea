"""What `purify` costs a network that nobody attacked: `python tools/clean_cost.py [--networks FOLDER] [--data FILE]`.

Every clean network in the folders is purified with nothing chosen, with 2,500 to 50 clean images of CIFAR-10 that it
has not seen and with three seeds, and judged on all test images. What is in the record already is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from development import CIFAR10, NETWORKS, ROOT, clean_set, write_record
from torch import nn

from neural_polarizer import purify
from neural_polarizer.lab.backdoor import load_backdoored
from neural_polarizer.lab.datasets.base import Split
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.train import predict


def accuracy(model: nn.Module, test: Split) -> float:
    return (predict(model, test.images) == test.labels).double().mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, nargs="+", default=[NETWORKS])
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--images", type=int, nargs="+", default=[2500, 500, 100, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "clean_cost.json")
    options = parser.parse_args()
    data = load_dataset("cifar10", options.data, progress=False)
    test = data.test
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["network"], row["images"], row["seed"]) for row in rows}
    folders = sorted(f for networks in options.networks for f in networks.iterdir() if f.is_dir())
    networks = {f.name: found for f in folders if (found := load_backdoored(f)).attack is None}
    for seed in options.seeds:
        for images in options.images:
            for name, found in networks.items():
                if (name, images, seed) in done:
                    continue
                some, started = clean_set(data, images, seed), time.perf_counter()
                purified = purify(found.model, (some.floats(), some.labels), seed=seed, progress=False)
                seconds, choice = round(time.perf_counter() - started, 1), purified.choice
                assert choice is not None
                before, after = (accuracy(model, test) for model in (found.model, purified))
                chosen = None if choice.chosen is None else asdict(choice.trials[choice.chosen])
                rows.append({
                    "network": name, "model": found.card["setting"]["model"], "images": images, "seed": seed,
                    "before": before, "after": after, "suspect": choice.suspicion.target, "chosen": chosen,
                    "seconds": seconds,
                })  # fmt: skip
                print(rows[-1], flush=True)
                write_record(options.out, test_images=len(test), rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
