"""Any folder of images, or a zip of one: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...progress import Progress
from .archive import Files, open_files
from .base import ImageData, Split
from .images import SUFFIXES, decode_bytes, resized

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
TEST_SHARE = 0.2  # of each class, where the folder has no test part


def read_stack(
    files: Files,
    names: Sequence[str],
    size: int | None,
    *,
    channels: int = 3,
    progress: bool,
    what: str = "image",
) -> Tensor:
    """All those images as one uint8 tensor (N, C, H, W), in the order of `names`.

    Args:
        size: side in pixels that every image is resized to; None wants them all alike.
        what: how the images are called where all of them are missing.

    Raises:
        InputError: one of them is missing, or damaged, or of another size than the others.
    """
    known = set(files.names())
    missing = next((n for n in names if n not in known), None)
    if missing or not names:
        raise InputError(f"data_dir: {missing or f'every {what}'} is missing in {files.path}")
    where = {name: i for i, name in enumerate(names)}
    out: Tensor | None = None
    bar = iter(Progress(len(names), f"read {files.path.name}", enabled=progress and len(names) > 5000))
    for name, data in files.read(names):
        next(bar, None)
        image = decode_bytes(data, f"{files.path}: {name}", channels)
        if size is not None:
            image = resized(image, size, size)
        if out is None:
            out = torch.empty(len(names), *image.shape, dtype=torch.uint8)
        if image.shape != out.shape[1:]:
            raise InputError(
                f"size: {name} has {image.shape[2]} x {image.shape[1]} pixels, others {out.shape[3]} x {out.shape[2]}; "
                "wanted one size, or a size that all are resized to"
            )
        out[where[name]] = image
    next(bar, None)
    assert out is not None
    return out


def read_split(
    files: Files, rows: Sequence[tuple[str, int]], size: int | None, *, progress: bool, what: str = "image"
) -> Split:
    """Images and labels of (name, class) pairs, in their order; see `read_stack`."""
    images = read_stack(files, [name for name, _ in rows], size, progress=progress, what=what)
    return Split(images, torch.tensor([c for _, c in rows]))


def image_folder(
    path: Path,
    *,
    name: str = "folder",
    size: int | None = None,
    channels: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> ImageData:
    """A data set from image files, one folder per class.

    Args:
        path: a folder, .zip or .tar.gz, with `train/<class>/*` and `test/<class>/*` (one of `val`, `validation` also
            does), or `<class>/*` alone, of which then a fifth of each class is the test part. A single folder around
            all that is looked through. Nested folders below a class belong to it.
        size: side in pixels that every image is resized to; None wants them all alike.
        channels: 3 or 1.
        seed: of that split.

    Raises:
        InputError: no image, a class without images, the same class twice in different writing, a damaged image.

    Example:
        >>> image_folder(Path("photos.zip"), size=32).classes  # doctest: +SKIP
        ('cat', 'dog')
    """
    files = open_files(path)
    names = [n for n in files.names() if n.lower().endswith(SUFFIXES) and not n.startswith("__MACOSX/")]
    if not names:
        raise InputError(f"data_dir: found no image in {str(path)!r}, wanted train/<class>/* or <class>/*")
    parts = {n: n.split("/") for n in names}
    while len({p[0] for p in parts.values()}) == 1 and all(len(p) > 2 for p in parts.values()):
        if next(iter(parts.values()))[0].lower() in TRAIN + TEST:
            break
        parts = {n: p[1:] for n, p in parts.items()}
    if any(len(p) < 2 for p in parts.values()):
        loose = next(n for n, p in parts.items() if len(p) < 2)
        raise InputError(f"data_dir: {loose!r} of {str(path)!r} lies outside every class; wanted <class>/<image>")
    tops = {p[0] for p in parts.values()}
    train, test = [t for t in tops if t.lower() in TRAIN], [t for t in tops if t.lower() in TEST]
    if train and not test:
        raise InputError(f"data_dir: {str(path)!r} has a {train[0]!r} folder and no test folder")
    two = bool(train and test)
    if two and (len(train) > 1 or len(test) > 1):
        raise InputError(f"data_dir: found {sorted(tops)} in {str(path)!r}, wanted one train and one test folder")
    depth = 1 if two else 0
    if two:
        parts = {n: p for n, p in parts.items() if p[0] in (train[0], test[0])}
        if any(len(p) < 3 for p in parts.values()):
            loose = next(n for n, p in parts.items() if len(p) < 3)
            raise InputError(f"data_dir: {loose!r} of {str(path)!r} lies outside every class")
    classes = _classes(files, [p[depth] for p in parts.values()], parts, depth)
    index = {c: i for i, c in enumerate(classes)}
    every = sorted(parts)
    labels = torch.tensor([index[parts[n][depth]] for n in every])
    if two:
        testing = torch.tensor([parts[n][0] == test[0] for n in every])
        for part, which in ((train[0], ~testing), (test[0], testing)):
            counts = torch.bincount(labels[which], minlength=len(classes))
            if (counts == 0).any():
                raise InputError(f"data_dir: class {classes[int(counts.argmin())]!r} has no image in {part!r}")
    else:
        testing = _test_rows(labels, len(classes), seed)
    images = read_stack(files, every, size, channels=channels, progress=progress)
    whole = Split(images, labels)
    side = min(images.shape[2:])
    return ImageData(
        name,
        whole.take((~testing).nonzero()[:, 0]),
        whole.take(testing.nonzero()[:, 0]),
        tuple(classes),
        mirror=True,
        shift=side // 8,
    )


def _classes(files: Files, found: Sequence[str], parts: dict[str, list[str]], depth: int) -> list[str]:
    classes = sorted(set(found))
    folded: dict[str, str] = {}
    for c in classes:
        other = folded.setdefault(c.strip().casefold(), c)
        if other != c:
            raise InputError(f"data_dir: classes {other!r} and {c!r} of {files.path} differ in writing alone")
    if files.path.is_dir():  # an archive may list its folders or not; on disk an empty one is seen
        any_name = next(iter(parts))
        above = len(any_name.split("/")) - len(parts[any_name])
        tops = {"/".join(n.split("/")[: above + depth]) for n in parts}
        for top in tops:
            for folder in (files.path / top).iterdir():
                if folder.is_dir() and not folder.name.startswith(".") and folder.name not in classes:
                    raise InputError(f"data_dir: class {folder.name!r} in {str(files.path / top)!r} has no image")
    if len(classes) < 2:
        raise InputError(f"data_dir: found one class ({classes[0]!r}) in {files.path}, wanted at least two")
    return classes


def _test_rows(labels: Tensor, classes: int, seed: int) -> Tensor:
    """A mask of a fifth of each class."""
    generator = torch.Generator().manual_seed(seed)
    testing = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(classes):
        rows = (labels == c).nonzero()[:, 0]
        if len(rows) < 2:
            raise InputError(
                f"data_dir: class {c} has {len(rows)} image, wanted at least two: one to train, one to test"
            )
        chosen = rows[torch.randperm(len(rows), generator=generator)]
        testing[chosen[: max(1, round(TEST_SHARE * len(rows)))]] = True
    return testing
