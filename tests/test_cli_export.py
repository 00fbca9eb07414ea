"""`polarize export`, as a user would: a checkpoint and a saved polarizer in, one file out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from neural_polarizer import FitConfig, PolarizedModel, purify
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.zoo import build_model

from .nets import images, labels
from .test_cli_purify import run


def place(
    folder: Path, arch: str, layer: str, *, method: str = "npd", normalization: str | None = None, **options
) -> PolarizedModel:
    """A state dict and a polarizer for it, under `folder`."""
    model = build_model(arch, classes=5, **options)
    state = getattr(model, "model", model).state_dict()
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, folder / "model.safetensors")
    base = read_checkpoint(folder / "model.safetensors", arch=arch, normalization=normalization, **options)
    config = FitConfig(epochs=1, warmup_epochs=0, batch_size=8, mergeable=method == "npd")
    shape = (3, 32, 32)
    purified = purify(
        base,
        (images(8, shape=shape), labels(8)),
        method=method,
        layer=layer,
        config=config,
        progress=False,
        capture="hooks",
    )
    purified.save_pretrained(folder / "polarizer")
    return purified


def asked(folder: Path, arch: str, out: str, *more) -> tuple:
    given = ("--model", folder / "model.safetensors", "--arch", arch, "--polarizer", folder / "polarizer")
    return ("export", *given, "--out", folder / out, *more)


@pytest.mark.parametrize(("format", "method"), [("torch", "r-cnpd"), ("onnx", "e-cnpd"), ("onnx", "npd")])
def test_a_program(format, method, tmp_path, monkeypatch, capsys):
    purified = place(tmp_path, "small_resnet", "layer3.conv1", method=method, width=4)
    assert run(monkeypatch, *asked(tmp_path, "small_resnet", "x", "--format", format, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["largest_difference"] <= 1e-4
    assert told["bytes"] == (tmp_path / "x").stat().st_size
    assert (told["method"], told["layer"], told["format"]) == (method, "layer3.conv1", format)
    x = images(3, seed=5, shape=(3, 32, 32))
    if format == "torch":
        found = torch.export.load(tmp_path / "x").module()(x)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "x", providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    assert (found - purified(x)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("arch", "layer", "normalization", "options"),
    [
        ("small_resnet", "layer3.conv1", None, {"width": 4}),
        ("preact_resnet18", "model.layer4.1.conv1", "cifar10", {"width": 4}),
        ("transformers:vit", "model.vit.layers.0.mlp.fc1", "0.5,0.5,0.5/0.2,0.2,0.2", {"width": 32, "depth": 1}),
    ],
)
def test_merged_weights_are_a_checkpoint_like_the_one_that_was_read(
    arch, layer, normalization, options, tmp_path, monkeypatch, capsys
):
    if ":" in arch:
        options = {**options, "depth": 6}  # what the command line takes for granted
    purified = place(tmp_path, arch, layer, normalization=normalization, **options)
    more = ["--format", "safetensors"] + (["--normalization", normalization] if normalization else [])
    assert run(monkeypatch, *asked(tmp_path, arch, "clean.safetensors", *more)) == 0
    assert "differ from PyTorch's by at most" in capsys.readouterr().out
    before, after = (safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("model", "clean"))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    read = read_checkpoint(tmp_path / "clean.safetensors", arch=arch, normalization=normalization, **options)
    x = images(3, seed=5, shape=(3, 32, 32))
    found = read(x)
    assert (getattr(found, "logits", found) - purified(x)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "pickle"), "pickle"),
        (("--device", "abacus"), "device: found 'abacus'"),
        (("--polarizer", "nowhere"), "directory: 'nowhere' holds no polarizer"),
        (("--format", "safetensors"), "is not one affine map"),
        (("--out", "nowhere/x"), "out: 'nowhere' is no folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place(tmp_path, "small_resnet", "fc", method="e-cnpd", width=4)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(monkeypatch, *asked(tmp_path, "small_resnet", "x", *arguments)) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before
