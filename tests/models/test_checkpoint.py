from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from neural_polarizer import InputError, with_normalization
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.normalization import NORMALIZATIONS, statistics_of
from neural_polarizer.models.zoo import build_model, load_model, save_model

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = {
    "preact_resnet18": {"classes": 7, "width": 4},
    "small_resnet": {"classes": 3, "width": 8},
    "vgg19_bn": {"classes": 12, "width": 2},
}


def logits(net: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return net(IMAGES)


@pytest.mark.parametrize("arch", SMALL)
def test_width_classes_and_channels_are_read_off_the_file(arch, tmp_path):
    for channels in (3, 1):
        net = build_model(arch, channels=channels, **SMALL[arch])
        torch.save({"epoch": 1, "net": nn.DataParallel(net).state_dict()}, tmp_path / "x.pt")
        (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
        for name in ("x.pt", "x.safetensors"):
            found = read_checkpoint(tmp_path / name, arch=arch)
            assert all(torch.equal(v, net.state_dict()[k]) for k, v in found.state_dict().items())
            assert type(found) is type(net)
            assert not found.training


def test_transformers_by_name(tmp_path):
    net = build_model("transformers:vit", classes=5, width=32, depth=2, size=16)
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    torch.save(net.model.state_dict(), tmp_path / "theirs.pt")
    for name in ("ours.pt", "theirs.pt"):
        assert torch.equal(
            logits(read_checkpoint(tmp_path / name, arch="transformers:vit", depth=2, size=16)), logits(net)
        )
        with pytest.raises(InputError, match=r"48|64|missing"):
            read_checkpoint(tmp_path / name, arch="transformers:vit", size=16)


class FakeTimm:
    @staticmethod
    def list_models():
        return ["small"]

    @staticmethod
    def create_model(name, num_classes, in_chans, pretrained):
        assert not pretrained
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )


def test_timm_with_its_own_names(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "timm", FakeTimm)
    net = build_model("timm:small", classes=6)
    torch.save({"state_dict": net.model.state_dict()}, tmp_path / "x.pt")
    assert torch.equal(logits(read_checkpoint(tmp_path / "x.pt", arch="timm:small")), logits(net))
    normalized = read_checkpoint(tmp_path / "x.pt", arch="timm:small", normalization="cifar10")
    assert torch.equal(logits(normalized), logits(with_normalization(net.model, *NORMALIZATIONS["cifar10"])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    net = build_model("small_resnet", **SMALL["small_resnet"])
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt", arch="small_resnet")
    assert {v.dtype for v in found.state_dict().values()} == {torch.float32, torch.int64}
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in found.state_dict().items())


def test_without_the_counters_of_old_files(tmp_path):
    net = build_model("small_resnet", **SMALL["small_resnet"])
    torch.save({k: v for k, v in net.state_dict().items() if "num_batches" not in k}, tmp_path / "x.pt")
    assert torch.equal(logits(read_checkpoint(tmp_path / "x.pt", arch="small_resnet")), logits(net))


def test_the_normalization_it_was_trained_with(tmp_path):
    net = build_model("preact_resnet18", **SMALL["preact_resnet18"])
    torch.save(net.state_dict(), tmp_path / "x.pt")
    net.mean, net.std = 0.0, 1.0
    mean, std = NORMALIZATIONS["cifar10"]
    wanted = logits(with_normalization(net, mean, std))
    for given in ("cifar10", (mean, std), "0.4914,0.4822,0.4465/0.247,0.243,0.261"):
        found = read_checkpoint(tmp_path / "x.pt", arch="preact_resnet18", normalization=given)
        assert torch.equal(logits(found), wanted)
    assert "model.layer4.1.conv1" in dict(found.named_modules())


@pytest.mark.parametrize(
    "value",
    ["cifar", "0.5", "0.5/", "a,b/c,d", "0.5/0", "0.5/nan", "0.5,0.5/1", (), ((0.5,),), 3, ((0,), ("x",)), ((), ())],
)
def test_no_normalization(value):
    with pytest.raises(InputError, match="normalization: found"):
        statistics_of(value)


def test_model_folders_say_all_themselves(tmp_path):
    net = build_model("small_resnet", classes=3, width=8)
    save_model(tmp_path / "m", net, "small_resnet", {"classes": 3, "width": 8})
    for read in (read_checkpoint, load_model):
        assert torch.equal(logits(read(tmp_path / "m")), logits(net))
        assert torch.equal(
            logits(read(tmp_path / "m", arch="small_resnet", classes=3, width=None, channels=3)), logits(net)
        )
        for given, message in (
            ({"classes": 4}, "classes: found 4, but .*model.json says 3"),
            ({"channels": 1}, "channels: found 1, but .* says 3"),
            ({"arch": "vgg19_bn"}, "arch: found 'vgg19_bn', but .* says 'small_resnet'"),
            ({"depth": 3}, "depth: found 3"),
        ):
            with pytest.raises(InputError, match=message):
                read(tmp_path / "m", **given)
    with pytest.raises(InputError, match="has its own"):
        read_checkpoint(tmp_path / "m", normalization="cifar10")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"does not say what it is; it fits preact_resnet18, classes=7, width=4, channels=3"),
        (
            {"arch": "vgg19_bn"},
            r"102 missing \('features.0.weight', .*\); 102 unexpected \('conv1.weight', .*it fits preact_resnet18",
        ),
        (
            {"arch": "preact_resnet18", "classes": 10},
            r"2 of another shape \('linear.weight' \(7, 32\) instead of \(10, 32\)",
        ),
        ({"arch": "preact_resnet18", "width": 8}, r"85 of another shape .*it fits preact_resnet18, classes=7, width=4"),
        ({"arch": "preact_resnet"}, "arch: found 'preact_resnet', wanted one of"),
        ({"arch": "preact_resnet18", "depth": 2}, "takes no option 'depth'"),
        ({"arch": "preact_resnet18", "mean": 0.4, "normalization": "cifar10"}, "has one of its own"),
        ({"arch": "timm:nothing"}, "timm"),
    ],
)
def test_what_does_not_fit(asked, message, tmp_path):
    torch.save(build_model("preact_resnet18", **SMALL["preact_resnet18"]).state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "x.pt", **asked)


