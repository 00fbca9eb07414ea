"""What the tools that choose defaults may look at: CIFAR-10 networks that are clean or carry a development attack."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_polarizer.attempts import Attempts
from neural_polarizer.conditional import ConditionalPolarizer
from neural_polarizer.cut import Cut
from neural_polarizer.files import write_atomically
from neural_polarizer.lab.attacks.base import DEVELOPMENT_ATTACKS, Attack
from neural_polarizer.lab.backdoor import CLEAN, Backdoored, load_backdoored
from neural_polarizer.lab.datasets.base import ImageData, Split
from neural_polarizer.lab.evaluate import evaluation_of
from neural_polarizer.lab.machine import machine, versions
from neural_polarizer.polarized import applied
from neural_polarizer.polarizers import Polarizer

ROOT = Path(__file__).parent.parent
NETWORKS = ROOT / "benchmarks" / "networks"
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10.zip"
HELD_BACK = 2500  # of the training images, which the networks of the benchmark have not seen
PASS = 250


def arguments(about: str | None, images: int, out: str, **switches: str) -> argparse.Namespace:
    """What the command line of a tool says: how many images, of which data, to which record; switches of its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--networks", type=Path, default=NETWORKS)
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / out)
    for name, told in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=told)
    return parser.parse_args()


def write_record(out: Path, **found: Any) -> None:
    """A record with the machine and the versions that it was made by."""
    write_atomically(out, json.dumps({**found, "machine": machine("cpu"), "versions": versions()}, indent=1) + "\n")


def development_networks(folder: Path = NETWORKS) -> Iterator[tuple[str, Backdoored]]:
    """The clean network and those whose attack sends all images to one class, with their attack's name."""
    for one in sorted(f for f in folder.iterdir() if f.is_dir()):
        found = load_backdoored(one)
        name = found.attack.name if found.attack else CLEAN
        if name == CLEAN or (name in DEVELOPMENT_ATTACKS and getattr(found.attack, "target", None) is not None):
            yield name, found


def withheld(attempts: Attempts) -> Attempts:
    """The same perturbed images, as if no class stood out."""
    nobody = tuple(0.0 for _ in attempts.suspicion.excess)
    return replace(attempts, suspicion=replace(attempts.suspicion, excess=nobody))


def clean_set(data: ImageData, count: int, seed: int = 0) -> Split:
    """`count` of the images that the networks have not seen, drawn class by class as the benchmark does."""
    held = data.train.take(data.hold_back(HELD_BACK, 0)[0])
    return held.take(ImageData(data.name, held, data.test, data.classes).hold_back(count, seed)[0].sort().values)


def some_test_images(data: ImageData, count: int) -> Split:
    """`count` of the test images, always the same."""
    return data.test.take(torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:count])


def figures(cut: Cut, polarizer: Polarizer | None, test: Split, attack: Attack | None) -> dict[str, float]:
    """ACC of a polarized model, or of the model itself where there is no polarizer; under attack also ASR and RA."""

    def edit(m: Tensor, original: Tensor) -> Tensor:
        condition = original.argmax(1) if isinstance(polarizer, ConditionalPolarizer) else None
        return m if polarizer is None else applied(polarizer, m, condition)

    @torch.no_grad()
    def classes_of(images: Tensor) -> Tensor:
        return torch.cat([cut.paired(some, edit)[0].argmax(1) for some in images.split(PASS)])

    clean = classes_of(test.floats())
    if attack is None:
        return {"acc": (clean == test.labels).double().mean().item()}
    triggered = torch.cat([attack.trigger(some) for some in test.floats().split(PASS)])
    found = evaluation_of(clean, classes_of(triggered), test.labels, attack, cut.classes)
    return {"acc": found.acc, "asr": found.asr, "ra": found.ra}
