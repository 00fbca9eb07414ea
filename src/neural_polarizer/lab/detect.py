"""Detection at test time over a folder of images."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..files import write_atomically
from ..polarized import PolarizedModel
from ..progress import Progress
from .datasets.images import image_files, read_image

COLUMNS = ("path", "original_class", "purified_class", "score")


@dataclass(frozen=True)
class Suspect:
    """One image; `score` is in [-1, 1], higher meaning more of the original class was taken away."""

    path: str
    original_class: int
    purified_class: int
    score: float


def detect_folder(
    purified: PolarizedModel, directory: Path, *, batch_size: int = 64, progress: bool = True
) -> tuple[list[Suspect], list[str]]:
    """Every readable image below `directory`, most suspect first, and one message for each that is not.

    A file that cannot be read does not stop the others: whoever fills the folder must not be able to.
    """
    files = image_files(directory)
    found: list[Suspect] = []
    unreadable: list[str] = []
    bar = Progress(-(-len(files) // batch_size), "detect", enabled=progress)
    for i in bar:
        images, paths = [], []
        for path in files[i * batch_size : (i + 1) * batch_size]:
            try:
                images.append(read_image(path, purified.image_shape))
                paths.append(path)
            except InputError as error:
                unreadable.append(str(error))
        if not images:
            continue
        said = purified.detect(torch.stack(images))
        before, after = said.original.argmax(1).tolist(), said.logits.argmax(1).tolist()
        names = [str(path.relative_to(directory)) for path in paths]
        found += map(Suspect, names, before, after, said.score.tolist())
    if not found:
        raise InputError(f"images: none of the {len(files)} files in {str(directory)!r} can be read: {unreadable[0]}")
    return sorted(found, key=lambda s: (-s.score, s.path)), unreadable


def check_out(path: Path) -> None:
    """Refuse a file that cannot be written, before the work and not after it."""
    if not path.parent.is_dir():
        raise InputError(f"out: {str(path.parent)!r} is no folder; make it first, or choose another file")


def write_suspects(path: Path, suspects: list[Suspect]) -> None:
    """One row per image as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in suspects:
        writer.writerow([s.path, s.original_class, s.purified_class, f"{s.score:.6f}"])
    write_atomically(path, out.getvalue())
