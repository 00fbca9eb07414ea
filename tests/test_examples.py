"""The examples do what they say: the notebook is executed, the script is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow  # what it does, the demo of test_cli.py does on the command line
def test_the_notebook_runs(tmp_path):
    """Its own assertions compare the attack's success before and after."""
    pytest.importorskip("nbmake")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(EXAMPLES / "quickstart.ipynb")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_notebook_carries_no_old_output():
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any(cell["cell_type"] == "code" for cell in cells)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
def test_the_vision_transformer_is_purified(tmp_path):
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "huggingface_vit.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"]["acc"] >= 0.9
    assert found["before"]["asr"] >= 0.9
    assert found["after"]["asr"] <= 0.5 * found["before"]["asr"]
    assert found["before"]["acc"] - found["after"]["acc"] <= 0.05
