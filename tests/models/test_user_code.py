from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from neural_polarizer import InputError
from neural_polarizer.models.checkpoint import read_checkpoint
from neural_polarizer.models.user_code import build_user_model, is_user_code

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    classes: int = 3

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(12, classes)
    def forward(self, x):
        return self.head(x.flatten(1))

def build_model(classes=Sizes().classes):
    return Net(classes)

def build_four():
    return Net(4)

def fails():
    return 1 / 0

def exits():
    raise SystemExit(3)

def needs(width):
    return Net(width)

def on_two_devices():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))

number = 3
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_builds_and_leaves_no_trace(source):
    before, modules = list(sys.path), set(sys.modules)
    net = build_user_model(f"{source}:build_model")
    assert net.head.out_features == 3
    assert not net.training
    assert build_user_model(f"{source}:build_model", classes=7).head.out_features == 7
    assert build_user_model(f"{source}:build_four", classes=7).head.out_features == 4
    assert torch.equal(net.head.weight, build_user_model(f"{source}:build_model").head.weight)
    assert sys.path == before
    assert all(name.startswith("_neural_polarizer_user_code_") for name in set(sys.modules) - modules)
    assert [p.name for p in source.parent.iterdir()] == ["mine.py"], "no compiled copy beside it"


def test_a_changed_file_is_read_again(source):
    build_user_model(f"{source}:build_model")
    source.write_text(SOURCE.replace("classes: int = 3", "classes: int = 8"))
    assert build_user_model(f"{source}:build_model").head.out_features == 8


def test_with_weights(source, tmp_path):
    state = {"module.head.weight": torch.ones(5, 12), "module.head.bias": torch.zeros(5)}
    torch.save({"state_dict": state}, tmp_path / "x.pt")
    net = read_checkpoint(tmp_path / "x.pt", arch=f"{source}:build_model", classes=5)
    assert net(torch.ones(1, 3, 2, 2)).tolist() == [[12.0] * 5]
    wrapped = read_checkpoint(
        tmp_path / "x.pt", arch=f"{source}:build_model", classes=5, normalization=([0.5] * 3, [0.5] * 3)
    )
    assert wrapped(torch.ones(1, 3, 2, 2)).tolist() == [[12.0] * 5]
    assert wrapped(torch.full((1, 3, 2, 2), 0.5)).tolist() == [[0.0] * 5]
    with pytest.raises(InputError, match=r"'head.weight' \(5, 12\) instead of \(3, 12\)"):
        read_checkpoint(tmp_path / "x.pt", arch=f"{source}:build_model")
    with pytest.raises(InputError, match="takes no options, found width"):
        read_checkpoint(tmp_path / "x.pt", arch=f"{source}:build_model", width=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("build", "has no function 'build'; near names: 'build_four', 'build_model'"),
        ("number", "has no function 'number'"),
        ("", "has no function ''"),
        ("fails", "failed with {} .ZeroDivisionError"),
        ("needs", "failed with {} .TypeError: needs.. missing 1 required"),
        ("Sizes", "returned Sizes, wanted an nn.Module"),
        ("on_two_devices", "found its tensors on cpu, meta, wanted one device"),
    ],
)
def test_what_may_be_wrong(name, message, source):
    with pytest.raises(InputError, match=message):
        build_user_model(f"{source}:{name}")


def test_files_that_cannot_be_imported(tmp_path):
    modules = set(sys.modules)
    for content, message in (
        ("def", "SyntaxError"),
        ("import nothing_such", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivision"),
    ):
        (tmp_path / "bad.py").write_text(content)
        with pytest.raises(InputError, match=f"cannot be imported .*{message}"):
            build_user_model(f"{tmp_path / 'bad.py'}:build_model")
    for path in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(InputError):
            build_user_model(f"{path}:build_model")
    assert set(sys.modules) == modules


def test_its_name():
    assert is_user_code("a/b.py:f")
    assert is_user_code("C:/a/b.py:f")
    assert not is_user_code("transformers:vit")
    assert not is_user_code("vgg19_bn")
    assert isinstance(nn.Module, type)
