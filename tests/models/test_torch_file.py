from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from torch import nn

from neural_polarizer import InputError
from neural_polarizer.models.state_dict import find_state_dict
from neural_polarizer.models.torch_file import STORAGES, read_torch_file
from neural_polarizer.models.zoo import build_model
from neural_polarizer.tensorfile import Stored


def numbers(value):
    """With tensors in place of what stands for them."""
    if isinstance(value, Stored):
        return value.read()
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    return type(value)(map(numbers, value)) if isinstance(value, (list, tuple)) else value


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def training(net: nn.Module) -> dict:
    """What scripts keep of a training."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5])
    return {
        "epoch": 3, "best": 0.93, "name": "net", "flags": (True, None), "classes": ["a", "b"], b"bytes": b"\x80\xff",
        "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "size": net.conv1.weight.shape, "parameter": net.fc.weight, "counter": collections.Counter("abb"),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_same_as_torch_load(protocol, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(training(build_model("small_resnet", classes=3, width=4)), path, pickle_protocol=protocol)
    theirs = torch.load(path, weights_only=protocol == 2)  # which knows the opcodes of that protocol alone
    theirs = {
        **theirs,
        "size": tuple(theirs["size"]),
        "parameter": theirs["parameter"].detach(),
        "counter": dict(theirs["counter"]),
    }
    theirs["schedule"]["milestones"] = dict(theirs["schedule"]["milestones"])
    theirs["state_dict"], theirs["optimizer"] = dict(theirs["state_dict"]), dict(theirs["optimizer"])
    assert same(numbers(read_torch_file(path)), theirs)


@pytest.mark.parametrize("dtype", STORAGES.values(), ids=str)
def test_views(dtype, tmp_path):
    whole = torch.arange(24).view(2, 3, 4).to(dtype)
    views = [
        whole,
        whole[1],
        whole[:, 1:, ::2],
        whole.permute(2, 0, 1),
        whole[0, 0, 0],
        whole[:0],
        torch.zeros(0, dtype=dtype),
    ]
    torch.save(views, tmp_path / "x.pt")
    assert same(numbers(read_torch_file(tmp_path / "x.pt")), views)


def test_channels_last(tmp_path):
    weight = torch.arange(108.0).view(4, 3, 3, 3).to(memory_format=torch.channels_last)
    torch.save({"weight": weight}, tmp_path / "x.pt")
    assert same(numbers(read_torch_file(tmp_path / "x.pt")), {"weight": weight})


def test_numpy(tmp_path):
    numpy = pytest.importorskip("numpy")
    arrays = {
        "a": numpy.arange(6).reshape(2, 3),
        "b": numpy.float64(0.5),
        "c": numpy.zeros(3, dtype=bool),
        numpy.int64(7): 1,
    }
    torch.save(arrays, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")
    assert list(found) == ["a", "b", "c", 7]
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"] == 0.5
    assert found["c"].dtype == torch.bool


@pytest.mark.parametrize("suffix", ["", ".pt", ".pth", ".safetensors"])
def test_no_file_is_left_open_or_read_by_its_name(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    torch.save({"a": torch.ones(3)}, path)
    stored = read_torch_file(path)["a"]
    path.rename(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read"):
        stored.read()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": 1, "b": 2}, "ab"),
        ({"state_dict": {"a": 1}}, "a"),
        ({"model": {"a": 1}, "optimizer": {"state": {}}}, "a"),
        ({"net": {"state_dict": {"a": 1}}, "acc": 0.5}, "a"),
        ({"model_state_dict": {"module.a": 1, "module.b": 2}}, "ab"),
        ({"model": {"_orig_mod.module.a": 1}}, "a"),
        ({"module._orig_mod.module.a": 1, "module._orig_mod.module.b": 1}, "ab"),
        ({"module.a": 1, "b": 1}, ("module.a", "b")),
        ({"netC": {"a": 1}, "schedule": {"x": 0.5}}, "a"),
        ({"state_dict": {"a": 1}, "model": {"b": 1}}, "a"),
    ],
)
def test_where_a_state_dict_is(value, names):
    def stored(x):
        return (
            {k: stored(v) for k, v in x.items()}
            if isinstance(x, dict)
            else Stored((), torch.float32, lambda: torch.zeros(()))
            if type(x) is int
            else x
        )

    assert list(find_state_dict(stored(value), "x.pt")) == list(names)


def test_says_what_is_there_instead(tmp_path):
    torch.save({"optimizer": {"state": {}}, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"holds no state dict; found 'optimizer' \(a dict\), 'epoch' \(a int\)"):
        find_state_dict(read_torch_file(tmp_path / "x.pt"), "x.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whole", r"holds a whole pickled module: it calls .*'torch.nn.modules.linear.Linear'.*weights_only=False"),
        ("old", r"in the format from before PyTorch 1.6.*weights_only=True"),
        ("namespace", r"it calls 'argparse.Namespace' when it is opened"),
    ],
)
def test_how_to_convert_it(name, message, tmp_path):
    import argparse

    net, path = nn.Linear(2, 2, device="meta").to_empty(device="cpu"), tmp_path / "x.pt"
    if name == "whole":
        torch.save(net, path)
    elif name == "old":
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": net.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(InputError, match=message):
        read_torch_file(Path(path))


def test_the_advice_is_good(tmp_path):
    """The command of the message, run on a file that is refused, makes one that is read."""
    import re
    import subprocess
    import sys

    net = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
    torch.save(net, tmp_path / "FILE")
    with pytest.raises(InputError) as refused:
        read_torch_file(tmp_path / "FILE")
    code = re.search(r'python -c "(.*)"', str(refused.value)).group(1)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert set(read_torch_file(tmp_path / "state.pt")) == {"weight", "bias"}
