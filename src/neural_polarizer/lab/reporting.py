"""`polarize report`: the page again for a folder of `polarize purify` or `demo`, also with an attack's real trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor, nn

from ..checks import usable_device
from ..choose import held_back
from ..errors import InputError
from ..methods import METHODS
from ..models.user_code import is_user_code
from ..models.zoo import load_model
from ..polarized import PolarizedModel
from ..report.page import Report
from ..saved import read_saved
from . import demo
from .backdoor import load_backdoored
from .clean_folder import check_classes, read_clean
from .evidence import Trigger, evidence_of
from .machine import versions
from .purification import report_of, trials_table
from .records import METRICS, Recorded, recorded


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says beside the folder; None takes what `polarize purify` wrote down.

    Attributes:
        model, arch, normalization, classes, width, channels: of `read_checkpoint`.
        clean: the clean images that `purify` was given; the part that it held back judges.
        test: other images, that no fit has seen; all of them judge.
        size: side in pixels that images are resized to.
        attack: folder of `polarize attack`, for its trigger.
    """

    model: Path | None = None
    arch: str | None = None
    normalization: str | None = None
    classes: int | None = None
    width: int | None = None
    channels: int | None = None
    clean: Path | None = None
    test: Path | None = None
    size: int | None = None
    attack: Path | None = None


Read = Callable[[Path, "str | None", "str | None", "int | None", "int | None", int], nn.Module]


def report_again(folder: Path, asked: Asked, read: Read, *, device: str = "cpu") -> Report:
    """The page of a folder, with its evidence.

    Args:
        folder: what `polarize purify --out` or `polarize demo --out` wrote.
        read: a network from path, arch, normalization, classes, width and channels.

    Raises:
        InputError: no such folder, files that do not belong together, a model or images that are not where they were.
    """
    usable_device("device", device)
    found = recorded(folder)
    if found.command == "purify":
        return _of_purification(folder, found, asked, read, device)
    given = [f.name for f in fields(asked) if getattr(asked, f.name) is not None]
    if given:
        raise InputError(f"{given[0]}: found one for a folder of `polarize demo`, which has its own; leave it out")
    return _of_demo(folder, found, device)


def _of_purification(folder: Path, found: Recorded, asked: Asked, read: Read, device: str) -> Report:
    path = Path(found.text("setting", "model")) if asked.model is None else asked.model
    if not path.exists():
        raise InputError(f"model: {str(path)!r} does not exist; say with --model where it lies")
    arch = asked.arch or (found.text("setting", "arch") if asked.model is None else "") or None
    if asked.arch is None and arch is not None and is_user_code(arch):
        raise InputError(f"arch: {METRICS} names {arch!r}, code that would be run; give --arch if you trust it")
    channels = asked.channels or found.whole("setting", "channels", least=1, default=3)
    base = read(
        path, arch, asked.normalization or found.text("setting", "normalization", default="") or None,
        asked.classes or read_saved(folder / "polarizer").classes,
        asked.width or found.whole("setting", "width", least=1, default=0) or None, channels,
    )  # fmt: skip
    purified = PolarizedModel.from_pretrained(base.to(device), folder / "polarizer")
    images, labels, names = _judging(found, asked, channels)
    if images.shape[2:] != purified.image_shape[1:]:
        raise InputError(
            f"size: found images of {images.shape[3]} x {images.shape[2]} pixels, the polarizer was made for "
            f"{purified.image_shape[2]} x {purified.image_shape[1]}; say so with --size"
        )
    check_classes(labels, names, purified.cut.classes)
    evidence = evidence_of(
        purified, images, labels, names, trigger=_trigger(asked.attack, purified.cut.classes),
        suspicion=found.suspicion(), seed=found.whole("setting", "seed"),
    )  # fmt: skip
    return report_of(found.values, evidence, purified, trials_table(*found.trials()))


def _judging(found: Recorded, asked: Asked, channels: int) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Images that no fit has seen, their labels, and the names of the classes."""
    size = asked.size or found.whole("setting", "size", least=1, default=0) or None
    if asked.test is not None:
        return read_clean(asked.test, channels=channels, size=size)
    path = Path(found.text("setting", "clean")) if asked.clean is None else asked.clean
    if not path.exists():
        raise InputError(f"clean: {str(path)!r} does not exist; say with --clean where the images lie, or give --test")
    images, labels, names = read_clean(path, channels=channels, size=size)
    count = found.whole("setting", "clean images", least=2)
    if len(images) != count:
        raise InputError(
            f"clean: found {len(images)} images in {str(path)!r}, `polarize purify` was given {count}: which of them "
            "no fit has seen is not known; give the same ones, or others with --test"
        )
    rows, _ = held_back(count, found.whole("setting", "seed"), found.poisoned(count))
    return images[rows], None if labels is None else labels[rows], names


def _trigger(folder: Path | None, classes: int) -> Trigger | None:
    """The trigger of a backdoored network's folder."""
    if folder is None:
        return None
    attack = load_backdoored(folder).attack
    if attack is None:
        raise InputError(
            f"attack: {str(folder)!r} holds a clean twin, which has no trigger; give the folder of an attack"
        )
    if attack.target is not None and attack.target >= classes:
        raise InputError(
            f"attack: found target {attack.target}, the model has {classes} classes; give an attack on this model"
        )
    to = "each class to the next" if attack.target is None else f"all to class {attack.target}"
    return Trigger(f"the trigger of {attack.name}, {to}", attack.trigger, attack.target)


def _of_demo(folder: Path, found: Recorded, device: str) -> Report:
    method, seed = found.text("method"), found.whole("seed")
    if method not in METHODS:
        raise InputError(f"{found.source}: method: found {method!r:.80}, wanted one of {', '.join(METHODS)}")
    home = folder / "model" if (folder / "model").exists() else folder.parent / "model"
    scene = demo.scene_again(seed, load_model(home).to(device))
    purified = PolarizedModel.from_pretrained(scene.model, folder / "polarizer")
    result = demo.judged(scene, method, purified, found.number("seconds", "purify"))
    return demo.report_of(scene, [result], {**found.section("setting"), "versions of the report": versions()})
