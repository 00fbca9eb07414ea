from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from neural_polarizer.errors import InputError
from neural_polarizer.lab.bench import work
from neural_polarizer.lab.bench.cells import cells_of
from neural_polarizer.lab.bench.executors import executor_of
from neural_polarizer.lab.bench.grid import Grid
from neural_polarizer.lab.bench.run import open_cells, run_cells
from neural_polarizer.lab.bench.store import Store, read_records
from neural_polarizer.lab.bench.work import Place

GRID = {
    "name": "tiny",
    "datasets": ["digits"],
    "architectures": [{"name": "small_resnet", "options": {"width": 4}}],
    "attacks": ["badnets"],
    "poisoning_ratios": [0.1],
    "clean": [40],
    "seeds": [0],
    "recipe": {"epochs": 3},
    "defences": ["none", {"name": "ft", "options": {"epochs": 2}}, {"name": "npd", "options": {"epochs": 1}}],
}


def cells(**changes):
    return cells_of(Grid.model_validate(GRID | changes))


def run(root, wanted, **options):
    place = Place(root)
    return run_cells(wanted, Store(root), executor_of("local", place), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    return root, run(root, cells())


def test_every_cell_has_a_record(finished):
    root, status = finished
    assert (status.finished, status.failed, status.networks_done) == (3, 0, 2)
    records = {r["labels"]["defence"]: r for r in read_records(root)}
    assert set(records) == {"none", "ft", "npd"}
    for cell in cells():
        record = records[cell.labels["defence"]]
        assert record["key"] == cell.key
        assert record["setting"] == json.loads(json.dumps(cell.setting()))
    none, npd = records["none"], records["npd"]
    assert none["after"] == none["before"] == npd["before"]
    assert none["der"] == 0.5
    assert none["auroc"] == 0.5
    assert npd["after"]["images"] == 359
    assert npd["parameters"] > 0
    assert npd["clean_images"] == 40
    assert npd["peak_mib"] > 50
    assert npd["seeds"] == {"network": 0, "defence": 0}
    assert set(npd["versions"]) >= {"torch", "neural-polarizer"}
    card = json.loads(next((root / "networks").glob("*/attack.json")).read_text())
    assert card["setting"]["hold_back"] == 40


def test_a_second_run_does_nothing(finished):
    root, _ = finished
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != ".lock"}
    status = run(root, cells())
    assert (status.cached, status.finished, status.networks) == (3, 0, 0)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_only_what_is_missing_is_done_and_comes_out_the_same(finished):
    root, _ = finished
    (npd,) = [c for c in cells() if c.labels["defence"] == "npd"]
    path = Store(root).record(npd.key)
    before = json.loads(path.read_text())
    path.write_text("{")  # a damaged record is a missing one
    status = run(root, cells())
    assert (status.cached, status.finished, status.networks) == (2, 1, 0)
    after = json.loads(path.read_text())
    for varying in ("seconds", "peak_mib"):
        del before[varying], after[varying]
    assert after == before


def test_the_record_says_what_evaluate_says(finished):
    from neural_polarizer.lab.backdoor import load_backdoored
    from neural_polarizer.lab.datasets.digits import digits
    from neural_polarizer.lab.evaluate import evaluate

    root, _ = finished
    cell = cells()[0]
    found = load_backdoored(Store(root).network(cell.network))
    wanted = evaluate(found.model, digits().test, found.attack, 10)
    (record,) = [r for r in read_records(root) if r["labels"]["defence"] == "none"]
    assert record["before"] == wanted.to_dict()
    twin = load_backdoored(Store(root).network(cell.network.twin))
    assert record["twin"] == evaluate(twin.model, digits().test, found.attack, 10).to_dict()


def test_some_test_images(finished):
    root, _ = finished
    few = cells(test_images=100, defences=["none"])
    run(root, few)
    record = json.loads(Store(root).record(few[0].key).read_text())
    assert record["after"]["images"] == 100
    rows = work.counted_rows(359, 100)
    assert len(rows.unique()) == 100
    assert torch.equal(rows, work.counted_rows(359, 100))


