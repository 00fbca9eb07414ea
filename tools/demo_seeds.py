"""The demo's figures over seeds: `python tools/demo_seeds.py [--methods npd ...] [--seeds 0 1 2 3 4] [--out FILE]`.

Prints one row per seed and method, writes the records as JSON, and fails where a promise of the demo is broken:
before, ACC >= 0.95 and ASR >= 0.95; after, ASR <= 0.05, RA >= 0.80 (NPD) or 0.75 (CNPD), ACC at most 0.02 lower,
and for CNPD a detection AUROC of at least 0.95.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from neural_polarizer.files import write_atomically
from neural_polarizer.lab.demo import attempts_of, backdoored_digits, defend, metrics_of, setting
from neural_polarizer.methods import METHODS


def broken(metrics: dict[str, Any]) -> list[str]:
    """The promises that these figures break."""
    before, after, npd = metrics["before"], metrics["after"], metrics["method"] == "npd"
    rules = {
        "ACC before >= 0.95": before["acc"] >= 0.95,
        "ASR before >= 0.95": before["asr"] >= 0.95,
        "ASR after <= 0.05": after["asr"] <= 0.05,
        f"RA after >= {0.80 if npd else 0.75}": after["ra"] >= (0.80 if npd else 0.75),
        "ACC drop <= 0.02": before["acc"] - after["acc"] <= 0.02,
        "AUROC >= 0.95": npd or metrics["auroc"] >= 0.95,
    }
    return [rule for rule, kept in rules.items() if not kept]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("docs/results/demo.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records, failures = [], 0
    print("| method | seed | ACC before | ASR before | ACC | ASR | RA | DER | AUROC | parameters | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        scene = backdoored_digits(seed, progress=False)
        shared = attempts_of(scene, seed, progress=False)
        for method in options.methods:
            result = defend(scene, method, seed, attempts=shared, progress=False)
            metrics = metrics_of(result)
            b, a = metrics["before"], metrics["after"]
            rates = [b["acc"], b["asr"], a["acc"], a["asr"], a["ra"], metrics["der"], metrics["auroc"]]
            cells = [method, str(seed), *(f"{rate:.3f}" for rate in rates)]
            cells += [f"{metrics['parameters']:,}", f"{result.seconds:.1f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            for rule in broken(metrics):
                failures += 1
                print(f"  broken: {method}, seed {seed}: {rule}", file=sys.stderr, flush=True)
            seconds = {"train": scene.seconds, "purify": result.seconds}
            records.append({**metrics, "seconds": seconds, "seed": seed, "setting": setting(scene, seed, result)})
    write_atomically(options.out, json.dumps(records, indent=1) + "\n")
    print(f"{len(records)} runs, {failures} promises broken; records in {options.out}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
