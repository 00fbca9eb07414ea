"""One fit over two processes that talk through gloo: the same polarizer as that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neural_polarizer import FitConfig, InputError, purify
from neural_polarizer import spread as room
from neural_polarizer.spread import ALONE, Spread, spread, spread_out

from .nets import images, labels
from .spread_worker import METHODS, configs, fits
from .test_cli_purify import asked, place  # noqa: F401  (a fixture)
from .test_rounds import lively

ROOT = Path(__file__).parent.parent
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(command, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*TWO, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one process finds, and what each of two does."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("spread")
    done = started([str(ROOT / "tests" / "spread_worker.py"), str(folder)], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return fits(), [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", configs())
def test_two_processes_take_the_steps_of_one(both, kind, method):
    alone, (first, second) = both
    name = f"{kind} {method}"
    assert alone[name].keys() == first[name].keys()
    for key, value in alone[name].items():
        assert torch.equal(first[name][key], second[name][key]), "both hold the same bits"
        torch.testing.assert_close(first[name][key], value, atol=1e-8, rtol=1e-8)
    for key, value in alone[f"{name} told"].items():
        assert first[f"{name} told"][key] == pytest.approx(value, abs=1e-6), key


def test_the_polarizers_moved(both):
    alone, _ = both
    still = purify(
        lively("skips").double(), images(8).double(), method="npd", layer="block", progress=False,
        config=FitConfig(epochs=0, warmup_epochs=0),
    ).polarizer.state_dict()  # fmt: skip
    assert any(not torch.allclose(v.double(), alone["batch npd"][k].double()) for k, v in still.items())


def test_one_folder_is_written_once(place):  # noqa: F811
    pytest.importorskip("accelerate")
    out = place / "out"
    line = [
        "-m",
        "neural_polarizer",
        "purify",
        *asked(place, "--out", out, "--layer", "fc", "--method", "npd", "--json"),
    ]
    done = started(line, place)
    assert done.returncode in (0, 3) or "exitcode  : 3" in done.stderr, done.stderr[-3000:]
    metrics = json.loads(done.stdout[done.stdout.index("{") :])
    assert metrics == json.loads((out / "metrics.json").read_text()), "one process speaks"
    assert (out / "polarizer" / "polarizer.safetensors").exists()
    assert (out / "report.html").exists()


def test_parts_are_the_whole():
    for count in (2, 3, 7, 128):
        parts = [Spread(rank, 2).part(count) for rank in (0, 1)]
        rows = [i for part in parts for i in range(*part.rows.indices(count))]
        assert rows == list(range(count))
        assert sum(part.weight for part in parts) == pytest.approx(1)
    few = [Spread(rank, 4).part(3) for rank in range(4)]
    assert all(part == (slice(0, 3), 0.25, 4) for part in few)


def test_alone_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with spread_out(cpu=True) as processes:
        assert processes is ALONE is spread()
        x = torch.ones(3)
        assert processes.total(x) is x
        assert processes.whole(x, 3) is x
        assert processes.device_of("cuda") == "cuda"


def test_without_accelerate_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"pip install \"neural-polarizer\[distributed\]\""), spread_out(cpu=True):
        pass
    assert spread() is ALONE


@pytest.mark.parametrize(
    ("options", "message"),
    [({"statistics": "batch"}, "statistics: found 'batch' on 2"), ({"share": "batch"}, "share: found 'batch' on 2")],
)
def test_what_cannot_be_shared_is_refused(monkeypatch, options, message):
    monkeypatch.setattr(room, "_now", [Spread(0, 2)])
    config = FitConfig(epochs=1, **options)
    with pytest.raises(InputError, match=message):
        purify(lively("skips"), (images(8), labels(8)), method="npd", layer="block", config=config, progress=False)
