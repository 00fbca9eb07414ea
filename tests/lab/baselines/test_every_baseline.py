"""What holds for every baseline."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neural_polarizer.errors import InputError
from neural_polarizer.lab import train
from neural_polarizer.lab.baselines.registry import BASELINES, build_baseline
from neural_polarizer.models.zoo import build_model

QUICK = {"epochs": 1, "teacher_epochs": 1, "rounds": 1, "search_steps": 4, "iterations": 3, "steps": 1}


def quick(name: str, **more):
    known = build_baseline(name, {}).options()
    return build_baseline(name, {k: v for k, v in QUICK.items() if k in known} | {"batch_size": 16} | more)


def clean(channels: int = 3, side: int = 8, count: int = 24):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, side, side, generator=generator)
    return images, torch.arange(count) % 3


def network(arch: str = "small_resnet", **options) -> nn.Module:
    return build_model(arch, classes=3, **({"width": 4} | options))


def state(model: nn.Module):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", BASELINES)
def test_the_model_stays_as_it_is_and_a_seed_gives_the_same_bits(name):
    model = network()
    model.train()
    model.layer1.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    hooks = {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()}
    before, wanted = state(model), [p.requires_grad for p in model.parameters()]
    first = quick(name)(model, clean(), seed=3, progress=False)
    again = quick(name)(model, clean(), seed=3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()} == hooks
    assert all(p.grad is None for p in model.parameters())
    assert first.model is not model
    assert not first.model.training
    assert [p.requires_grad for p in first.model.parameters()] == wanted
    assert list(first.model.state_dict()) == list(before)
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.notes == again.notes
    json.dumps(first.notes)
    assert first.parameters >= 0
    assert torch.isfinite(first.model(clean()[0])).all()


@pytest.mark.parametrize("name", BASELINES)
def test_on_grey_images_without_labels(name):
    model = network(channels=1)
    done = quick(name)(model, clean(channels=1)[0], progress=False)
    assert done.model(clean(channels=1)[0]).shape == (24, 3)


@pytest.mark.parametrize("name", BASELINES)
def test_on_a_vit(name):
    model = network("transformers:vit", width=16, depth=2, size=8)
    if name in ("clp", "bnp"):
        with pytest.raises(InputError, match="found no BatchNorm"):
            quick(name)(model, clean(), progress=False)
        return
    done = quick(name, shift=1, mirror=True)(model, clean(), progress=False)
    assert torch.isfinite(done.model(clean()[0])).all()


@pytest.mark.parametrize("name", BASELINES)
def test_it_says_what_it_costs(name):
    baseline = build_baseline(name, {})
    assert baseline.passes(2500, 10) >= baseline.passes(250, 10) >= 0
    assert build_baseline(name, baseline.options()) == baseline
    assert json.loads(json.dumps(baseline.options())) == baseline.options()


def test_any_form_of_the_clean_set():
    images, labels = clean()
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    first = quick("ft")(network(), (images, labels), progress=False)
    second = quick("ft")(network(), loader, progress=False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fft", {}, "defence: found 'fft'"),
        ("ft", {"epoch": 3}, "ft takes no 'epoch'"),
        ("ft", {"epochs": 0}, "epochs: found 0"),
        ("ft", {"epochs": "3"}, "epochs of ft"),
        ("ft", {"lr": 0.0}, "lr: found 0.0"),
        ("ft", {"lr": float("nan")}, "lr of ft"),
        ("anp", {"alpha": 1.5}, "alpha: found 1.5"),
        ("fp", {"tolerance": -0.1}, "tolerance: found -0.1"),
        ("nc", {"factor": 1.0}, "factor: found 1.0"),
        ("ibau", {"fixed_point": 0}, "fixed_point: found 0"),
        ("clp", {"u": -1.0}, "u: found -1.0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(InputError) as error:
        build_baseline(name, options)
    assert message in str(error.value)


def test_bad_clean_sets():
    images, labels = clean()
    for bad, message in (
        ((images * 255, labels), "clean: found values"),
        ((images, labels + 3), "clean: found labels from 3"),
        ((images[:0], labels[:0]), "found no image"),
        ("here", "clean: found str"),
    ):
        with pytest.raises(InputError, match=message):
            quick("ft")(network(), bad, progress=False)
    with pytest.raises(InputError, match="device"):
        quick("ft")(network(), clean(), device="tpu9", progress=False)


def test_half_way_copies_share_nothing():
    model = network()
    done = quick("clp")(model, clean(), progress=False)
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in done.model.parameters():
            p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_what_the_processor_is_made_for(monkeypatch, native):
    monkeypatch.setattr(train, "native_bfloat16", lambda device: native)
    wide, narrow = (
        state(quick("ft")(network(), clean(), precision=precision, progress=False).model)
        for precision in ("float32", "bfloat16")
    )
    assert all(torch.equal(value, narrow[key]) for key, value in wide.items()) == (not native)
