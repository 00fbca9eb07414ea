from __future__ import annotations

import json
import pickle
import struct

import pytest
import safetensors.torch
import torch

from neural_polarizer import InputError
from neural_polarizer.models.zoo import ARCHITECTURES, build_model, load_model, save_model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saved_and_loaded(arch, tmp_path):
    options = {"classes": 7, "width": 4, "channels": 1, "seed": 3}
    net = build_model(arch, **options)
    save_model(tmp_path / "m", net, arch, options)
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator())
    assert torch.equal(load_model(tmp_path / "m")(x), net(x))
    from_file = load_model(tmp_path / "m" / "model.safetensors", arch=arch, classes=7, width=4, channels=1)
    assert torch.equal(from_file(x), net(x))
    assert not net.training


def test_preact_resnet18_has_backdoorbench_names_and_sizes():
    net = build_model("preact_resnet18", classes=10)
    assert sum(p.numel() for p in net.parameters()) == 11_171_146
    state = net.state_dict()
    assert state["layer4.0.shortcut.0.weight"].shape == (512, 256, 1, 1)
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "layer4.1.conv2.weight", "linear.bias"} <= set(state)
    assert sum(p.numel() for p in build_model("preact_resnet18", classes=10, width=16).parameters()) == 700_762


def test_same_seed_same_weights_and_no_global_draw():
    a, b, c = (build_model("small_resnet", classes=3, width=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet", {"classes": 2}, "arch: found 'resnet'"),
        ("small_resnet", {"classes": 2, "widht": 4}, "'width'"),
        ("small_resnet", {"classes": 10**9}, "up to 4096"),
        ("small_resnet", {"classes": 2.5}, "whole number"),
        ("small_resnet", {"classes": "2"}, "wanted a number"),
        ("small_resnet", {"classes": 2, "width": -4}, "width"),
        ("small_resnet", {}, "cannot be built"),
    ],
)
def test_bad_requests(arch, options, message):
    with pytest.raises(InputError, match=message):
        build_model(arch, **options)


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/neural_polarizer_was_here", "w"))


def test_hostile_model_folders(tmp_path):
    folder = tmp_path / "m"
    options = {"classes": 3, "width": 4}
    net = build_model("small_resnet", **options)
    save_model(folder, net, "small_resnet", options)
    weights, card = folder / "model.safetensors", folder / "model.json"
    good_weights, good_card = weights.read_bytes(), card.read_text()
    for text in ("", "[]", '{"arch": 3}', '{"arch": "small_resnet"}', '{"arch": "os", "options": {}}',
                 json.dumps({"arch": "small_resnet", "options": {"classes": 1e30}}),
                 json.dumps({"arch": "small_resnet", "options": {"classes": [3]}}),
                 json.dumps({"arch": "small_resnet", "options": {"classes": 4, "width": 4}})):  # fmt: skip
        card.write_text(text)
        with pytest.raises(InputError):
            load_model(folder)
    card.write_text(good_card)
    nan = {k: v.clone() for k, v in net.state_dict().items()}
    nan["fc.bias"][0] = float("nan")
    absurd = json.dumps({"fc.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}).encode()
    for content in (b"", good_weights[:100], good_weights[:-8], pickle.dumps(Evil()), safetensors.torch.save(nan),
                    struct.pack("<Q", len(absurd)) + absurd + b"0" * 8):  # fmt: skip
        weights.write_bytes(content)
        with pytest.raises(InputError):
            load_model(folder)
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="can run code"):
        load_model(pickled)
    weights.write_bytes(good_weights)
    with pytest.raises(InputError, match="does not say what it is"):
        load_model(weights)
    with pytest.raises(InputError, match="says 'small_resnet'"):
        load_model(folder, arch="preact_resnet18")
    import os

    assert not os.path.exists("/tmp/neural_polarizer_was_here")
