"""A grid: data sets x architectures x attacks x poisoning ratios x clean sets x defences x seeds, in one YAML file.

    name: mine
    datasets: [digits]                             # or {name: cifar10, size: 32}
    architectures: [small_resnet]                  # or {name: preact_resnet18, options: {width: 16}, layer: ...}
    attacks: [badnets, blended]                    # or {name: badnets, target: all, options: {size: 4}, label: ...}
    poisoning_ratios: [0.1]
    clean: [140]                                   # clean images that the defender has
    defences: [none, ft, {name: npd, label: npd-20, options: {epochs: 20}}]
    seeds: [0, 1, 2]

`blocks` are grids within a grid: each takes what it does not say from the grid around it; cells that two of them share
run once.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ...errors import InputError

LIMIT = 1 << 20  # bytes of a grid file
SHIPPED = resources.files(__package__) / "grids"


def _named(value: Any) -> Any:
    """`badnets` is short for `{name: badnets}`."""
    return {"name": value} if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetSpec(_Strict):
    """A data set of `load_dataset`; `size` in pixels."""

    name: str
    size: int | None = None


class ArchitectureSpec(_Strict):
    """An architecture of `build_model`; `layer` is where polarizers stand."""

    name: str
    options: dict[str, Any] = {}
    layer: str | None = None
    label: str | None = None


class AttackSpec(_Strict):
    """An attack by its label in `proving.LABELS`, or with options and a target of its own."""

    name: str
    options: dict[str, Any] = {}
    target: int | Literal["all"] | None = None
    label: str | None = None


class DefenceSpec(_Strict):
    """A defence by name; its label tells two settings of one defence apart.

    `flaw`: what is wrong with its clean set, one of `flaws.FLAWS`.
    """

    name: str
    options: dict[str, Any] = {}
    label: str | None = None
    flaw: str | None = None


Datasets = Annotated[list[Annotated[DatasetSpec, BeforeValidator(_named)]], Field(min_length=1)]
Architectures = Annotated[list[Annotated[ArchitectureSpec, BeforeValidator(_named)]], Field(min_length=1)]
Attacks = Annotated[list[Annotated[AttackSpec, BeforeValidator(_named)]], Field(min_length=1)]
Ratios = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
Counts = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
Defences = Annotated[list[Annotated[DefenceSpec, BeforeValidator(_named)]], Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Block(_Strict):
    """Part of a grid; what is None comes from the grid around it."""

    datasets: Datasets | None = None
    architectures: Architectures | None = None
    attacks: Attacks | None = None
    poisoning_ratios: Ratios | None = None
    clean: Counts | None = None
    defences: Defences | None = None
    seeds: Seeds | None = None


AXES = ("datasets", "architectures", "attacks", "poisoning_ratios", "clean", "defences", "seeds")


class Grid(Block):
    """A whole grid.

    Args (beside the axes):
        target: the class that triggered images are sent to.
        hold_back: clean images that the networks never see; None: the largest of `clean`.
        network_seed: one network per attack for all seeds; None: a network per seed.
        test_images: the first so many test images of a shuffle count; None: all.
        recipe: options of `Recipe` that differ from the data set's own.
        reactivation: budgets of the re-activation attack on every defended network, see `reactivate`; for attacks with
            one target.
    """

    name: str
    about: str = ""
    target: Annotated[int, Field(ge=0)] = 0
    hold_back: Annotated[int, Field(ge=1)] | None = None
    network_seed: Annotated[int, Field(ge=0)] | None = None
    test_images: Annotated[int, Field(ge=1)] | None = None
    recipe: dict[str, Any] = {}
    reactivation: list[Annotated[float, Field(ge=0, le=1000)]] = []
    blocks: list[Block] = []

    @model_validator(mode="after")
    def _complete(self) -> Grid:
        for number, block in enumerate(self.parts()):
            missing = [axis for axis in AXES if getattr(block, axis) is None]
            if missing:
                raise ValueError(f"block {number} says nothing of {', '.join(missing)}, and neither does the grid")
        return self

    def parts(self) -> list[Block]:
        """The blocks with everything filled in; the grid itself where it has none."""
        own = {axis: getattr(self, axis) for axis in AXES}
        said = [{axis: getattr(b, axis) for axis in AXES if getattr(b, axis) is not None} for b in self.blocks]
        return [Block.model_construct(**{**own, **more}) for more in said or [{}]]


def shipped() -> list[str]:
    """Names of the grids that come with the library."""
    return sorted(p.name.removesuffix(".yaml") for p in SHIPPED.iterdir() if p.name.endswith(".yaml"))


def read_grid(source: str) -> Grid:
    """A grid from a YAML file, or a shipped one by its name.

    Raises:
        InputError: no such file or name, no YAML, something missing or unknown in it, with the place.

    Example:
        >>> read_grid("smoke").name
        'smoke'
    """
    if source in shipped():
        text = (SHIPPED / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        try:
            with open(Path(source), encoding="utf-8") as file:
                text = file.read(LIMIT + 1)
        except OSError as error:
            known = ", ".join(shipped())
            raise InputError(f"grid: {source!r} cannot be read ({error.strerror}); shipped grids: {known}") from None
        except UnicodeDecodeError:
            raise InputError(f"grid: {source!r} is no text, wanted a YAML file") from None
        if len(text) > LIMIT:
            raise InputError(f"grid: {source!r} has more than {LIMIT} bytes, wanted a small YAML file")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"grid: {source!r} is no YAML ({' '.join(str(error).split())})") from None
    try:
        return Grid.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"grid: {source}: {place}: {first['msg']}") from None