def test_which_networks_of_transformers_fit(tmp_path):
    torch.save(build_model("transformers:swin", classes=4, width=24, size=64).model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"it fits transformers:swin, classes=4, width=24, channels=3, size=(32|64)"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"encoder.weight": torch.zeros(3, 3)}, tmp_path / "y.pt")
    with pytest.raises(InputError, match="fits no architecture known here: give its own as path/to/file.py:function"):
        read_checkpoint(tmp_path / "y.pt", arch="transformers:vit")


def test_a_width_that_needs_a_house_of_memory_is_refused_before(tmp_path):
    """A network of 4096 channels is only ever drawn in outline."""
    shape = {"conv1.weight": torch.zeros(4096, 3, 3, 3), "linear.weight": torch.zeros(10, 8)}
    torch.save(shape, tmp_path / "x.pt")
    with pytest.raises(InputError, match="does not fit"):
        read_checkpoint(tmp_path / "x.pt", arch="preact_resnet18")
    save_model(tmp_path / "m", build_model("small_resnet", classes=3, width=4), "small_resnet", {"classes": 3})
    for options in ({"classes": 4096, "width": 4096}, {"classes": 10, "depth": 4096, "width": 4096, "size": 4096}):
        arch = "transformers:vit" if "size" in options else "vgg19_bn"
        (tmp_path / "m" / "model.json").write_text(json.dumps({"arch": arch, "options": options}))
        with pytest.raises(InputError, match="does not fit|more than"):
            read_checkpoint(tmp_path / "m")


def test_draws_nothing_and_gives_the_same_bits(tmp_path):
    torch.save(build_model("small_resnet", classes=3, width=4).state_dict(), tmp_path / "x.pt")
    a, b = (read_checkpoint(str(tmp_path / "x.pt"), arch="small_resnet") for _ in range(2))
    assert torch.equal(logits(a), logits(b))
