"""The two kinds of work of a benchmark: train a network, run a cell. What an executor sends to its workers."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from ...attempts import Attempts
from ...errors import InputError
from ...files import write_atomically
from ...fit import attempts_on
from ...models.zoo import sized
from ..attacks.base import Attack
from ..attacks.registry import build_attack
from ..backdoor import Backdoored, Victim, load_backdoored, train_backdoored
from ..datasets.base import ImageData, Split
from ..datasets.registry import load_dataset
from ..machine import machine, versions
from ..train import Recipe
from .cells import Cell, Network
from .defences import AUTO, defend
from .flaws import FLAWS, UNLABELLED
from .measure import Said, figures, said_by
from .memory import forget_peak, peak_mib
from .reactivate import reactivated
from .store import DONE, FAILED, OUTPUTS, REFUSED, Store

T = TypeVar("T")
TWIN = "twin_"  # before the names of what the clean twin says of the same images


@dataclass(frozen=True)
class Task:
    """A network to train or a cell to run, and the keys of the networks that must be there first."""

    work: Network | Cell
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.work.key


@dataclass(frozen=True)
class Place:
    """Where and with what workers work.

    Args:
        root: the benchmark's folder, on a file system that all workers see.
        data: where each data set lies.
        download: fetch missing data sets.
        device: "cpu", "cuda", ...
        threads: torch's, per worker; None leaves them.
    """

    root: Path
    data: Mapping[str, Path] = field(default_factory=dict)
    download: bool = False
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task; `record` is a cell's."""

    key: str
    outcome: str
    error: str = ""
    record: dict[str, Any] | None = None


def perform(task: Task, place: Place) -> Outcome:
    """Do a task and write what it made. An error is an outcome; only an interruption comes through."""
    store = Store(place.root)
    if place.threads:
        torch.set_num_threads(place.threads)
    with _logged(store.log(task.key)):
        try:
            if isinstance(task.work, Network):
                train_network(task.work, place)
                return Outcome(task.key, DONE)
            return _kept(store, {**_about(task.work), "outcome": DONE, **run_cell(task.work, place)})
        except Exception as error:
            traceback.print_exc()
            text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            if isinstance(task.work, Network):
                return Outcome(task.key, FAILED, text)
            outcome = REFUSED if isinstance(error, Refusal) else FAILED
            return _kept(store, {**_about(task.work), "outcome": outcome, "error": text})


def _kept(store: Store, record: dict[str, Any]) -> Outcome:
    """The outcome of a cell, its record on disk; a disk that is full fails this cell and no other."""
    try:
        store.write(record)
    except OSError as error:
        return Outcome(record["key"], FAILED, f"its record cannot be written ({error.strerror})", record)
    return Outcome(record["key"], record["outcome"], record.get("error", ""), record)


class Refusal(InputError):
    """The defence says that it cannot work on this model or clean set."""


def failed(cell: Cell, error: str) -> dict[str, Any]:
    """The record of a cell that could not even start."""
    return {**_about(cell), "outcome": FAILED, "error": error}


def _about(cell: Cell) -> dict[str, Any]:
    return {"format": 1, "key": cell.key, "labels": cell.labels, "setting": cell.setting()}


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Progress and warnings of the work go to a file: the screen shows the grid."""
    with open(path, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        yield


@lru_cache(maxsize=2)
def _data(name: str, size: int | None, seed: int, directory: Path | None, download: bool) -> ImageData:
    return load_dataset(name, directory, size=size, seed=seed, download=download)


def data_of(network: Network, place: Place) -> ImageData:
    return _data(network.dataset, network.size, network.seed, place.data.get(network.dataset), place.download)


def victim_of(network: Network, data: ImageData) -> Victim:
    options = sized(network.arch, network.arch_options, data.shape[1])
    recipe = Recipe(**network.recipe, shift=data.shift, mirror=data.mirror)
    return Victim(data, network.arch, options, recipe, network.hold_back, network.seed, network.source)


def train_network(network: Network, place: Place) -> Backdoored:
    """Train a network, or go on with it, or read it; a backdoored one with its outputs and its twin's rates."""
    store, data = Store(place.root), data_of(network, place)
    attack = build_attack(network.attack["name"], network.attack["options"]) if network.attack else None
    twin = load_backdoored(store.network(network.twin), device=place.device).model if attack else None
    folder = store.network(network)
    done = train_backdoored(folder, victim_of(network, data), attack, clean=twin, device=place.device)
    if done.attack is not None and not (folder / OUTPUTS).exists():
        assert twin is not None
        test = data.test.to(place.device)
        said = said_by(done.model, test, done.attack).tensors()
        said |= {TWIN + k: v for k, v in said_by(twin, test, done.attack).tensors().items()}
        write_atomically(folder / OUTPUTS, safetensors.torch.save({k: v.cpu() for k, v in said.items()}))
    return done


