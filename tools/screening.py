"""Screen ten backdoored and ten clean networks on digits: `python tools/screening.py [--work DIR] [--out FILE]`.

Trains them, with seeds of their own, writes them below --work (what is there is kept), ranks them all by suspicion from
200 test images, and fails where the AUROC of the ranking is below 0.90.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from neural_polarizer.files import write_atomically
from neural_polarizer.lab.attacks.registry import build_attack
from neural_polarizer.lab.backdoor import CLEAN, Victim, load_backdoored, train_backdoored
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.machine import machine, versions
from neural_polarizer.lab.proving import DIGITS_RECIPE, ON_DIGITS
from neural_polarizer.lab.screen import screen
from neural_polarizer.metrics import auroc

# attack, target class; digits' own strengths where the papers' are lost on them (see lab/proving.py)
BACKDOORED = (
    ("badnets", 0), ("badnets", 3), ("badnets", 7), ("blended", 1), ("blended", 5), ("wanet", 2), ("wanet", 8),
    ("lf", 4), ("sig", 6), ("bpp", 9),
)  # fmt: skip
TEST_IMAGES = 200  # of those that no network is trained on
PROMISE = 0.90


def train(work: Path) -> list[Path]:
    """The folders of all networks, backdoored ones first."""
    data, folders = load_dataset("digits", None), []
    for seed in range(2 * len(BACKDOORED)):
        attack, name = None, CLEAN
        if seed < len(BACKDOORED):
            name, target = BACKDOORED[seed]
            attack = build_attack(name, {"target": target, "seed": seed, **ON_DIGITS.get(name, {})})
        folders.append(work / f"{seed:02}-{name}")
        victim = Victim(data, "small_resnet", {}, DIGITS_RECIPE, seed=seed)
        train_backdoored(folders[-1], victim, attack, progress=False)
        print(f"trained {folders[-1].name}", flush=True)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the networks are kept; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path("docs/results/screening.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = train(options.work or Path(scratch))
        cards = {f.name: json.loads((f / "attack.json").read_text()) for f in folders}
        test = load_dataset("digits", None).test
        rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:TEST_IMAGES].sort().values
        some = test.take(rows)
        names = tuple(map(str, range(10)))
        found = screen(folders, lambda f: load_backdoored(f).model, some.images, some.labels, names, progress=False)
    scores = {s.name: s.suspicion for s in found}
    assert all(s is not None for s in scores.values()), [s.error for s in found]
    by_kind = ([], [])
    records = []
    print("| network | ACC | ASR | suspicion | class that stands out |\n|---|---|---|---|---|")
    for s in found:
        card = cards[s.name]
        metrics, attack = card["metrics"], card["setting"]["attack"]
        by_kind["target" in attack["options"]].append(s.suspicion.score)
        asr = metrics.get("asr")
        target = attack["options"].get("target")
        records.append({**s.to_dict(), "acc": metrics["acc"], "asr": asr, "true_target": target})
        rate = "" if asr is None else f"{asr:.3f}"
        print(f"| {s.name} | {metrics['acc']:.3f} | {rate} | {s.suspicion.score:.3f} | {s.suspicion.target} |")
    area = auroc(*map(torch.tensor, by_kind))
    print(f"AUROC {area:.3f}")
    setting = {
        "data": "digits", "architecture": "small_resnet", "networks": len(found), "test images": TEST_IMAGES, "seed": 0,
        "machine": machine(torch.device("cpu")), "versions": versions(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, json.dumps({"auroc": area, "models": records, "setting": setting}, indent=1) + "\n")
    if area < PROMISE:
        print(f"broken: AUROC {area:.3f}, wanted at least {PROMISE}", file=sys.stderr)
    return int(area < PROMISE)


if __name__ == "__main__":
    sys.exit(main())