def test_clean_sets_grow_and_were_never_seen(finished):
    root, _ = finished
    cell = cells()[0]
    place = Place(root)
    data = work.data_of(cell.network, place)
    victim = work.victim_of(cell.network, data)
    small, large = (work.clean_set(data, victim, n, 0) for n in (20, 40))
    assert len(small) == 20
    assert len(large) == 40
    assert small.labels.bincount().tolist() == [2] * 10
    held = {image.numpy().tobytes() for image in data.train.take(victim.rows()[0]).images}
    assert {image.numpy().tobytes() for image in small.images} <= {i.numpy().tobytes() for i in large.images} <= held
    other = work.clean_set(data, victim, 20, 1)
    assert not torch.equal(other.images, small.images), "another seed, other images"


def test_baselines_augment_as_the_data_allow(finished, monkeypatch):
    """Unless the grid says otherwise."""
    from neural_polarizer.lab.baselines.ft import FT

    root, _ = finished
    seen = []

    def look(self, job):
        seen.append((self.shift, self.mirror))
        raise InputError("enough")

    monkeypatch.setattr(FT, "defend", look)
    moved = {"name": "ft", "label": "moved", "options": {"shift": 3}}
    run(root, cells(defences=[{"name": "ft", "options": {"epochs": 7}, "label": "usual"}, moved]))
    assert seen == [(1, False), (3, False)]


def test_the_cells_of_a_network_share_its_perturbed_images(finished, short_rounds, monkeypatch):
    root, _ = finished
    found, attempts_on = [], work.attempts_on
    monkeypatch.setattr(work, "_perturbed", work.Last())
    monkeypatch.setattr(work, "attempts_on", lambda *a, **k: (found.append(a), attempts_on(*a, **k))[1])
    options = {"method": "npd", "layer": "fc"}
    auto = [
        {"name": "auto", "label": n, "options": {**options, "max_accuracy_drop": d}}
        for n, d in zip("ab", (1, 0.5), strict=True)
    ]
    status = run(root, cells(defences=auto))
    assert (status.finished, status.failed, len(found)) == (2, 0, 1)
    records = [r for r in read_records(root) if r["labels"]["defence"] in "ab"]
    assert {r["notes"]["layer"] for r in records} == {"fc"}
    run(root, cells(defences=auto, clean=[30]))
    assert len(found) == 2, "other clean images, other perturbed ones"


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(finished, monkeypatch):
    root, _ = finished
    real = work.defend

    def broken(name, *args, **kwargs):
        if name == "ft":
            raise RuntimeError("out of luck")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(work, "defend", broken)
    wanted = cells(
        seeds=[0], defences=[{"name": "ft", "options": {"epochs": 1}}, {"name": "npd", "options": {"epochs": 2}}]
    )
    status = run(root, wanted)
    assert status.outcomes == {"done": 1, "refused": 0, "failed": 1}
    records = [json.loads(Store(root).record(c.key).read_text()) for c in wanted]
    assert [r["outcome"] for r in records] == ["failed", "done"]
    assert records[0]["error"] == "RuntimeError: out of luck"
    assert "Traceback" in Store(root).log(wanted[0].key).read_text()
    monkeypatch.undo()
    assert len(open_cells(wanted, Store(root))) == 1, "what failed is tried again"
    assert run(root, wanted).failed == 0


def test_a_refusal_is_no_failure(finished):
    """BNP wants BatchNorm, which a ViT has not."""
    root, _ = finished
    vit = [{"name": "transformers:vit", "options": {"width": 16, "depth": 1}, "layer": "model.classifier"}]
    wanted = cells(architectures=vit, defences=["bnp"], recipe={"epochs": 1})
    status = run(root, wanted)
    assert status.outcomes == {"done": 0, "refused": 1, "failed": 0}
    assert open_cells(wanted, Store(root)) == []


def test_a_network_that_cannot_be_trained_fails_its_cells_alone(tmp_path, monkeypatch):
    real = work.train_network

    def broken(network, place):
        if network.attack and network.attack["name"] == "blended":
            raise RuntimeError("diverged")
        return real(network, place)

    monkeypatch.setattr(work, "train_network", broken)
    status = run(tmp_path, cells(attacks=["blended", "badnets"], defences=["none"], recipe={"epochs": 1}))
    assert status.outcomes == {"done": 1, "refused": 0, "failed": 1}
    assert status.networks_lost == 1
    failed = [r for r in read_records(tmp_path) if r["outcome"] == "failed"]
    assert "could not be trained" in failed[0]["error"]


