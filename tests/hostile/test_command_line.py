"""Some of the corpus through the command line: one line on standard error, exit status 2, nothing written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from neural_polarizer.cli import main

from .command_line import CLEAN, LINES, Line, arguments

SECONDS, BYTES = 30, 4 << 30  # of the processor and of memory that an input may cost, the imports included


def names(place: Path) -> set[Path]:
    return set(place.rglob("*"))


def check(line: Line, place: Path, before: set[Path], status: int, out: str, err: str) -> None:
    assert "Traceback" not in err
    told = [text for text in err.splitlines() if not text.startswith("screen: ")]  # its progress
    assert len(told) == 1, err
    assert told[0].startswith("polarize: ")
    assert told[0].isprintable()
    assert not (place / "canary").exists(), "code was run"
    if line.command == "screen" and line.bad not in CLEAN:  # one bad file does not stop the rest
        assert status == 1
        found = json.loads((place / "out").read_text())["models"]
        assert [m["name"] for m in found if "error" not in m] == ["well.pt"]
        assert len(found) == 2
    else:
        assert status == 2
        assert out == ""
        assert names(place) == before


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.command}: {line.bad}")
def test_one_line_and_its_status(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["polarize", *arguments(line, tmp_path)])
    before = names(tmp_path)
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    check(line, tmp_path, before, left.value.code or 0, said.out, said.err)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.command}: {line.bad}")
def test_in_a_process_of_its_own(line, tmp_path):
    """As above, within 30 s and 4 GiB."""
    given = arguments(line, tmp_path)
    before, spent = names(tmp_path), children().ru_utime
    process = subprocess.Popen(
        [sys.executable, "-m", "neural_polarizer", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=4 * SECONDS)  # a busy machine is no hostile input
    finally:
        process.kill()
    assert children().ru_utime - spent < SECONDS
    assert 1024 * children().ru_maxrss < BYTES, "the largest child so far"
    check(line, tmp_path, before, process.returncode, out, err)


def children() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_CHILDREN)


def test_at_least_twenty():
    assert len({line.bad for line in LINES}) == len(LINES) >= 20
    assert {line.command for line in LINES} == {"purify", "layers", "screen", "detect", "export"}
