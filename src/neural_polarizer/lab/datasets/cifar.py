"""CIFAR-10 and CIFAR-100 from their official archives, binary or python."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...models.pickled import read_pickle
from .archive import Files, open_files
from .base import ImageData, Split
from .download import Source, fetch
from .images import resized

ADDRESS = "https://www.cs.toronto.edu/~kriz"
BINARY = {
    10: Source(f"{ADDRESS}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    100: Source(f"{ADDRESS}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
PYTHON = {
    10: Source(f"{ADDRESS}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    100: Source(f"{ADDRESS}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}
FOLDERS = {10: ("cifar-10-batches-bin", "cifar-10-batches-py"), 100: ("cifar-100-binary", "cifar-100-python")}
PIXELS = 3 * 32 * 32


def cifar(
    directory: Path, classes: int, *, size: int | None = None, download: bool = False, progress: bool = True
) -> ImageData:
    """CIFAR-10 or CIFAR-100 (fine labels): 50,000 and 10,000 images of 32x32.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        directory: the folder with the official archive, binary or python, packed or extracted; or the archive itself.
        classes: 10 or 100.
        size: side in pixels that images are resized to; None keeps 32.
        download: fetch the binary archive where neither is there.

    Raises:
        InputError: a missing or damaged file.
    """
    files, binary = _found(directory, classes, download, progress)
    names = files.names()
    if classes == 10:
        parts = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
        # A part of a set, as tests and quick looks have it, may lack batches but not the first.
        train = [p for p in parts[0] if any(Path(n).stem == p for n in names)] or parts[0]
    else:
        parts = ["train"], ["test"]
        train = parts[0]
    read = _binary if binary else _python
    splits = [read(files, which, classes) for which in (train, parts[1])]
    if size is not None:
        splits = [Split(torch.stack([resized(i, size, size) for i in s.images]), s.labels) for s in splits]
    side = splits[0].images.shape[2]
    return ImageData(
        f"cifar{classes}", splits[0], splits[1], _class_names(files, binary, classes), mirror=True, shift=side // 8
    )


def _found(directory: Path, classes: int, download: bool, progress: bool) -> tuple[Files, bool]:
    if directory.is_file():
        files = open_files(directory)
        return files, any(n.endswith(".bin") for n in files.names())
    for binary, folder in zip((True, False), FOLDERS[classes], strict=True):
        for path in (directory / folder, directory if directory.name == folder else directory / folder):
            if path.is_dir():
                return open_files(path), binary
    if (directory / PYTHON[classes].name).is_file():
        return open_files(directory / PYTHON[classes].name), False
    return open_files(fetch(BINARY[classes], directory, download=download, progress=progress)), True


def _binary(files: Files, parts: list[str], classes: int) -> Split:
    """Records of one label byte (CIFAR-100: coarse, fine) and 3,072 pixels, red plane first."""
    ahead = 1 if classes == 10 else 2
    wanted = [files.find(f"{p}.bin") for p in parts]
    contents = dict(files.read(wanted))
    records: list[Tensor] = []
    for name in wanted:
        data = contents[name]
        if not data or len(data) % (ahead + PIXELS):
            raise InputError(f"{files.path}: {name} has {len(data)} bytes, wanted a multiple of {ahead + PIXELS}")
        records.append(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, ahead + PIXELS))
    rows = torch.cat(records)
    return _split(files, rows[:, ahead:], rows[:, ahead - 1].long(), classes)


def _python(files: Files, parts: list[str], classes: int) -> Split:
    key = "labels" if classes == 10 else "fine_labels"
    wanted = [files.find(p) for p in parts]
    contents = dict(files.read(wanted))
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    for name in wanted:
        where = f"{files.path}: {name}"
        batch = _text_keys(read_pickle(contents[name], where), where)
        data, found = batch.get("data"), batch.get(key)
        if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
            raise InputError(f"{where}: found no 'data' of shape (N, {PIXELS}) and type uint8")
        if not isinstance(found, list) or len(found) != len(data) or not all(type(v) is int for v in found):
            raise InputError(f"{where}: found no {key!r} with one whole number per image")
        pixels.append(data)
        labels.append(torch.tensor(found, dtype=torch.long))
    return _split(files, torch.cat(pixels), torch.cat(labels), classes)


def _split(files: Files, pixels: Tensor, labels: Tensor, classes: int) -> Split:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(f"{files.path}: found labels up to {int(labels.max())}, wanted 0 to {classes - 1}")
    return Split(pixels.reshape(-1, 3, 32, 32).contiguous(), labels)


def _text_keys(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found a {type(value).__name__}, wanted a dict")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}


def _class_names(files: Files, binary: bool, classes: int) -> tuple[str, ...]:
    if binary:
        text = files.one("batches.meta.txt" if classes == 10 else "fine_label_names.txt").decode("utf-8", "replace")
        found = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        name = "batches.meta" if classes == 10 else "meta"
        where = f"{files.path}: {name}"
        value = _text_keys(read_pickle(files.one(name), where), where)
        listed = value.get("label_names" if classes == 10 else "fine_label_names")
        items = listed if isinstance(listed, list) else []
        found = [v.decode("latin1") if isinstance(v, bytes) else str(v) for v in items]
    if len(found) != classes or len(set(found)) != classes:
        raise InputError(f"{files.path}: found {len(set(found))} names of classes, wanted {classes}")
    return tuple(found)
