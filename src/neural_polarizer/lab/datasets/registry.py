"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...checks import check_choice
from ...errors import InputError
from .archive import open_files
from .base import ImageData
from .cifar import cifar
from .digits import digits
from .folder import image_folder
from .gtsrb import gtsrb
from .images import SUFFIXES
from .tiny_imagenet import tiny_imagenet

CLASSES = {"cifar10": 10, "cifar100": 100, "gtsrb": 43, "tiny_imagenet": 200}
MIRROR = {"gtsrb": False}  # a mirrored sign is another sign
DATASETS = ("digits", *CLASSES, "folder")


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    download: bool = False,
    progress: bool = True,
) -> ImageData:
    """A data set by name, in memory.

    Args:
        name: one of `DATASETS`; "folder" is any folder of images, or a zip of one.
        data_dir: where its official archives lie (or their extracted folders), or where they are downloaded to; or a
            folder or an archive of `train/<class>/*` and `test/<class>/*`. Not needed for digits.
        size: side in pixels that images are resized to; None keeps them (digits: 16; GTSRB: 32).
        seed: of a train/test split, where the data set brings none.
        download: fetch what is missing from the official address.

    Raises:
        InputError: an unknown name, files that are missing or damaged.

    Example:
        >>> load_dataset("cifar10", Path("data"), download=True).train.images.shape  # doctest: +SKIP
        torch.Size([50000, 3, 32, 32])
    """
    check_choice("dataset", name, DATASETS)
    if size is not None and not 4 <= size <= 2048:
        raise InputError(f"size: found {size}, wanted 4 to 2048 pixels")
    if name == "digits":
        return digits(size=size or 16, seed=seed)
    if data_dir is None:
        raise InputError(f"data_dir: {name} needs a folder that holds it, or that it is downloaded to")
    if name == "folder" or (data_dir.exists() and _is_image_folder(data_dir)):
        data = image_folder(data_dir, name=name, size=size, seed=seed, progress=progress)
        if len(data.classes) != CLASSES.get(name, len(data.classes)):
            raise InputError(f"data_dir: {name} has {CLASSES[name]} classes, {str(data_dir)!r} has {len(data.classes)}")
        return replace(data, mirror=MIRROR.get(name, True))
    readers: dict[str, Callable[..., ImageData]] = {
        "cifar10": lambda **k: cifar(data_dir, 10, **k),
        "cifar100": lambda **k: cifar(data_dir, 100, **k),
        "gtsrb": lambda **k: gtsrb(data_dir, **k),
        "tiny_imagenet": lambda **k: tiny_imagenet(data_dir, **k),
    }
    return readers[name](size=size, download=download, progress=progress)


def _is_image_folder(path: Path) -> bool:
    """Whether images lie there as `train/<class>/*`: no official archive, but how people pass data sets on."""
    if path.is_dir() and not (path / "train").is_dir():
        return False
    if path.is_dir() and (path / "val" / "val_annotations.txt").exists():
        return False
    names = open_files(path).names()
    return any(_top(n) == "train" for n in names if n.lower().endswith(SUFFIXES)) and not any(
        n.endswith("val_annotations.txt") for n in names
    )


def _top(name: str) -> str:
    parts = name.split("/")
    return parts[-3] if len(parts) >= 3 else ""
