"""Some of the corpus through the command line: one line on standard error, exit status 2, nothing written."""

from __future__ import annotations

import sys

import pytest
import torch

from neural_polarizer.cli import main
from neural_polarizer.lab.datasets.images import write_image

from .corpus import ARCH, CASES, write_polarizer, zipped

CHOSEN = (
    "code: os.system beside tensors",
    "code: builtins.exec as a bare pickle",
    "code: a whole module",
    "damage: .safetensors cut at 9",
    "bomb: opcodes without end",
    "values: NaN, torch.save",
    "other: a pipe.pt",
    "folder: model.json: no object 8",
    "polarizer: polarizer_config.json: sha256 = None (0)",
)


def detect(monkeypatch, place, model, polarizer) -> int:
    arguments = ["--model", model, "--polarizer", polarizer, "--images", place / "images", "--out", place / "s.csv"]
    options = [] if model.is_dir() else ["--arch", ARCH]
    monkeypatch.setattr(sys, "argv", ["polarize", "detect", *map(str, arguments), *options])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", torch.full((3, 8, 8), 0.5))
    write_polarizer(tmp_path / "polarizer")
    (tmp_path / "model.pt").write_bytes(zipped())
    (tmp_path / "place").mkdir()
    return tmp_path


def test_a_state_dict_of_pytorch(place, monkeypatch, capsys):
    assert detect(monkeypatch, place, place / "model.pt", place / "polarizer") == 0
    assert "of 1 images are suspect" in capsys.readouterr().out
    assert (place / "s.csv").exists()


@pytest.mark.parametrize("name", CHOSEN)
def test_one_line_and_status_2(name, place, monkeypatch, capsys):
    case = next(c for c in CASES if c.name == name)
    path = case.write(place / "place", place / "canary")
    model, polarizer = (place / "model.pt", path) if case.kind == "polarizer" else (path, place / "polarizer")
    assert detect(monkeypatch, place, model, polarizer) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("polarize: ")
    assert said.err.count("\n") == 1
    assert not (place / "canary").exists()
    assert not (place / "s.csv").exists()
