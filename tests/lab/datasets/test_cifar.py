from __future__ import annotations

import tarfile

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.registry import load_dataset

from . import official

ARCHIVES = {
    ("cifar10", "binary"): (official.cifar10_binary, "cifar-10-binary.tar.gz"),
    ("cifar10", "python"): (official.cifar10_python, "cifar-10-python.tar.gz"),
    ("cifar100", "binary"): (official.cifar100_binary, "cifar-100-binary.tar.gz"),
    ("cifar100", "python"): (official.cifar100_python, "cifar-100-python.tar.gz"),
}


def check(data, name):
    train, test = (60, 20) if name == "cifar10" else (200, 100)
    assert data.train.images.shape == (train, 3, 32, 32)
    assert data.test.images.shape == (test, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    seed = 1
    first = official.pixels(12 if name == "cifar10" else 200, seed)[7].view(3, 32, 32)
    assert torch.equal(data.train.images[7], first)
    assert data.train.labels[:12].tolist() == [i % (10 if name == "cifar10" else 100) for i in range(12)]
    assert data.mirror
    assert data.classes[3] == ("cat" if name == "cifar10" else "class3")


@pytest.mark.parametrize(("name", "kind"), ARCHIVES)
def test_official_archives(name, kind, tmp_path):
    members, file = ARCHIVES[name, kind]
    official.tar_gz(tmp_path / file, members())
    check(load_dataset(name, tmp_path), name)
    check(load_dataset(name, tmp_path / file), name)


@pytest.mark.parametrize(("name", "kind"), ARCHIVES)
def test_extracted_folders(name, kind, tmp_path):
    members, file = ARCHIVES[name, kind]
    with tarfile.open(official.tar_gz(tmp_path / file, members())) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    check(load_dataset(name, tmp_path / "out"), name)
    inner = next((tmp_path / "out").iterdir())
    check(load_dataset(name, inner), name)


def test_resized(tmp_path):
    official.tar_gz(tmp_path / "cifar-10-binary.tar.gz", official.cifar10_binary())
    assert load_dataset("cifar10", tmp_path, size=24).shape == (3, 24, 24)


def broken(change):
    members = official.cifar10_binary()
    change(members)
    return members


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"cifar-10-batches-bin/test_batch.bin": b"123"}), "wanted a multiple of 3073"),
        (lambda m: m.pop("cifar-10-batches-bin/test_batch.bin"), "found 0 files 'test_batch.bin'"),
        (lambda m: m.update({"cifar-10-batches-bin/test_batch.bin": b"\x0b" + b"0" * 3072}), "labels up to 11"),
        (lambda m: m.update({"cifar-10-batches-bin/batches.meta.txt": b"one\ntwo"}), "found 2 names"),
    ],
)
def test_damaged_binaries(change, message, tmp_path):
    official.tar_gz(tmp_path / "cifar-10-binary.tar.gz", broken(change))
    with pytest.raises(InputError, match=message):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"", "no pickle"),
        (b"\x80\x02cos\nsystem\nU\x02ls\x85R.", "wants to call 'os.system'"),
        (official.python2_pickle({"labels": official.integers([1])}), "found no 'data'"),
        (
            official.python2_pickle(
                {"labels": official.integers([1, 2]), "data": official.array(official.pixels(3, 1))}
            ),
            "one whole number per image",
        ),
        (official.python2_pickle({"data": official.array(official.pixels(3, 1))})[:-400], "no pickle"),
    ],
)
def test_damaged_or_hostile_pickles(batch, message, tmp_path):
    members = official.cifar10_python() | {"cifar-10-batches-py/test_batch": batch}
    official.tar_gz(tmp_path / "cifar-10-python.tar.gz", members)
    with pytest.raises(InputError, match=message):
        load_dataset("cifar10", tmp_path)
