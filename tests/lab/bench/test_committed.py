"""Committed records are the cells of the grid that they are named after: no new option turns them into strangers."""

import json
from pathlib import Path

import pytest

from neural_polarizer.lab.bench.cells import cells_of
from neural_polarizer.lab.bench.grid import read_grid

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "bench"


@pytest.mark.parametrize("name", sorted(folder.name for folder in RESULTS.iterdir()))
def test_committed_records_are_cells_of_their_grid(name):
    records = {path.stem: json.loads(path.read_text()) for path in (RESULTS / name).glob("*.json")}
    assert records
    sources = {r["setting"]["network"]["dataset"]: r["setting"]["network"]["source"] for r in records.values()}
    known = {cell.key for cell in cells_of(read_grid(name), sources)}
    assert sorted(set(records) - known) == []
