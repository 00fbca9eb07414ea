"""`polarize bench` as a user types it, on a part of the shipped grid `smoke`, or of one with smaller images."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from neural_polarizer.lab.bench.grid import SHIPPED
from tests.test_cli import polarize, spawned

PART = ("--attacks", "badnets", "--defences", "none,clp,npd", "--out", "out")
PUBLISHED = """dataset,backbone,poisoning_ratio,attack,defense,acc,asr,ra
digits,small_resnet,0.1,badnet,no defense,0.92,0.95,0.05
digits,small_resnet,0.1,badnet,anp,0.90,0.05,0.85
"""


def records_of(root):
    found = [json.loads(p.read_text()) for p in (root / "out" / "cells").iterdir()]
    return {r["labels"]["defence"]: r for r in found}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    shipped = (SHIPPED / "smoke.yaml").read_text()
    (root / "small.yaml").write_text(shipped.replace("size: 32", "size: 16"))
    plan = polarize("bench", "run", "small.yaml", *PART, "--dry-run", cwd=root)
    assert plan.returncode == 0, plan.stderr
    assert [p.name for p in root.iterdir()] == ["small.yaml"], "a dry run does nothing"
    assert "smoke: 3 cells, 0 cached; 2 networks to train" in plan.stdout
    assert "hours of one CPU core" in plan.stdout
    done = spawned("bench", "run", "small.yaml", *PART, cwd=root)
    assert done.returncode == 0, done.stderr
    return root, done


def test_run(ran):
    root, done = ran
    assert "cells: 3, from earlier runs: 0, done: 3" in done.stdout
    assert "[3/3]" in done.stderr
    assert "\r" not in done.stderr
    records = records_of(root)
    assert records["none"]["before"]["asr"] >= 0.95
    assert records["npd"]["after"]["asr"] <= 0.5
    assert records["npd"]["before"]["acc"] - records["npd"]["after"]["acc"] <= 0.03
    assert records["npd"]["auroc"] >= 0.95


@pytest.mark.slow
def test_the_grid_as_it_is_shipped(tmp_path):
    done = polarize("bench", "run", "smoke", *PART, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert records["none"]["before"]["asr"] >= 0.95
    assert records["npd"]["after"]["asr"] <= 0.1
    assert records["npd"]["before"]["acc"] - records["npd"]["after"]["acc"] <= 0.03
    assert records["npd"]["auroc"] >= 0.95


def test_run_again_and_plan_again(ran):
    root, _ = ran
    again = polarize("bench", "run", "small.yaml", *PART, "--json", cwd=root)
    assert json.loads(again.stdout)["from earlier runs"] == 3
    plan = json.loads(polarize("bench", "run", "small.yaml", *PART, "--dry-run", "--json", cwd=root).stdout)
    assert [c["cached"] for c in plan["cells"]] == [True] * 3
    assert plan["cpu_hours"] == 0


def test_a_plan_counts_networks_from_elsewhere_and_copies_none(ran):
    root, _ = ran
    elsewhere = (*PART[:-1], "new", "--networks", "out/networks", "--dry-run")
    plan = json.loads(polarize("bench", "run", "small.yaml", *elsewhere, "--json", cwd=root).stdout)
    assert plan["networks"] == []
    assert [c["cached"] for c in plan["cells"]] == [False] * 3
    assert not (root / "new").exists()
    wrong = polarize("bench", "run", "small.yaml", *PART[:-1], "new", "--networks", "nowhere", "--dry-run", cwd=root)
    assert wrong.returncode == 2
    assert "networks: 'nowhere' is no folder" in wrong.stderr


def test_table(ran):
    root, _ = ran
    (root / "published.csv").write_text(PUBLISHED)
    shown = polarize("bench", "table", "out", "--published", "published.csv", cwd=root)
    assert shown.returncode == 0, shown.stderr
    assert "| npd " in shown.stdout
    assert "Published, not ours" in shown.stdout
    written = polarize("bench", "table", "out", "--out", "t.md", "--out", "t.tex", "--out", "t.parquet", cwd=root)
    assert written.returncode == 0, written.stderr
    assert "npd" in (root / "t.tex").read_text()
    assert len(pd.read_parquet(root / "t.parquet")) == 3
    assert len(json.loads(polarize("bench", "table", "out", "--json", cwd=root).stdout)) == 3


def test_plot(ran):
    root, _ = ran
    done = polarize("bench", "plot", "out", cwd=root)
    assert done.returncode == 0, done.stderr
    assert len(list((root / "out" / "plots").iterdir())) == 6


def test_grids():
    names = polarize("bench", "grids").stdout
    for name in ("smoke", "cifar10-narrow", "paper-cifar10", "paper-gtsrb", "paper-tiny", "ablations"):
        assert name in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing", "--out", "o"), "grid: 'nothing' cannot be read"),
        (("run", "smoke", "--out", "o", "--attacks", "wanet"), "attacks: found ['wanet']"),
        (("run", "smoke", "--out", "o", "--data", "cifar10"), "data: found 'cifar10'"),
        (("run", "smoke", "--out", "o", "--jobs", "0"), "--jobs"),
        (("run", "smoke", "--out", "o", "--executor", "slurm"), "--executor"),
        (("run", "smoke", "--out", "o", "--device", "tpu9"), "device"),
        (("run", "smoke", "--out", "/dev/null/x"), "out"),
        (("table", "nowhere"), "found no record"),
        (("plot", "nowhere"), "found no record"),
    ],
)
def test_bad_requests_are_one_clear_error(arguments, message, tmp_path):
    done = polarize("bench", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
