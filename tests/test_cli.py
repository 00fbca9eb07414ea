from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from neural_polarizer.cli import main
from neural_polarizer.lab import demo


def spawned(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which takes seconds to import torch."""
    return subprocess.run(
        [sys.executable, "-m", "neural_polarizer", *arguments], capture_output=True, text=True, timeout=300, **kwargs
    )


def polarize(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this one."""
    out, err, before, status = StringIO(), StringIO(), sys.argv, 0
    sys.argv = ["polarize", *arguments]
    try:
        with chdir(cwd or Path.cwd()), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as left:
        status = left.code or 0
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


def test_demo_end_to_end(tmp_path):
    """What a newcomer sees: the promised figures for seed 0, and the files."""
    done = spawned("demo", "--out", "here/demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "here" / "demo"
    assert sorted(p.name for p in out.iterdir()) == ["images", "metrics.json", "model", "polarizer", "report.html"]
    metrics = json.loads((out / "metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert before["acc"] >= 0.95
    assert before["asr"] >= 0.95
    assert after["asr"] <= 0.05
    assert after["ra"] >= 0.80
    assert before["acc"] - after["acc"] <= 0.02
    assert metrics["der"] == pytest.approx(
        (before["asr"] - after["asr"] - max(0, before["acc"] - after["acc"]) + 1) / 2
    )
    assert metrics["seed"] == 0
    assert metrics["setting"]["clean images"] <= 0.1 * 1438
    assert "after npd" in done.stdout
    chosen = re.search("npd, chosen from the clean images alone: before '([^']+)'", done.stdout)
    assert chosen is not None
    assert chosen[1] in ("layer3", "layer3.conv1")  # which of the candidates depends on the machine
    assert "FitConfig.in_rounds() with {" in done.stdout
    assert "perturb: " in done.stderr  # plain progress lines where there is no terminal
    assert "\r" not in done.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys; from neural_polarizer.cli import app; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "demo" in spawned("--help").stdout


@pytest.mark.parametrize(("own", "then"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_for_each_other_sleep_unless_the_user_says_no(own, then):
    """It is said before torch is loaded, which reads it once."""
    code = (
        "import os, sys; from neural_polarizer.cli import main; sys.argv = ['polarize', '--version']\n"
        "try: main()\nexcept SystemExit: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": own} if own else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{then} False"


def test_version():
    assert spawned("--version").stdout.startswith("neural-polarizer ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--method", "nbd"), "npd"),
        (("demo", "--seed", "-1"), "--seed"),
        (("demo", "--device", "tpu9"), "device"),
        (("demo", "--out", "/dev/null/x"), "out"),
        (("purge",), "purge"),
    ],
)
def test_bad_requests_are_one_clear_error(arguments, message, tmp_path):
    done = polarize(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_demo_keeps_its_promise_about_data():
    assert demo.CLEAN_SHARE <= 0.1


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A model folder, a polarizer for it and a folder of images, as the demo leaves them, in seconds."""
    from neural_polarizer import FitConfig, purify
    from neural_polarizer.lab.datasets.digits import digits
    from neural_polarizer.lab.datasets.images import write_image
    from neural_polarizer.models.zoo import build_model, save_model

    out = tmp_path_factory.mktemp("scene")
    options = {"classes": 10, "width": 4}
    net = build_model("small_resnet", **options)
    save_model(out / "model", net, "small_resnet", options)
    images = digits().test.floats()[:7]
    purified = purify(net, images, method="e-cnpd", layer="layer3", config=FitConfig(epochs=1), progress=False)
    purified.polarizer.weight.data += 0.3
    purified.save_pretrained(out / "polarizer")
    (out / "images" / "below").mkdir(parents=True)
    for i, image in enumerate(images):
        write_image(out / "images" / ("below" if i % 2 else "") / f"{i}.png", image)
    return out, purified, images


def detect(out, *more: str):
    return polarize(
        "detect", "--polarizer", "polarizer", "--model", "model", "--images", "images", "--out", "s.csv", *more, cwd=out
    )


def test_detect(scene):
    import csv

    out, purified, images = scene
    (out / "images" / "broken.png").write_bytes(b"no image")
    done = detect(out, "--json")
    (out / "images" / "broken.png").unlink()
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stderr
    assert "broken.png" in done.stderr
    rows = list(csv.DictReader((out / "s.csv").open()))
    assert list(rows[0]) == ["path", "original_class", "purified_class", "score"]
    assert len(rows) == 7
    scores = [float(r["score"]) for r in rows]
    assert scores == sorted(scores, reverse=True)
    said = purified.predict(images)
    for row in rows:
        i = int(row["path"].split("/")[-1][0])
        assert row["path"] == (f"below/{i}.png" if i % 2 else f"{i}.png")
        assert float(row["score"]) == pytest.approx(said.score[i].item(), abs=0.05)  # 8-bit files
        assert int(row["original_class"]) == said.original[i].argmax()
    summary = json.loads(done.stdout)
    assert summary["images"] == 7
    assert summary["unreadable"] == 1
    assert summary["suspect"] == sum(r["original_class"] != r["purified_class"] for r in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--polarizer", "nowhere"), "holds no polarizer"),
        (("--model", "nowhere"), "model"),
        (("--model", "polarizer"), "model.json"),
        (("--images", "nowhere"), "is no folder"),
        (("--out", "nowhere/s.csv"), "is no folder"),
        (("--arch", "preact_resnet18"), "says 'small_resnet'"),
    ],
)
def test_detect_bad_requests(scene, more, message):
    out = scene[0]
    (out / "s.csv").unlink(missing_ok=True)
    done = detect(out, *more)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not (out / "s.csv").exists()


def test_attack_and_its_folder(tmp_path):
    out = tmp_path / "x"
    arguments = ["attack", "--attack", "blended", "--option", "alpha=0.3", "--epochs", "1", "--width", "4",
                 "--hold-back", "100", "--out", str(out)]  # fmt: skip
    done = polarize(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    card = json.loads((out / "attack.json").read_text())
    assert card["metrics"]["acc"] == metrics["acc"]
    assert card["setting"]["attack"]["options"]["alpha"] == 0.3
    assert len(card["poisoned_rows"]) == round(0.1 * (1438 - 100))
    again = polarize(*arguments)
    assert again.returncode == 0
    assert "ACC" in again.stdout
    assert "train" not in again.stderr, "what is there is not trained again"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "badnet"], "attack: found 'badnet'"),
        (["--attack", "none", "--poisoning-ratio", "0.1"], "takes neither"),
        (["--attack", "blended", "--option", "alpha"], "wanted name=value"),
        (["--attack", "blended", "--option", "alpha=high"], "found 'high', wanted float"),
        (["--attack", "badnets", "--target", "none"], "target: found 'none'"),
        (["--attack", "badnets", "--target", "10"], "target: found 10"),
        (["--attack", "badnets", "--dataset", "mnist"], "dataset: found 'mnist'"),
        (["--attack", "badnets", "--dataset", "cifar10"], "data_dir: cifar10 needs"),
        (["--attack", "badnets", "--dataset", "cifar10", "--data-dir", "nowhere"], "or fetch https://"),
        (["--attack", "badnets", "--arch", "resnet"], "arch: found 'resnet'"),
        (["--attack", "badnets", "--hold-back", "5000"], "hold_back: found 5000"),
    ],
)
def test_attack_says_what_is_wrong(arguments, message, tmp_path):
    done = polarize("attack", "--out", str(tmp_path / "x"), *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x" / "attack.json").exists()


def test_attacks_in_one_table(tmp_path):
    arguments = ["attacks", "--only", "blended", "--epochs", "1", "--width", "4", "--out", str(tmp_path / "x")]
    done = polarize(*arguments)
    assert done.returncode == 0, done.stderr
    assert "development" in done.stdout
    (row,) = json.loads(polarize(*arguments, "--json").stdout)
    assert row["label"] == "blended"
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["attacks.json", "blended", "none", "triggers.png"]
    other = polarize(*arguments, "--epochs", "2")
    assert other.returncode == 2
    assert "another setting" in other.stderr
