"""`attack_result.pt` as BackdoorBench's `save_attack_result` writes it, from its published description."""

from __future__ import annotations

import zipfile

import pytest
import torch

from neural_polarizer import InputError, with_normalization
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.normalization import NORMALIZATIONS
from neural_polarizer.models.zoo import build_model

numpy = pytest.importorskip("numpy")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def records(count: int, folder: str) -> dict:
    """The state of a poisoned set: where its images are on disk, their labels, by indices of numpy."""
    poisoned = numpy.zeros(count)
    poisoned[::3] = 1
    table = {i: {"path": f"{folder}/{i}.png", "other_info": [0, numpy.int64(i % 10)]} for i in numpy.arange(count)[::3]}
    return {
        "bd_data_container": {"save_folder_path": folder, "data_dict": table, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": numpy.arange(count),
        "poison_indicator": poisoned,
        "save_folder_path": folder,
    }


def attack_result(arch: str = "preact_resnet18", width: int = 4, **changes) -> dict:
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": build_model(arch, classes=10, width=width).state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": records(500, "./record/x/bd_train_dataset"),
        "bd_test": records(90, "./record/x/bd_test_dataset"),
        **changes,
    }


def wanted(arch: str, data: str, width: int = 4) -> torch.Tensor:
    net = build_model(arch, classes=10, width=width, mean=0.0, std=1.0)
    with torch.no_grad():
        return with_normalization(net, *NORMALIZATIONS[data])(IMAGES)


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
@pytest.mark.parametrize(
    ("name", "arch", "data", "ours"),
    [("preactresnet18", "preact_resnet18", "cifar10", "cifar10"), ("vgg19_bn", "vgg19_bn", "tiny", "tiny_imagenet"), ("preactresnet18", "preact_resnet18", "gtsrb", "gtsrb")],
)  # fmt: skip
def test_says_all_itself(name, arch, data, ours, core, tmp_path):
    torch.save(attack_result(arch, model_name=name, clean_data=data), tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "attack_result.pt", "w") as old:
        for info in new.infolist():  # older versions of numpy have another name for its core
            old.writestr(zipfile.ZipInfo(info.filename), new.read(info).replace(b"numpy._core", core.encode()))
    net = read_checkpoint(tmp_path / "attack_result.pt")
    with torch.no_grad():
        assert torch.equal(net(IMAGES), wanted(arch, ours))


def test_as_defences_write_it_and_as_it_was_at_first(tmp_path):
    short = {k: attack_result()[k] for k in ("model_name", "num_classes", "model")}
    torch.save(short, tmp_path / "defense_result.pt")
    with pytest.raises(InputError, match="normalization: .* whose normalisation is not known"):
        read_checkpoint(tmp_path / "defense_result.pt")
    with torch.no_grad():
        net = read_checkpoint(tmp_path / "defense_result.pt", normalization="cifar10", classes=10)
        assert torch.equal(net(IMAGES), wanted("preact_resnet18", "cifar10"))
        first = {
            "x": torch.zeros(2, 3, 32, 32),
            "y": torch.zeros(2, dtype=torch.long),
            "original_index": numpy.arange(2),
        }
        torch.save(attack_result(bd_train=first, bd_test=None), tmp_path / "first.pt")
        assert torch.equal(read_checkpoint(tmp_path / "first.pt")(IMAGES), wanted("preact_resnet18", "cifar10"))


def test_full_size_names_and_shapes():
    """The networks that BackdoorBench publishes are 64 wide; ours has their names and shapes, see test_zoo.py."""
    from neural_polarizer.models.backdoorbench import attack_result as described

    said = described(attack_result(), "x.pt")
    assert (said.arch, said.classes, said.data) == ("preact_resnet18", 10, "cifar10")
    assert described({"state_dict": {}}, "x.pt") is None
    assert described(attack_result(model_name="resnet18"), "x.pt").arch == "torchvision:resnet18"


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"classes": 7}, "classes: found 7, but .* says 10"),
        ({"num_classes": 43}, {}, r"'linear.weight' \(10, 32\) instead of \(43, 32\)"),
        ({"model_name": "vgg19_bn"}, {}, "does not fit.*it fits preact_resnet18, classes=10, width=4"),
        ({"clean_data": "mine"}, {}, "normalization: .*'mine'"),
        ({"model": None}, {}, "holds no state dict"),
        ({"model": {}}, {}, "holds no state dict"),
        ({"bd_test": print}, {}, "calls '__builtin__.print'"),
        ({"bd_test": numpy.random.default_rng}, {}, "calls 'numpy.random.(_generator.)?default_rng'"),
        ({"bd_test": {"x": numpy.array([None])}}, {}, "no pickle of plain data|array of the type"),
    ],
)
def test_what_is_wrong_with_it(changes, asked, message, tmp_path):
    torch.save(attack_result(**changes), tmp_path / "attack_result.pt")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "attack_result.pt", **asked)
