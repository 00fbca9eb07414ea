"""Backdoored networks as folders: trained once, then read by every benchmark.

A folder holds `model.safetensors` and `model.json` (the network), `attack.json` (attack, data, recipe, poisoned rows,
metrics; written last), `trigger.safetensors` where a trigger was learned, and `triggers.png`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..checks import usable_device
from ..errors import InputError
from ..files import make_directory, read_json_object, write_atomically
from ..metrics import accuracy
from ..models.zoo import MODEL_CARD, MODEL_FILE, build_model, load_model, save_model
from ..tensorfile import open_safetensors, read_finite
from .attacks.attacker import Attacker
from .attacks.base import Attack, Poisoned
from .attacks.registry import build_attack
from .datasets.base import ImageData, Split
from .evaluate import evaluate
from .machine import machine, versions
from .pictures import trigger_sheet
from .train import Recipe, predict, train

CARD, TRIGGER, PICTURE, WORK = "attack.json", "trigger.safetensors", "triggers.png", "work"
FILES = (MODEL_FILE, MODEL_CARD, CARD, TRIGGER, PICTURE)  # of a finished folder
MAX_TRIGGER = 1 << 28  # numbers in a learned trigger, noise networks of SSBA and Input-Aware among them
CLEAN = "none"  # the name of no attack


@dataclass(frozen=True)
class Victim:
    """What is attacked: data, an architecture, how it is trained, and the images held back for the defender.

    Args:
        options: of `build_model`, without `classes` and `channels`.
        hold_back: clean training images, drawn class by class, that the network never sees.
        source: how the data was named, for the record.
    """

    data: ImageData
    arch: str
    options: dict[str, Any]
    recipe: Recipe
    hold_back: int = 0
    seed: int = 0
    source: str = ""

    def build_options(self) -> dict[str, Any]:
        options = {"classes": len(self.data.classes), **self.options}
        if self.data.shape[0] != 3:
            options["channels"] = self.data.shape[0]
        return options

    def build(self, seed: int) -> nn.Module:
        return build_model(self.arch, **self.build_options(), seed=seed)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the official training images: the defender's clean ones, and those that are trained on."""
        if not 0 <= self.hold_back < len(self.data.train):
            raise InputError(f"hold_back: found {self.hold_back}, wanted fewer than {len(self.data.train)} images")
        clean, rest = self.data.hold_back(self.hold_back, self.seed)
        return clean.sort().values, rest.sort().values


@dataclass(frozen=True)
class Backdoored:
    """A trained network with its attack (None: a clean twin) and the card that was written for it."""

    model: nn.Module
    attack: Attack | None
    card: dict[str, Any]


