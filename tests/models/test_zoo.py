from __future__ import annotations

import json
import pickle
import struct

import pytest
import safetensors.torch
import torch

from neural_polarizer import InputError
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.elsewhere import FAMILIES
from neural_polarizer.models.vgg import VGG11BN, VGG19BN
from neural_polarizer.models.zoo import ARCHITECTURES, build_model, load_model, save_model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saved_and_loaded(arch, tmp_path):
    options = {"classes": 7, "width": 4, "channels": 1, "seed": 3}
    net = build_model(arch, **options)
    save_model(tmp_path / "m", net, arch, options)
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator())
    assert torch.equal(load_model(tmp_path / "m")(x), net(x))
    from_file = read_checkpoint(tmp_path / "m" / "model.safetensors", arch=arch, classes=7, width=4, channels=1)
    assert torch.equal(from_file(x), net(x))
    assert not net.training


def test_preact_resnet18_has_backdoorbench_names_and_sizes():
    net = build_model("preact_resnet18", classes=10)
    assert sum(p.numel() for p in net.parameters()) == 11_171_146
    state = net.state_dict()
    assert state["layer4.0.shortcut.0.weight"].shape == (512, 256, 1, 1)
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "layer4.1.conv2.weight", "linear.bias"} <= set(state)
    assert sum(p.numel() for p in build_model("preact_resnet18", classes=10, width=16).parameters()) == 700_762


def test_vgg19_bn_has_backdoorbench_names_and_sizes():
    with torch.device("meta"):
        net = VGG19BN(classes=10)
    assert sum(p.numel() for p in net.parameters()) == 139_622_218
    state = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert state["features.0.weight"] == (64, 3, 3, 3)
    assert state["features.1.running_mean"] == (64,)
    assert state["features.49.weight"] == (512, 512, 3, 3)
    assert state["classifier.0.weight"] == (4096, 25088)
    assert state["classifier.6.bias"] == (10,)
    assert len(state) == 16 * 7 + 6
    small = build_model("vgg19_bn", classes=10, width=8)
    for side in (28, 32, 40):
        assert small(torch.zeros(1, 3, side, side)).shape == (1, 10)


def test_vgg11_bn_has_torchvisions_names_and_sizes_and_may_pool_less():
    with torch.device("meta"):
        net = VGG11BN(classes=1000)
    assert sum(p.numel() for p in net.parameters()) == 132_868_840
    assert {"features.25.weight", "features.26.running_var", "classifier.6.bias"} <= set(net.state_dict())
    small = build_model("vgg11_bn", classes=10, width=4, pooled=1)
    assert small.state_dict()["classifier.0.weight"].shape == (256, 32)
    wide = build_model("vgg11_bn", classes=10, width=4)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert small.avgpool(small.features(images)).shape == (2, 32, 1, 1)
    assert wide.avgpool(wide.features(images)).shape == (2, 32, 7, 7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_transformers_by_name(name, channels, size, tmp_path):
    options = {"classes": 7, "channels": channels, "size": size, "seed": 2}
    arch = f"transformers:{name}"
    if name == "efficientnet" and size < 32:
        with pytest.raises(InputError, match="needs images of 32 pixels"):
            build_model(arch, **options)
        return
    net = build_model(arch, **options)
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, build_model(arch, **options)(images))
        other = build_model(arch, **{**options, "seed": 3})
        assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
        save_model(tmp_path / "m", net, arch, options)
        assert torch.equal(load_model(tmp_path / "m")(images), logits)


def test_transformers_with_width_and_depth():
    sizes = [
        sum(p.numel() for p in build_model("transformers:vit", classes=3, width=w, depth=d).parameters())
        for w, d in ((32, 1), (64, 1), (64, 2))
    ]
    assert sizes[0] < sizes[1] < sizes[2]


class FakeTimm:
    @staticmethod
    def list_models():
        return ["small"]

    @staticmethod
    def create_model(name, num_classes, in_chans, pretrained):
        assert not pretrained
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_chans * 64, num_classes))


def test_timm_and_torchvision_where_installed(monkeypatch):
    """Neither can be imported beside this CPU build of torch: the calls are checked against a stand-in."""
    import sys

    monkeypatch.setitem(sys.modules, "timm", FakeTimm)
    net = build_model("timm:small", classes=4, channels=1, size=8)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(InputError, match="timm knows no 'large'"):
        build_model("timm:large", classes=4)
    with pytest.raises(InputError, match="neither width nor depth"):
        build_model("timm:small", classes=4, width=3)
    for missing in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(InputError, match=f"{missing} cannot be imported here.*pip install {missing}"):
            build_model(f"{missing}:small", classes=4)


def test_same_seed_same_weights_and_no_global_draw():
    a, b, c = (build_model("small_resnet", classes=3, width=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet", {"classes": 2}, "arch: found 'resnet'"),
        ("small_resnet", {"classes": 2, "widht": 4}, "'width'"),
        ("transformers:bert", {"classes": 2}, "arch: found 'bert'"),
        ("transformers:vit", {"classes": 2, "heads": 4}, "'heads'"),
        ("transformers:mobilenet_v2", {"classes": 2, "depth": 3}, "depth"),
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
    with pytest.raises(InputError, match="is a pickle that calls .*open"):
        read_checkpoint(pickled)
    weights.write_bytes(good_weights)
    with pytest.raises(InputError, match="does not say what it is"):
        read_checkpoint(weights)
    with pytest.raises(InputError, match="says 'small_resnet'"):
        load_model(folder, arch="preact_resnet18")
    import os

    assert not os.path.exists("/tmp/neural_polarizer_was_here")
