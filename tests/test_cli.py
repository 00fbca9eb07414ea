from __future__ import annotations

import json
import subprocess
import sys

import pytest

from neural_polarizer.lab import demo


def polarize(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neural_polarizer", *arguments], capture_output=True, text=True, timeout=300, **kwargs
    )


def test_demo_end_to_end(tmp_path):
    """What a newcomer sees: the promised figures for seed 0, and the files."""
    done = polarize("demo", "--out", "here/demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "here" / "demo"
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "polarizer", "report.html"]
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
    assert '"share": "target"' in done.stdout  # the FitConfig is printed
    assert "fit: " in done.stderr  # plain progress lines where there is no terminal
    assert "\r" not in done.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys; from neural_polarizer.cli import app; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "demo" in polarize("--help").stdout


def test_version():
    assert polarize("--version").stdout.startswith("neural-polarizer ")


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
