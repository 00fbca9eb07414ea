"""`polarize report`: the page again, from what `polarize purify` and `polarize demo` left."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from neural_polarizer.choose import held_back
from neural_polarizer.cli import main
from neural_polarizer.lab import demo
from neural_polarizer.lab.attacks.registry import build_attack
from neural_polarizer.lab.backdoor import Victim, train_backdoored
from neural_polarizer.lab.datasets.images import write_image
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.train import Recipe
from neural_polarizer.models.zoo import build_model

ARCH = "small_resnet"


def polarize(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    sys.argv = ["polarize", *map(str, arguments)]
    status = 0
    try:
        main()
    except SystemExit as left:
        status = left.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def write_images(folder: Path, count: int, seed: int, side: int = 16) -> None:
    order = torch.Generator().manual_seed(seed)
    for i in range(count):
        (folder / str(i % 10)).mkdir(parents=True, exist_ok=True)
        write_image(folder / str(i % 10) / f"{i}.png", torch.rand(3, side, side, generator=order))


@pytest.fixture(scope="module")
def purified(tmp_path_factory):
    """A file, a folder of clean images, and what `polarize purify` makes of them."""
    place = tmp_path_factory.mktemp("purified")
    model = build_model(ARCH, classes=10, width=4, seed=0)
    model.fc.weight.data *= 30  # predictions that differ from image to image
    safetensors.torch.save_file(model.state_dict(), place / "model.safetensors")
    write_images(place / "clean", 40, 0)
    before, sys.argv = sys.argv, [
        "polarize", "purify", "--model", str(place / "model.safetensors"), "--arch", ARCH, "--clean", str(place / "clean"),
        "--out", str(place / "out"), "--layer", "fc", "--method", "npd", "--max-accuracy-drop", "1",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as left:
        main()
    sys.argv = before
    assert not left.value.code
    return place


@pytest.fixture
def place(purified, tmp_path):
    """A copy of it, whose records name the copy."""
    shutil.copytree(purified, tmp_path / "copy")
    metrics = tmp_path / "copy" / "out" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(str(purified), str(tmp_path / "copy")))
    return tmp_path / "copy"


def test_the_same_page_again(purified, place, capsys):
    written = (place / "out" / "report.html").read_text()
    status, out, _ = polarize(capsys, "report", place / "out", "--json")
    assert status == 0
    told = json.loads(out)
    assert told["acc"]["before"]["images"] == 8, "the held-back fifth"
    assert told["images"] == "perturbed"
    assert len(told["classes"]) == 10
    again = (place / "out" / "report.html").read_text()
    assert again == written.replace(str(purified), str(place))
    status, out, _ = polarize(capsys, "report", place / "out", "--out", place / "other.html")
    assert status == 0
    assert "On 8 clean images that no fit has seen" in out
    assert (place / "other.html").read_text() == again


def test_clean_images_that_were_left_out_are_not_among_the_judges(place, capsys):
    path = place / "out" / "metrics.json"
    told = json.loads(path.read_text())
    rows, _ = held_back(40, 0)
    told["choice"]["poisoned"] = [int(rows[0]), int(rows[3])]
    path.write_text(json.dumps(told))
    status, out, _ = polarize(capsys, "report", place / "out", "--json")
    assert status == 0
    assert json.loads(out)["acc"]["before"]["images"] == 6


def test_a_real_trigger(place, capsys):
    data = load_dataset("digits", None)
    victim = Victim(data, ARCH, {"width": 4}, Recipe(epochs=1))
    train_backdoored(place / "bad", victim, build_attack("badnets", {"target": 2}), progress=False)
    status, out, _ = polarize(capsys, "report", place / "out", "--attack", place / "bad", "--json")
    assert status == 0
    told = json.loads(out)
    assert (told["images"], told["target"]) == ("triggered", 2)
    assert told["asr"]["before"]["images"] == told["ra"]["after"]["images"] < 8 + 1
    page = (place / "out" / "report.html").read_text()
    assert "the trigger of badnets, all to class 2" in page
    assert "triggered, truly" in page
    train_backdoored(place / "twin", victim, None, progress=False)
    status, _, said = polarize(capsys, "report", place / "out", "--attack", place / "twin")
    assert status == 2
    assert "holds a clean twin" in said


def test_other_images_judge_all_of_them(place, capsys):
    write_images(place / "test", 30, 5)
    shutil.rmtree(place / "clean")
    status, out, _ = polarize(capsys, "report", place / "out", "--test", place / "test", "--json")
    assert status == 0
    assert json.loads(out)["acc"]["after"]["images"] == 30


def test_a_model_that_moved_is_asked_for_and_can_be_named(place, capsys):
    (place / "model.safetensors").rename(place / "moved.safetensors")
    status, _, said = polarize(capsys, "report", place / "out")
    assert status == 2
    assert "say with --model where it lies" in said
    given = ("--model", place / "moved.safetensors", "--arch", ARCH)
    assert polarize(capsys, "report", place / "out", *given)[0] == 0


def test_what_does_not_belong_together_is_said(place, capsys):
    def told(*arguments) -> str:
        status, _, said = polarize(capsys, "report", *arguments)
        assert status == 2
        assert said.startswith("polarize: ")
        assert said.count("\n") == 1
        return said

    write_images(place / "small", 40, 0, side=8)
    assert "say so with --size" in told(place / "out", "--clean", place / "small")
    write_images(place / "few", 20, 0)
    assert "give the same ones, or others with --test" in told(place / "out", "--clean", place / "few")
    assert "say with --clean where the images lie" in told(place / "out", "--clean", place / "nowhere")
    assert "is no folder" in told(place / "out", "--out", place / "nowhere" / "r.html")
    assert "holds no metrics.json" in told(place)
    assert "name one of its folders: out" in told(place)
    assert "holds no metrics.json" in told(place / "nowhere")
    assert "device: found 'abacus'" in told(place / "out", "--device", "abacus")


def test_code_that_a_record_names_is_not_run(place, capsys):
    (place / "own.py").write_text(f"open({str(place / 'canary')!r}, 'w').write('run')\n")
    metrics = place / "out" / "metrics.json"
    values = json.loads(metrics.read_text())
    values["setting"]["arch"] = f"{place / 'own.py'}:make"
    metrics.write_text(json.dumps(values))
    status, _, said = polarize(capsys, "report", place / "out")
    assert status == 2
    assert "code that would be run; give --arch if you trust it" in said
    assert not (place / "canary").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("command"), "does not say that"),
        (lambda v: v.update(command="bench"), "does not say that"),
        (lambda v: v.update(setting=[]), "setting: found []"),
        (lambda v: v.update(verdict="all is well"), "verdict: found 'all is well'"),
        (lambda v: v.update(verdict=[]), "verdict: found []"),
        (lambda v: v.update(within_budget=1), "within_budget: found 1"),
        (lambda v: v.update(versions="1"), "versions: found '1'"),
        (lambda v: v.update(seconds=float("nan")), "seconds: found nan"),
        (lambda v: v.update(machine=None), "machine: found None"),
        (lambda v: v["setting"].update(model=7), "setting.model: found 7"),
        (lambda v: v["setting"].update(seed=-1), "setting.seed: found -1"),
        (lambda v: v["setting"].update(width=True), "setting.width: found True"),
        (lambda v: v["choice"].update(trials=[{}]), "choice.trials: found"),
        (lambda v: v["choice"]["trials"][0].update(score="high"), "choice.trials: found"),
        (lambda v: v["choice"].update(chosen="first"), "choice.chosen: found 'first'"),
        (lambda v: v["choice"]["suspicion"].update(excess=[9.0]), "choice.suspicion.excess: found [9.0]"),
        (lambda v: v["choice"]["suspicion"].update(reached=7), "choice.suspicion.reached: found 7"),
        (lambda v: v["choice"].update(poisoned=[40]), "choice.poisoned: found [40]"),
        (lambda v: v["choice"].update(poisoned=["0"]), "choice.poisoned: found ['0']"),
        (lambda v: v["choice"]["suspicion"].update(reached=[[0.5]]), "a share per class in every list"),
        (lambda v: v.pop("choice"), "choice.suspicion.excess: found None"),
    ],
)
def test_records_of_strangers(change, message, place, capsys):
    metrics = place / "out" / "metrics.json"
    values = json.loads(metrics.read_text())
    change(values)
    metrics.write_text(json.dumps(values))
    status, out, said = polarize(capsys, "report", place / "out")
    assert (status, out) == (2, "")
    assert message in said
    assert said.count("\n") == 1


def test_the_page_of_a_demo_again(tmp_path, monkeypatch, capsys, short_rounds):
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=1))
    monkeypatch.setattr(demo, "SIZE", 16)
    demo.run_demo(tmp_path, progress=False)
    (tmp_path / "npd").mkdir()  # as with --all-methods: a folder per method beside the one network
    for name in ("metrics.json", "polarizer"):
        (tmp_path / name).rename(tmp_path / "npd" / name)
    metrics = json.loads((tmp_path / "npd" / "metrics.json").read_text())
    status, _, said = polarize(capsys, "report", tmp_path)
    assert status == 2
    assert "name one of its folders: npd" in said
    status, out, _ = polarize(capsys, "report", tmp_path / "npd", "--json")
    assert status == 0
    told = json.loads(out)
    assert told["asr"]["after"]["share"] == pytest.approx(metrics["after"]["asr"])
    assert told["acc"]["before"]["share"] == pytest.approx(metrics["before"]["acc"])
    assert "after npd" in (tmp_path / "npd" / "report.html").read_text()
    status, _, said = polarize(capsys, "report", tmp_path / "npd", "--clean", tmp_path)
    assert status == 2
    assert "clean: found one for a folder of `polarize demo`" in said
    values = {**metrics, "method": "../npd"}
    (tmp_path / "npd" / "metrics.json").write_text(json.dumps(values))
    assert polarize(capsys, "report", tmp_path / "npd")[0] == 2