def train_backdoored(
    out: Path,
    victim: Victim,
    attack: Attack | None,
    *,
    clean: nn.Module | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Backdoored:
    """Train a backdoored network, or with no attack its clean twin, and write its folder; go on where one was begun.

    Args:
        clean: a clean network of the same architecture, for attacks that need one; None trains it where needed.

    Raises:
        InputError: a folder that holds another network, options that do not fit the data.
    """
    usable_device("device", device)
    if attack is not None and (attack.target or 0) >= len(victim.data.classes):
        raise InputError(f"target: found {attack.target}, wanted 0 to {len(victim.data.classes) - 1}")
    folder = make_directory("out", out)
    described = _described(victim, attack)
    if (folder / CARD).exists():
        if read_json_object(folder / CARD, limit=1 << 26).get("setting") != json.loads(json.dumps(described)):
            raise InputError(f"out: {str(folder)!r} already holds a network of another setting; choose another folder")
        return load_backdoored(folder, device=device)
    work = make_directory("out", folder / WORK)
    started = time.perf_counter()
    resumed = any(work.iterdir())
    _, rows = victim.rows()
    data = victim.data.train.take(rows).to(device)
    test = victim.data.test.to(device)
    classes = len(victim.data.classes)
    model = victim.build(victim.seed).to(device)
    attacker = Attacker(
        data, classes, victim.build, victim.recipe, victim.seed, device, work, progress=progress, clean=clean
    )
    poisoned, recipe, tampering = Poisoned(data, torch.zeros(0, dtype=torch.long)), victim.recipe, None
    if attack is not None:
        attack = attack.prepare(attacker)
        poisoned = attack.poison(data, classes, victim.seed)
        if attack.retrains:
            model.load_state_dict(attacker.clean_model().state_dict())
            recipe = recipe.retraining()
        tampering = attack.tampering(attacker, recipe.steps(len(data)))
    train(
        model,
        poisoned.data,
        recipe,
        seed=victim.seed,
        tampering=tampering,
        checkpoint=work / "train.pt",
        setting=json.dumps(described),
        progress=progress,
        name=f"train {attack.name if attack else 'the clean twin'}",
    )
    if attack is not None and tampering is not None:
        attack = attack.finished(tampering)
    if attack is not None:
        metrics = evaluate(model, test, attack, classes).to_dict()
    else:
        metrics = {"acc": accuracy(predict(model, test.images), test.labels), "images": len(test)}
    card = {
        "format": 1,
        "setting": described,
        "poisoned_rows": rows[poisoned.rows].tolist(),
        "cover_rows": rows[poisoned.cover].tolist(),
        "metrics": metrics,
        "classes": list(victim.data.classes),
        "seconds": round(time.perf_counter() - started, 1),
        "resumed": resumed,
        "machine": machine(device),
        "versions": versions(),
    }
    save_model(folder, model, victim.arch, victim.build_options())
    if attack is not None:
        if attack.learned:
            tensors = {k: v.contiguous() for k, v in attack.learned.items()}
            write_atomically(folder / TRIGGER, safetensors.torch.save(tensors))
        write_atomically(folder / PICTURE, trigger_sheet(attack, _examples(test, attack)))
    write_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")
    shutil.rmtree(work)
    return Backdoored(model, attack, card)


def _examples(test: Split, attack: Attack, count: int = 8) -> Tensor:
    """Test images of as many classes as there are, none of the target."""
    others = (test.labels != attack.target).nonzero()[:, 0] if attack.target is not None else torch.arange(len(test))
    labels = test.labels[others]
    first = [others[labels == c][:1] for c in labels.unique()]
    return test.floats(torch.cat(first)[:count])


def _described(victim: Victim, attack: Attack | None) -> dict[str, Any]:
    return {
        "attack": {"name": attack.name if attack else CLEAN, "options": attack.options() if attack else {}},
        "data": {
            "name": victim.data.name,
            "source": victim.source,
            "train": len(victim.data.train),
            "test": len(victim.data.test),
            "shape": list(victim.data.shape),
            "classes": len(victim.data.classes),
        },
        "hold_back": victim.hold_back,
        "model": {"arch": victim.arch, "options": victim.build_options()},
        "recipe": asdict(victim.recipe),
        "seed": victim.seed,
    }


def load_backdoored(folder: Path, *, device: str = "cpu") -> Backdoored:
    """A network, its attack and its card from a folder of `train_backdoored`.

    Raises:
        InputError: a missing or damaged file, an attack or an option that is unknown.
    """
    if not (folder / CARD).is_file():
        raise InputError(f"{folder}: found no {CARD} there, wanted a folder that `polarize attack --out` wrote")
    card = read_json_object(folder / CARD, limit=1 << 26)
    setting = card.get("setting")
    described = setting.get("attack") if isinstance(setting, dict) else None
    if card.get("format") != 1 or not isinstance(described, dict) or not isinstance(described.get("options"), dict):
        raise InputError(f"{folder / CARD}: found no attack, wanted what `polarize attack --out` wrote (format 1)")
    attack = None
    if described.get("name") != CLEAN:
        learned = {}
        if (folder / TRIGGER).exists():
            stored = open_safetensors(folder / TRIGGER)
            if sum(math.prod(entry.shape) for entry in stored.values()) > MAX_TRIGGER:
                raise InputError(f"{folder / TRIGGER}: found more than {MAX_TRIGGER} numbers, too many for a trigger")
            learned = read_finite(stored, folder / TRIGGER)
        attack = build_attack(str(described.get("name")), described["options"], learned)
    return Backdoored(load_model(folder).to(device), attack, card)