def clean_set(data: ImageData, victim: Victim, count: int, seed: int) -> Split:
    """`count` of the images that the network never saw, drawn class by class."""
    held = data.train.take(victim.rows()[0])
    rows, _ = ImageData(data.name, held, data.test, data.classes).hold_back(count, seed)
    return held.take(rows.sort().values)


def counted_rows(total: int, count: int | None) -> torch.Tensor:
    """Rows of the test images that count: all, or the first `count` of a shuffle that is always the same."""
    if count is None or count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values


class Last(Generic[T]):
    """What was made last: cells of one network need the same perturbed images, and the same of its twin."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._made: list[T] = []

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives for this key, made once as long as no other is asked for."""
        if key != self._key or not self._made:
            self._made = []  # what is large goes before the next is made
            self._key, self._made = key, [make()]
        return self._made[0]


_perturbed, _twin_woken = Last[tuple[Attempts, float]](), Last[list[dict[str, Any]]]()


def _timed(model: nn.Module, clean: tuple[Tensor, Tensor] | Tensor, seed: int) -> tuple[Attempts, float]:
    """Clean images perturbed, and the seconds that it took, which count for each cell that begins with them."""
    started = time.perf_counter()
    return attempts_on(model, clean, seed=seed), time.perf_counter() - started


def run_cell(cell: Cell, place: Place) -> dict[str, Any]:
    """Run one defence and measure it: the figures of a record."""
    network = cell.network
    data, folder = data_of(network, place), Store(place.root).network(network)
    victim = victim_of(network, data)
    found = load_backdoored(folder, device=place.device)
    assert found.attack is not None
    rows = counted_rows(len(data.test), cell.test_images)
    outputs = {k: v[rows].to(place.device) for k, v in safetensors.torch.load_file(folder / OUTPUTS).items()}
    before = Said(**{k: v for k, v in outputs.items() if not k.startswith(TWIN)})
    twin = Said(**{k.removeprefix(TWIN): v for k, v in outputs.items() if k.startswith(TWIN)})
    test = data.test.take(rows).to(place.device)
    clean = clean_set(data, victim, cell.clean, cell.seed).to(place.device)
    if cell.flaw is not None:
        clean = FLAWS[cell.flaw](clean, found.attack, len(data.classes), cell.seed)
    given = clean.floats() if cell.flaw == UNLABELLED else (clean.floats(), clean.labels)
    device = torch.device(place.device)
    forget_peak(device)
    started, name, before_that = time.perf_counter(), cell.defence["name"], 0.0
    try:
        attempts = None
        if name == AUTO:
            attempts, before_that = _perturbed.get(
                (str(folder), cell.flaw, cell.clean, cell.seed), lambda: _timed(found.model, given, cell.seed)
            )
            started = time.perf_counter()
        done = defend(
            name, cell.defence["options"], cell.layer, found.model, given, data,
            seed=cell.seed, precision=victim.recipe.precision_on(device), attempts=attempts,
        )  # fmt: skip
    except InputError as error:
        raise Refusal(str(error)) from None
    seconds, peak = before_that + time.perf_counter() - started, peak_mib(device)
    after = before if done.model is found.model else said_by(done.model, test, found.attack, before)
    woken = {}
    if cell.reactivation:

        def wake(model: nn.Module, attack: Attack = found.attack) -> list[dict[str, Any]]:
            return reactivated(model, test, attack, cell.reactivation, len(data.classes), seed=cell.seed)

        twin_at = Store(place.root).network(network.twin)
        key = (str(folder), cell.test_images, cell.reactivation, cell.seed)
        woken = {
            "reactivated": wake(done.model),
            "twin_reactivated": _twin_woken.get(key, lambda: wake(load_backdoored(twin_at, device=place.device).model)),
        }
    return {
        **woken,
        **figures(before, after, twin, test.labels, found.attack, len(data.classes)),
        "seconds": round(seconds, 2),
        "peak_mib": round(peak, 1),
        "parameters": done.parameters,
        "notes": done.notes,
        "clean_images": len(clean),
        "seeds": {"network": network.seed, "defence": cell.seed},
        "machine": machine(place.device),
        "versions": versions(),
    }
