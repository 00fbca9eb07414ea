"""GTSRB, the German traffic signs, from its official archives."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ...errors import InputError
from .archive import open_files
from .base import ImageData
from .download import Source, fetch
from .folder import read_split

ADDRESS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
TRAIN = Source(f"{ADDRESS}/GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478")
TEST = Source(f"{ADDRESS}/GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185")
TRUTH = Source(f"{ADDRESS}/GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5")
OLD_TRAIN = "GTSRB_Final_Training_Images.zip"  # the same images as first published
EXTRACTED = "GTSRB"
CLASSES = 43


def gtsrb(directory: Path, *, size: int | None = None, download: bool = False, progress: bool = True) -> ImageData:
    """Traffic signs of 43 classes: 26,640 (39,209 in the first archive) and 12,630 images, resized to one size.

    Source: Stallkamp et al., "Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition",
    2012. Labels come from the `;`-separated annotation files, one per class and one for the test images.

    Args:
        directory: the folder with the three official archives, or with the folder `GTSRB` extracted from them.
        size: side in pixels; None is 32, as in the papers.
        download: fetch the archives where they are missing.

    Raises:
        InputError: a missing or damaged file, an annotation without its image.
    """
    root = directory / EXTRACTED if (directory / EXTRACTED).is_dir() else None
    if root:
        train = test = truth = open_files(root)
    else:
        old = directory / OLD_TRAIN
        found = old if old.is_file() else fetch(TRAIN, directory, download=download, progress=progress)
        train = open_files(found)
        test, truth = (open_files(fetch(s, directory, download=download, progress=progress)) for s in (TEST, TRUTH))
    tables = [n for n in train.names() if Path(n).name.startswith("GT-") and "test" not in Path(n).name.lower()]
    if not tables:
        raise InputError(f"data_dir: found no annotation file GT-<class>.csv in {train.path}")
    rows: list[tuple[str, int]] = []
    for name, content in train.read(tables):
        folder = name.rsplit("/", 1)[0] if "/" in name else ""
        rows += [(f"{folder}/{file}".lstrip("/"), c) for file, c in _annotations(content, f"{train.path}: {name}")]
    final = [n for n in truth.names() if Path(n).name == "GT-final_test.csv"]
    if len(final) != 1:
        raise InputError(f"data_dir: found {len(final)} files GT-final_test.csv in {truth.path}, wanted one")
    answers = _annotations(truth.one(final[0]), f"{truth.path}: {final[0]}")
    where = {Path(n).name: n for n in test.names() if n.lower().endswith(".ppm") and "test" in n.lower()}
    missing = next((file for file, _ in answers if file not in where), None)
    if missing:
        raise InputError(f"data_dir: {missing} of {final[0]} is missing in {test.path}")
    side = size or 32
    splits = [
        read_split(train, sorted(rows), side, progress=progress),
        read_split(test, [(where[file], c) for file, c in answers], side, progress=progress),
    ]
    seen = set(splits[0].labels.tolist())
    empty = [c for c in range(max(seen) + 1) if c not in seen]
    if empty or not set(splits[1].labels.tolist()) <= seen:
        raise InputError(f"data_dir: classes {empty or 'of the test part'} have no training image in {train.path}")
    names = tuple(f"{c:05}" for c in range(max(seen) + 1))
    return ImageData("gtsrb", splits[0], splits[1], names, mirror=False, shift=side // 8)


def _annotations(content: bytes, where: str) -> list[tuple[str, int]]:
    """File names and classes of a table with the columns Filename and ClassId."""
    reader = csv.DictReader(io.StringIO(content.decode("utf-8", "replace")), delimiter=";")
    if not {"Filename", "ClassId"} <= set(reader.fieldnames or ()):
        raise InputError(f"{where}: found the columns {reader.fieldnames}, wanted Filename and ClassId between ';'")
    out = []
    for row in reader:
        file, c = row["Filename"] or "", row["ClassId"] or ""
        if not c.isdigit() or int(c) >= CLASSES or "/" in file or not file:
            raise InputError(f"{where}: found {file!r} of class {c!r}, wanted a file name and a class of 0 to 42")
        out.append((file, int(c)))
    return out