def test_an_interruption_keeps_what_was_finished(tmp_path, monkeypatch):
    real = work.defend

    def interrupted(name, *args, **kwargs):
        if name == "npd":
            raise KeyboardInterrupt
        return real(name, *args, **kwargs)

    monkeypatch.setattr(work, "defend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cells())
    assert sorted(r["labels"]["defence"] for r in read_records(tmp_path)) == ["ft", "none"]
    monkeypatch.undo()
    status = run(tmp_path, cells())
    assert (status.cached, status.finished, status.networks) == (2, 1, 0)


def test_a_full_disk_fails_the_cell_alone(finished, monkeypatch):
    root, _ = finished
    wanted = cells(defences=[{"name": "npd", "options": {"epochs": 3}}])

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    status = run(root, wanted)
    assert status.failed == 1
    assert "No space left" in status.last.error
    assert not Store(root).record(wanted[0].key).exists()


def test_no_time_left_begins_nothing(tmp_path):
    status = run(tmp_path, cells(), minutes=0)
    assert (status.finished, status.networks_done) == (0, 0)


def test_one_run_at_a_time(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another run is at work"):
        run(tmp_path, cells())


def script(root, jobs: str, body: str) -> str:
    return textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from neural_polarizer.lab.bench.cells import cells_of
        from neural_polarizer.lab.bench.executors import executor_of
        from neural_polarizer.lab.bench.grid import Grid
        from neural_polarizer.lab.bench.run import run_cells
        from neural_polarizer.lab.bench.store import Store
        from neural_polarizer.lab.bench.work import Place

        if __name__ == "__main__":
            grid = {GRID!r}
            cells = cells_of(Grid.model_validate(grid))
            place = Place(Path({str(root)!r}), threads=1)
            executor = executor_of({jobs})
            killed = []
        """
    ) + textwrap.indent(textwrap.dedent(body), "    ")


KILLS = """
def tell(status):
    # The first cell to begin loses its worker.
    if not killed and status.cached + status.finished and status.running:
        worker = next(iter(executor.pool._processes.values()))
        os.kill(worker.pid, signal.SIGKILL)
        killed.append(worker.pid)
status = run_cells(cells, Store(place.root), executor, tell=tell)
assert killed
assert status.finished == len(cells) and not status.failed, status
"""


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    path = tmp_path / "main.py"
    path.write_text(script(tmp_path / "out", '"local", place, jobs=2', KILLS))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(read_records(tmp_path / "out")) == 3


ON_RAY = """
grid["defences"] = ["none"] + [
    {"name": "npd", "label": f"npd {n}", "options": {"epochs": n}} for n in (4, 5, 6)
]
cells = cells_of(Grid.model_validate(grid))

def workers():
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"ray::perform"):
                yield int(process.name)
        except OSError:
            pass

def tell(status):
    if not killed and status.finished and status.running:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            break
status = run_cells(cells, Store(place.root), executor, tell=tell)
assert killed
assert status.finished == len(cells) and not status.failed, status
"""


@pytest.mark.slow
def test_on_a_ray_cluster_that_loses_a_worker(tmp_path):
    pytest.importorskip("ray")
    path = tmp_path / "main.py"
    path.write_text(script(tmp_path / "out", '"ray", place, jobs=2', ON_RAY))
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_records(tmp_path / "out")) == 4


def test_networks_that_are_trained_already_are_copied(tmp_path, monkeypatch):
    """The same records without a training; a network that is not what its key says is refused."""
    root = tmp_path / "first"
    run(root, cells())
    networks = {n.key: n for c in cells() for n in (c.network, c.network.twin)}
    store = Store(tmp_path / "second")
    store.make()
    assert store.adopt(root / "networks", networks.values()) == 2
    assert store.adopt(root / "networks", networks.values()) == 0
    monkeypatch.setattr("neural_polarizer.lab.backdoor.train", lambda *a, **k: pytest.fail("trained again"))
    status = run(store.root, cells())
    assert (status.finished, status.failed) == (3, 0)
    for record in read_records(root):
        again = next(r for r in read_records(store.root) if r["key"] == record["key"])
        assert again["after"] == record["after"]
    with pytest.raises(InputError, match="networks: .* is no folder"):
        store.adopt(tmp_path / "nowhere", [])

    other = Store(tmp_path / "other")
    other.make()
    mine, twin = sorted(networks.values(), key=lambda n: n.attack is None)
    shutil.copytree(root / "networks" / twin.key, tmp_path / "wrong" / mine.key)
    assert other.adopt(tmp_path / "wrong", [mine]) == other.adopt(root / "networks", [twin]) == 1
    with pytest.raises(InputError, match="another setting"):
        work.train_network(mine, Place(tmp_path / "other"))
