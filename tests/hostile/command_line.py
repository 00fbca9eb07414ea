"""Hostile and broken inputs, a command for each."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from neural_polarizer.lab.datasets.images import write_image

from .corpus import ARCH, CASES, write_polarizer, zipped


class Line(NamedTuple):
    """A command, and what of its input is bad: a case of the corpus, or a way to write bad clean images."""

    command: str
    bad: str


LINES = [
    Line("purify", "code: os.system beside tensors"),
    Line("purify", "code: builtins.exec as a bare pickle"),
    Line("purify", "code: subprocess.call alone in a zip"),
    Line("purify", "damage: .safetensors cut at 9"),
    Line("purify", "bomb: opcodes without end"),
    Line("purify", "bomb: an array of huge sizes"),
    Line("purify", "values: NaN, torch.save"),
    Line("purify", "other: a pipe.pt"),
    Line("purify", "folder: model.json: no object 8"),
    Line("purify", "hugging face: config.json: hidden_act = \"__import__('os')\" (4)"),
    Line("purify", "hugging face: config.json: depths = [1] (3)"),
    Line("layers", "code: a whole module"),
    Line("layers", "code: pickle.loads alone in a zip"),
    Line("layers", "absurd: a negative storage"),
    Line("layers", "other: HDF5 named .safetensors"),
    Line("layers", "hugging face: model.safetensors: code: stack-global"),
    Line("screen", "code: os.system alone in a zip"),
    Line("screen", "bomb: marks over a large stack"),
    Line("screen", "damage: .pt cut at 18063"),
    Line("detect", "polarizer: polarizer.safetensors: code: a pickle"),
    Line("detect", "polarizer: polarizer_config.json: sha256 = None (0)"),
    Line("detect", "code: io.open alone in a zip"),
    Line("export", "polarizer: polarizer_config.json: a pipe"),
    Line("export", "polarizer: polarizer_config.json: channels = 0 (3)"),
    Line("export", "code: logging.FileHandler alone in a zip"),
    Line("purify", "clean: text named .png"),
    Line("purify", "clean: a picture of a gigapixel"),
    Line("purify", "clean: an archive that climbs out"),
    Line("purify", "clean: an archive that unfolds to 8 GB"),
    Line("purify", "clean: two sizes"),
    Line("purify", "clean: nothing"),
    Line("screen", "clean: a pipe"),
]


def _text(place: Path) -> Path:
    (place / "a.png").write_text("import os")
    return place


def _gigapixel(place: Path) -> Path:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    (place / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels))
    return place


def _climbs(place: Path) -> Path:
    with zipfile.ZipFile(place / "clean.zip", "w") as archive:
        archive.writestr("../canary", "out")
        archive.writestr("0/a.png", "x")
    return place / "clean.zip"


def _unfolds(place: Path) -> Path:
    with (
        zipfile.ZipFile(place / "clean.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("0/a.png", "w") as out,
    ):
        for _ in range(64):  # eight times over, by what the directory says below
            out.write(bytes(1 << 20))
    content = (place / "clean.zip").read_bytes()
    size = (64 << 20).to_bytes(4, "little")
    assert size in content
    (place / "clean.zip").write_bytes(content.replace(size, (0xFFFF0000).to_bytes(4, "little")))
    return place / "clean.zip"


def _two_sizes(place: Path) -> Path:
    for side in (8, 9):
        write_image(place / f"{side}.png", torch.full((3, side, side), 0.5))
    return place


def _pipe(place: Path) -> Path:
    import os

    os.mkfifo(place / "a.png")
    return place


CLEAN: dict[str, Callable[[Path], Path]] = {
    "clean: text named .png": _text,
    "clean: a picture of a gigapixel": _gigapixel,
    "clean: an archive that climbs out": _climbs,
    "clean: an archive that unfolds to 8 GB": _unfolds,
    "clean: two sizes": _two_sizes,
    "clean: nothing": lambda place: place,
    "clean: a pipe": _pipe,
}


def arguments(line: Line, place: Path) -> list[str]:
    """The command's arguments; what is bad is written below `place`, beside what is well."""
    for name in ("bad", "clean", "models"):
        (place / name).mkdir()
    write_image(place / "clean" / "a.png", torch.full((3, 8, 8), 0.5))
    (place / "models" / "well.pt").write_bytes(zipped())
    (place / "well.pt").write_bytes(zipped())
    model, clean, polarizer = place / "well.pt", place / "clean", place / "polarizer"
    write_polarizer(polarizer)
    if line.bad in CLEAN:
        clean = CLEAN[line.bad](place / "bad")
    else:
        case = next(c for c in CASES if c.name == line.bad)
        path = case.write(place / ("models" if line.command == "screen" else "bad"), place / "canary")
        model, polarizer = (model, path) if case.kind == "polarizer" else (path, polarizer)
    named = [] if model.is_dir() else ["--arch", ARCH]
    given: list[object] = {
        "purify": ["--model", model, "--clean", clean, "--out", place / "out"],
        "layers": ["--model", model],
        "screen": [place / "models", "--clean", clean, "--out", place / "out"],
        "detect": ["--model", model, "--polarizer", polarizer, "--images", clean, "--out", place / "out"],
        "export": ["--model", model, "--polarizer", polarizer, "--out", place / "out"],
    }[line.command]
    return [line.command, *map(str, given), *named]
