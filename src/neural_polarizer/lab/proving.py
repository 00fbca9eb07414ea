"""The proving ground: every attack on one victim, in one table beside the clean twin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import check_choice
from ..errors import InputError
from ..files import write_atomically
from ..metrics import attack_success_rate, excess_asr
from .attacks.base import DEVELOPMENT_ATTACKS, Attack
from .attacks.registry import ATTACKS, build_attack
from .backdoor import CLEAN, Backdoored, Victim, train_backdoored
from .pictures import gallery
from .train import Recipe, predict

ALL_TO_ALL = "_all"  # badnets_all: BadNets, all-to-all
LABELS = ("badnets", f"badnets{ALL_TO_ALL}", *(name for name in ATTACKS if name != "badnets"))

# Where an attack's own default poisoning ratio is not what a table of ratio r would compare: the cover images of
# Adaptive-Blend count beside it.
SAME_RATIO = {"adaptive_blend": ("cover_ratio",)}

# The defaults are the papers', for photographs of 32 pixels and more. Digits of 16 pixels are smooth, made of few grey
# levels, and each class is told apart without mistakes: faint triggers are lost on them, and a clean-label trigger
# is only learned where the digit itself can hardly be seen.
ON_DIGITS: dict[str, dict[str, Any]] = {
    "sig": {"delta": 0.8, "class_share": 0.9},
    "wanet": {"strength": 1.0},
    "bpp": {"levels": 3},
    "lc": {"epsilon": 0.3, "class_share": 0.95},
}


def attack_of(label: str, *, dataset: str, poisoning_ratio: float, target: int, seed: int) -> Attack:
    """The attack of a row's label (a name of `ATTACKS`, or that with `_all`) at a ratio, as the tables compare them."""
    check_choice("only", label, LABELS)
    name = label.removesuffix(ALL_TO_ALL)
    options: dict[str, Any] = {"poisoning_ratio": poisoning_ratio, "seed": seed}
    options["target"] = target if name == label else None
    options |= dict.fromkeys(SAME_RATIO.get(label, ()), poisoning_ratio)
    return build_attack(name, options | (ON_DIGITS.get(label, {}) if dataset == "digits" else {}))


@dataclass(frozen=True)
class Proof:
    """One attack's row: rates in [0, 1]; `twin` is the clean twin's."""

    label: str
    acc: float
    asr: float
    ra: float
    twin_acc: float
    twin_asr: float
    seconds: float

    @property
    def split(self) -> str:
        return "development" if self.label in DEVELOPMENT_ATTACKS else "test"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "excess_asr": excess_asr(self.asr, self.twin_asr), "split": self.split}


def run_attacks(
    out: Path,
    victim: Victim,
    labels: Sequence[str],
    *,
    poisoning_ratio: float = 0.1,
    target: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> list[Proof]:
    """Train the clean twin and every attack below `out`, each in a folder of its label; what is there is kept.

    Writes `attacks.json` with setting and rows, and `triggers.png` with all triggers on one test image.
    """
    common: dict[str, Any] = {
        "dataset": victim.data.name,
        "poisoning_ratio": poisoning_ratio,
        "target": target,
        "seed": victim.seed,
    }
    attacks = {label: attack_of(label, **common) for label in labels}
    if not attacks:
        raise InputError("only: found no attack, wanted at least one")
    twin = train_backdoored(out / CLEAN, victim, None, device=device, progress=progress)
    proofs: list[Proof] = []
    triggers: dict[str, Attack] = {}
    found: Backdoored | None = None
    for label, attack in attacks.items():
        found = train_backdoored(out / label, victim, attack, clean=twin.model, device=device, progress=progress)
        proofs.append(proof_of(label, found, twin, victim, device))
        assert found.attack is not None
        triggers[label] = found.attack
    assert found is not None
    setting = {k: v for k, v in found.card["setting"].items() if k != "attack"}
    record = {
        "setting": {**setting, "poisoning_ratio": poisoning_ratio, "target": target},
        "twin": twin.card["metrics"] | {"seconds": twin.card["seconds"]},
        "attacks": [p.to_dict() for p in proofs],
        "machine": found.card["machine"],
        "versions": found.card["versions"],
    }
    test = victim.data.test
    shown = int((test.labels != target).nonzero()[0, 0])
    write_atomically(out / "triggers.png", gallery(triggers, test.floats(torch.tensor([shown]))[0]))
    write_atomically(out / "attacks.json", json.dumps(record, indent=2) + "\n")
    return proofs


def proof_of(label: str, found: Backdoored, twin: Backdoored, victim: Victim, device: str) -> Proof:
    assert found.attack is not None
    test = victim.data.test.to(device)
    triggered = predict(twin.model, test.images, change=found.attack.trigger)
    rate = attack_success_rate(triggered, test.labels, target=found.attack.target, classes=len(victim.data.classes))
    m = found.card["metrics"]
    return Proof(label, m["acc"], m["asr"], m["ra"], twin.card["metrics"]["acc"], rate, found.card["seconds"])


def table_of(proofs: Sequence[Proof]) -> list[tuple[str, ...]]:
    """Header first, then the clean twin, then a row per attack."""
    rows: list[tuple[str, ...]] = [("attack", "split", "ACC", "ASR", "RA", "twin's rate", "seconds")]
    rows.append((CLEAN, "", f"{proofs[0].twin_acc:.1%}", "", "", "", ""))
    for p in proofs:
        rates = (f"{r:.1%}" for r in (p.acc, p.asr, p.ra, p.twin_asr))
        rows.append((p.label, p.split, *rates, f"{p.seconds:.0f}"))
    return rows


# One recipe per size of the task: small images and a small network learn from small batches; everything else is larger.
DIGITS_RECIPE = Recipe()
RECIPE = Recipe(epochs=22, batch_size=128, lr=0.1, channels_last=True)


def recipe_for(victim_data: str, shift: int, mirror: bool, model: nn.Module) -> Recipe:
    """The recipe of a data set and a network: attention and LayerNorm want AdamW."""
    start = DIGITS_RECIPE if victim_data == "digits" else RECIPE
    normed = any(isinstance(m, nn.LayerNorm) for m in model.modules())
    recipe = replace(start, shift=shift, mirror=mirror)
    return replace(recipe, optimizer="adamw", lr=1e-3, weight_decay=0.05) if normed else recipe
