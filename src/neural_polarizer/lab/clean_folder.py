"""The user's clean images: a folder or archive of image files, with a folder per class or without labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .datasets.archive import open_files
from .datasets.folder import read_stack
from .datasets.images import SUFFIXES


def read_clean(
    path: Path, *, channels: int = 3, size: int | None = None, progress: bool = True
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Images (N, C, H, W) uint8, labels (N,) or None, and the names of the classes.

    `<class>/<image>` gives labels: folders with whole numbers as names are class indices, other names are counted in
    sorted order, as torchvision's ImageFolder does. Image files side by side have no labels.

    Args:
        size: side in pixels that every image is resized to; None wants them all alike.

    Raises:
        InputError: no image; labelled and loose images together; a damaged image.

    Example:
        >>> images, labels, names = read_clean(Path("clean/"), size=32)  # doctest: +SKIP
    """
    files = open_files(path, "clean")
    names = sorted(n for n in files.names() if n.lower().endswith(SUFFIXES) and not n.startswith("__MACOSX/"))
    if not names:
        raise InputError(f"clean: found no image in {str(path)!r}, wanted {', '.join(SUFFIXES)}")
    parts = [n.split("/") for n in names]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts):
        parts = [p[1:] for p in parts]
    images = read_stack(files, names, size, channels=channels, progress=progress)
    deep = {len(p) > 1 for p in parts}
    if deep == {False} or len({p[0] for p in parts}) == 1:
        return images, None, ()
    if len(deep) == 2:
        loose = next(n for n, p in zip(names, parts, strict=True) if len(p) == 1)
        raise InputError(f"clean: {loose!r} lies beside folders of classes, wanted all images in them, or none")
    classes = sorted({p[0] for p in parts}, key=lambda c: (not c.isdecimal(), int(c) if c.isdecimal() else 0, c))
    numbered = all(c.isdecimal() for c in classes)
    index = {c: int(c) if numbered else i for i, c in enumerate(classes)}
    if len(set(index.values())) < len(index):
        raise InputError(f"clean: found folders that are the same number, among {', '.join(classes)}; rename them")
    return images, torch.tensor([index[p[0]] for p in parts]), tuple(classes)


def check_classes(labels: Tensor | None, names: tuple[str, ...], classes: int) -> None:
    """The folders are the classes of the model.

    Raises:
        InputError: class folders with names, and not one for each class of the model; a number beyond them.
    """
    if labels is None:
        return
    numbered = all(name.isdecimal() for name in names)
    if not numbered and len(names) != classes:
        raise InputError(
            f"clean: found {len(names)} folders, the model has {classes} classes; wanted one folder for each, or "
            "folders named by class index (0, 1, ...)"
        )
    if int(labels.max()) >= classes:
        raise InputError(
            f"clean: found a folder for class {int(labels.max())}, the model has {classes}, from 0 on; rename it"
        )
