"""The cells of a grid. A cell is named by the hash of its full setting: its record is found, and never stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from ...checks import check_choice
from ...errors import InputError
from ...models.sketch import sketch
from ...models.zoo import build_model
from ..attacks.registry import build_attack
from ..backdoor import CLEAN
from ..baselines.registry import BASELINES
from ..datasets.registry import DATASETS
from ..proving import ALL_TO_ALL, attack_of, recipe_for
from ..train import Recipe
from .defences import FROM_DATA, NONE, options_of
from .flaws import FLAWS, UNLABELLED
from .grid import ArchitectureSpec, AttackSpec, Block, Grid

FORMAT = 1


def key_of(setting: Mapping[str, Any]) -> str:
    """The name of a setting: 16 hexadecimal digits that are the same on every machine."""
    text = json.dumps(setting, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to train: a backdoored one, or with no attack the clean twin. All values are plain JSON.

    Args:
        attack: name and options, every one of them; None for the twin.
        source: the file or folder that the data came from, by its last name: the same pictures as JPEG or PNG are two
            data sets.
        recipe: how it is trained, all but what follows from the data set.
    """

    dataset: str
    size: int | None
    source: str
    arch: str
    arch_options: dict[str, Any]
    attack: dict[str, Any] | None
    recipe: dict[str, Any]
    hold_back: int
    seed: int

    def setting(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @property
    def key(self) -> str:
        return key_of(self.setting())

    @property
    def twin(self) -> Network:
        """The same without the attack."""
        return replace(self, attack=None)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defence on one network with so many clean images.

    Args:
        defence: name and options, every one of them.
        layer: where a polarizer stands; None for all other defences.
        labels: what tables call arch, attack and defence. Not part of the setting.
        reactivation: budgets, see `reactivate`; where there are none, the setting says nothing of it.
        flaw: of the clean set, see `flaws`; the same.
    """

    network: Network
    poisoning_ratio: float
    clean: int
    defence: dict[str, Any]
    layer: str | None
    seed: int
    test_images: int | None
    labels: dict[str, str]
    reactivation: tuple[float, ...] = ()
    flaw: str | None = None

    def setting(self) -> dict[str, Any]:
        apart = ("network", "labels", "reactivation", "flaw")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        woken = {"reactivation": list(self.reactivation)} if self.reactivation else {}
        flaw = {"flaw": self.flaw} if self.flaw else {}
        return {**own, **woken, **flaw, "network": self.network.setting()}

    @property
    def key(self) -> str:
        return key_of(self.setting())


def cells_of(grid: Grid, sources: Mapping[str, str] | None = None) -> list[Cell]:
    """The cells of a grid, in its order, each once.

    Args:
        sources: where each data set comes from: the last name of the path given for it.

    Raises:
        InputError: an unknown name or option anywhere in the grid, two settings under one label.
    """
    cells: dict[str, Cell] = {}
    for part in grid.parts():
        for cell in _cells(grid, part, sources or {}):
            cells.setdefault(cell.key, cell)
    _check_labels(list(cells.values()))
    return list(cells.values())


def _cells(grid: Grid, part: Block, sources: Mapping[str, str]) -> list[Cell]:
    hold_back = grid.hold_back or max(max(p.clean or [0]) for p in grid.parts())
    out: list[Cell] = []
    for dataset in part.datasets or ():
        check_choice("datasets", dataset.name, DATASETS)
        for arch in part.architectures or ():
            recipe = _recipe(dataset.name, arch, grid.recipe)
            for attack in part.attacks or ():
                for ratio in part.poisoning_ratios or ():
                    for seed in part.seeds or ():
                        network_seed = seed if grid.network_seed is None else grid.network_seed
                        network = Network(
                            dataset=dataset.name,
                            size=dataset.size,
                            source=sources.get(dataset.name, ""),
                            arch=arch.name,
                            arch_options=arch.options,
                            attack=_attack(attack, dataset.name, ratio, grid.target, network_seed),
                            recipe=recipe,
                            hold_back=hold_back,
                            seed=network_seed,
                        )
                        if grid.reactivation and network.attack and network.attack["options"]["target"] is None:
                            raise InputError(f"reactivation: {attack.name} has no one target, wanted attacks that do")
                        for clean in part.clean or ():
                            if clean > hold_back:
                                raise InputError(f"clean: found {clean}, wanted at most hold_back = {hold_back}")
                            for defence in part.defences or ():
                                options, layer = options_of(defence.name, defence.options, arch.name, arch.layer)
                                if defence.flaw is not None:
                                    check_choice("flaw", defence.flaw, FLAWS)
                                    if defence.flaw == UNLABELLED and defence.name in BASELINES:
                                        raise InputError(f"flaw: {defence.name} wants labels, found {defence.flaw!r}")
                                labels = {
                                    "architecture": arch.label or arch.name,
                                    "attack": attack.label or attack.name,
                                    "defence": defence.label or defence.name,
                                }
                                out.append(
                                    Cell(
                                        network=network,
                                        poisoning_ratio=ratio,
                                        clean=clean,
                                        defence={"name": defence.name, "options": options},
                                        layer=layer,
                                        seed=0 if defence.name == NONE else seed,
                                        test_images=grid.test_images,
                                        labels=labels,
                                        reactivation=tuple(grid.reactivation),
                                        flaw=defence.flaw,
                                    )
                                )
    return out


def _attack(spec: AttackSpec, dataset: str, ratio: float, target: int, seed: int) -> dict[str, Any]:
    """Name and all options of an attack, as the tables of attacks have it, changed by what the grid says."""
    attack = attack_of(spec.name, dataset=dataset, poisoning_ratio=ratio, target=target, seed=seed)
    more = dict(spec.options)
    if spec.target is not None:
        more["target"] = None if spec.target == "all" else spec.target
    if more:
        attack = build_attack(spec.name.removesuffix(ALL_TO_ALL), attack.options() | more)
    return {"name": attack.name, "options": attack.options()}


def _recipe(dataset: str, arch: ArchitectureSpec, changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a data set and an architecture, without what the data decide."""
    outline = sketch(partial(build_model, arch.name, classes=2, **arch.options), 0)
    own = {k: v for k, v in asdict(recipe_for(dataset, 0, False, outline)).items() if k not in FROM_DATA}
    for name in changes:
        check_choice("recipe", name, own)
    try:
        chosen = Recipe(**(own | changes))
    except TypeError as error:
        raise InputError(f"recipe: {error}") from None
    return {name: getattr(chosen, name) for name in own}


def _check_labels(cells: Sequence[Cell]) -> None:
    """One label, one setting: what a table would average must be the same thing."""
    seen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        n = cell.network
        for kind, setting in (
            ("architecture", {"name": n.arch, "options": n.arch_options}),
            (
                "defence",
                {
                    "defence": cell.defence,
                    "layer": cell.layer,
                    "arch": cell.labels["architecture"],
                    "flaw": cell.flaw,
                },
            ),
        ):
            place = (kind, cell.labels[kind], *([cell.labels["architecture"]] if kind == "defence" else []))
            key = key_of(setting)
            if seen.setdefault(place, key) != key:
                raise InputError(f"label: two settings of {kind} {cell.labels[kind]!r}; give each a label of its own")


def twins_of(cells: Sequence[Cell]) -> dict[str, Network]:
    """The clean twins that the cells need, by key."""
    return {twin.key: twin for cell in cells for twin in [cell.network.twin]}


def networks_of(cells: Sequence[Cell]) -> dict[str, Network]:
    """The backdoored networks of the cells, by key."""
    return {cell.network.key: cell.network for cell in cells}


def described(network: Network) -> str:
    """A line about a network, for people."""
    attack = CLEAN
    if network.attack:
        attack = f"{network.attack['name']} at {network.attack['options']['poisoning_ratio']:g}"
    return f"{attack} on {network.dataset}, {network.arch}, seed {network.seed}"
