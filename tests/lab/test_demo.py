"""What the demo writes, with next to no training; its figures are checked in test_cli.py and test_promises.py."""

from __future__ import annotations

import json

import pytest
import torch

from neural_polarizer import PolarizedModel
from neural_polarizer.lab import demo
from neural_polarizer.lab.datasets.images import image_files, read_image
from neural_polarizer.lab.train import Recipe
from neural_polarizer.methods import METHODS
from neural_polarizer.models.zoo import load_model


@pytest.fixture
def quick(monkeypatch, short_rounds):
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=1))
    monkeypatch.setattr(demo, "SIZE", 16)


def test_all_methods(quick, tmp_path):
    results = demo.run_demo(tmp_path, methods=METHODS, progress=False)
    assert [r.method for r in results] == list(METHODS)
    assert len({r.before for r in results}) == 1  # one network for all
    assert len(demo.table_of(results)) == 2 + len(METHODS)
    page = (tmp_path / "report.html").read_text()
    for r in results:
        metrics = json.loads((tmp_path / r.method / "metrics.json").read_text())
        assert metrics["after"] == r.after.to_dict()
        assert metrics["parameters"] == sum(p.numel() for p in r.purified.polarizer.parameters())
        assert list(metrics["setting"]["config"]) == [r.method]
        assert f"after {r.method}" in page


def test_what_is_written_can_be_used(quick, tmp_path):
    (result,) = demo.run_demo(tmp_path, methods=["e-cnpd"], progress=False)
    model = load_model(tmp_path / "model")
    purified = PolarizedModel.from_pretrained(model, tmp_path / "polarizer")
    files = image_files(tmp_path / "images")
    assert len(files) == 2 * demo.SAMPLES
    images = torch.stack([read_image(f, purified.image_shape) for f in files])
    torch.testing.assert_close(purified(images), result.purified(images), atol=0, rtol=0)
    clean, triggered = images[: demo.SAMPLES], images[demo.SAMPLES :]
    torch.testing.assert_close(triggered, demo.BadNets().trigger(clean))
    report = (tmp_path / "report.html").read_text()
    assert "a 3x3 patch (BadNets)" in report
    assert report.count("<img") == 2 * 6 + 2 * 10 + 1  # six pairs, two patterns per class, the matrix


def test_the_clean_set_is_small_and_unseen():
    scene_data = demo.digits(size=demo.SIZE, seed=0)
    clean, rest = (
        scene_data.train.take(rows) for rows in scene_data.hold_back(int(demo.CLEAN_SHARE * len(scene_data.train)), 0)
    )
    assert len(clean) <= 0.1 * len(scene_data.train)
    assert len(clean) + len(rest) == len(scene_data.train)
