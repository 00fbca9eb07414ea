"""Tiny ImageNet from its official archive."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .archive import open_files
from .base import ImageData
from .download import Source, fetch
from .folder import read_split
from .images import SUFFIXES

SOURCE = Source("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
EXTRACTED = "tiny-imagenet-200"


def tiny_imagenet(
    directory: Path, *, size: int | None = None, download: bool = False, progress: bool = True
) -> ImageData:
    """200 classes, 100,000 training images of 64x64; the 10,000 validation images serve as the test part.

    Source: Le, Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.

    Args:
        directory: the folder with the official zip or with the folder extracted from it; or the zip itself.
        size: side in pixels that images are resized to; None keeps 64.
        download: fetch the zip where it is missing.

    Raises:
        InputError: a missing or damaged file, a validation image without a class.
    """
    if directory.is_file():
        files = open_files(directory)
    elif (directory / EXTRACTED).is_dir():
        files = open_files(directory / EXTRACTED)
    elif (directory / "val" / "val_annotations.txt").is_file():
        files = open_files(directory)
    else:
        files = open_files(fetch(SOURCE, directory, download=download, progress=progress))
    images = [n.split("/") for n in files.names() if n.lower().endswith(SUFFIXES)]
    train = sorted(("/".join(p), p[-3]) for p in images if len(p) >= 4 - (p[0] == "train") and p[-4:-3] == ["train"])
    classes = sorted({c for _, c in train})
    if len(classes) < 2:
        raise InputError(f"data_dir: found {len(classes)} classes in train/<class>/images of {files.path}")
    index = {c: i for i, c in enumerate(classes)}
    root = train[0][0].rsplit("train/", 1)[0]
    table = f"{root}val/val_annotations.txt"
    if table not in files.names():
        raise InputError(f"data_dir: {table} is missing in {files.path}")
    test: list[tuple[str, int]] = []
    for line in files.one(table).decode("utf-8", "replace").splitlines():
        file, c = ([*line.split("\t"), "", ""])[:2]
        if c not in index or "/" in file:
            raise InputError(f"{files.path}: {table} says {file!r} is of class {c!r}, which has no training image")
        test.append((f"{root}val/images/{file}", index[c]))
    splits = [
        read_split(files, [(n, index[c]) for n, c in train], size, progress=progress),
        read_split(files, test, size, progress=progress, what="validation image"),
    ]
    side = splits[0].images.shape[2]
    return ImageData("tiny_imagenet", splits[0], splits[1], tuple(classes), mirror=True, shift=side // 8)
