"""`polarize purify`, `layers` and `screen`, as a user would: a file, a folder of images, a verdict."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from neural_polarizer import PolarizedModel
from neural_polarizer.cli import main
from neural_polarizer.errors import InputError
from neural_polarizer.lab.clean_folder import check_classes, read_clean
from neural_polarizer.lab.datasets.images import write_image
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.zoo import build_model

ARCH = "small_resnet"


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["polarize", *map(str, arguments)])
    try:
        main()
    except SystemExit as left:
        return left.code or 0
    return 0


@pytest.fixture
def place(tmp_path, few_views) -> Path:
    """A state dict, and twenty labelled images of five classes."""
    model = build_model(ARCH, classes=5, width=4, seed=0)
    model.fc.weight.data *= 30  # predictions that differ from image to image
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    order = torch.Generator().manual_seed(0)
    for i in range(20):
        folder = tmp_path / "clean" / str(i % 5)
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{i}.png", torch.rand(3, 8, 8, generator=order))
    return tmp_path


def asked(place: Path, *more) -> tuple:
    return ("--model", place / "model.safetensors", "--arch", ARCH, "--clean", place / "clean", *more)


def test_purify_writes_a_polarizer_a_report_and_the_figures(place, monkeypatch, capsys):
    out = place / "out"
    status = run(monkeypatch, "purify", *asked(place, "--out", out, "--layer", "fc", "--max-accuracy-drop", "1"))
    said = capsys.readouterr()
    assert status == 0
    assert "On 4 clean images that no fit has seen, clean accuracy went from" in said.out
    assert "Purified: " in said.out
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "polarizer", "report.html"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["status"] == 0
    assert metrics["layer"] == "fc"
    assert metrics["choice"]["held_back"] == 4
    assert metrics["polarizer_bytes"] == (out / "polarizer" / "polarizer.safetensors").stat().st_size
    base = read_checkpoint(place / "model.safetensors", arch=ARCH)
    purified = PolarizedModel.from_pretrained(base, out / "polarizer")
    own, everything = purified.get_nb_trainable_parameters()
    assert metrics["parameters"] == {"added": own, "base": everything - own}
    assert metrics["verdict"][1].split("(")[0] in (out / "report.html").read_text()


def test_a_budget_that_nothing_keeps_is_status_3_and_the_original_model(place, monkeypatch, capsys):
    from neural_polarizer import choose

    monkeypatch.setattr(choose.Chooser, "drop", lambda self, pool, g: (0.5, 0.1))
    out = place / "out"
    assert run(monkeypatch, "purify", *asked(place, "--out", out, "--layer", "fc", "--method", "npd", "--json")) == 3
    metrics = json.loads(capsys.readouterr().out)
    assert not metrics["within_budget"]
    assert "changes nothing" in metrics["verdict"][0]
    base = read_checkpoint(place / "model.safetensors", arch=ARCH)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    same = PolarizedModel.from_pretrained(base, out / "polarizer")
    torch.testing.assert_close(same(x), base(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(PolarizedModel.from_pretrained(base, out / "over_budget")(x), base(x), atol=1e-4)


@pytest.mark.parametrize("believed", [False, True])
def test_a_suspect_that_was_cleared_is_told_with_why_and_images_with_its_trigger_are_named(
    place, monkeypatch, capsys, believed
):
    from neural_polarizer import choose

    attempt = choose.attempt

    def led(*args, **options):
        made = attempt(*args, **options)
        return replace(made, suspicion=replace(made.suspicion, excess=(0.0, 0.41, 0.0, 0.0, 0.0)))

    def clears(self, cut, method, first):
        if believed or self.suspect is None:
            return False
        self.turn_to(None)
        return True

    def found(self, *args, told=choose.Chooser.verdict):
        self.poisoned = tuple(range(11)) if believed else ()
        return told(self, *args)

    monkeypatch.setattr(choose, "attempt", led)
    monkeypatch.setattr(choose.Chooser, "clears", clears)
    monkeypatch.setattr(choose.Chooser, "verdict", found)
    run(monkeypatch, "purify", *asked(place, "--out", place / "out", "--layer", "fc", "--max-accuracy-drop", "1"))
    said = capsys.readouterr().out
    named = "11 of the clean images seem to carry its trigger (counted from 0: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)"
    assert (named in said) == ("seem to carry its trigger" in said) == believed
    assert len(json.loads((place / "out" / "metrics.json").read_text())["choice"]["poisoned"]) == 11 * believed
    assert "One class stands out as if it were a backdoor's target: 1, reached by 41% more" in said
    assert ("It was cleared" in said) == (not believed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-accuracy-drop", "2"), "max_accuracy_drop: found 2.0"),
        (("--layer", "nowhere"), "layer: found 'nowhere'"),
        (("--device", "abacus"), "device: found 'abacus'"),
        (("--classes", "4"), "small_resnet"),
        (("--normalization", "mars"), "normalization: found 'mars'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, "purify", *asked(place, "--out", place / "out", *arguments)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("polarize: ")
    assert message in said
    assert not (place / "out").exists()


def test_layers_marks_what_auto_tries(place, monkeypatch, capsys):
    given = ("layers", "--model", place / "model.safetensors", "--arch", ARCH, "--size", "8")
    assert run(monkeypatch, *given, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {i["name"] for i in found if i["tried"]} == {"layer3", "layer3.conv1"}
    assert run(monkeypatch, *given) == 0
    assert "layer3.conv1 *" in capsys.readouterr().out


def test_screen_ranks_and_survives_a_bad_file(place, monkeypatch, capsys):
    models = place / "models"
    models.mkdir()
    (place / "model.safetensors").rename(models / "a.safetensors")
    (models / "b.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.")
    out = place / "screen.json"
    status = run(
        monkeypatch, "screen", models, "--arch", ARCH, "--clean", place / "clean", "--out", out, "--json"
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 1
    assert "b.pt" in said.err
    found = json.loads(said.out)
    assert [f["name"] for f in found] == ["a.safetensors", "b.pt"]
    assert 0 <= found[0]["score"] <= 1
    assert len(found[0]["excess"]) == 5
    assert found[1]["error"]
    assert json.loads(out.read_text())["models"] == found
    assert not Path("canary").exists()


def test_folders_of_numbers_are_class_indices(tmp_path):
    for name in ("0", "10", "2"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "x.png", torch.zeros(3, 4, 4))
    images, labels, names = read_clean(tmp_path, progress=False)
    assert images.shape == (3, 3, 4, 4)
    assert sorted(labels.tolist()) == [0, 2, 10]
    assert names == ("0", "2", "10")
    check_classes(labels, names, 11)
    with pytest.raises(InputError, match="a folder for class 10, the model has 10"):
        check_classes(labels, names, 10)


def test_other_folders_are_counted_and_loose_images_have_no_label(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / "named" / name).mkdir(parents=True)
        write_image(tmp_path / "named" / name / "x.png", torch.zeros(3, 4, 4))
    _, labels, names = read_clean(tmp_path / "named", progress=False)
    assert names == ("cat", "dog")
    assert labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="found 2 folders, the model has 3 classes"):
        check_classes(labels, names, 3)
    (tmp_path / "loose").mkdir()
    write_image(tmp_path / "loose" / "x.png", torch.zeros(3, 4, 4))
    assert read_clean(tmp_path / "loose", progress=False)[1:] == (None, ())
    write_image(tmp_path / "named" / "y.png", torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match=r"clean: 'y.png' lies beside folders"):
        read_clean(tmp_path / "named", progress=False)
