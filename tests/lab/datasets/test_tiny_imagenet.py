from __future__ import annotations

import zipfile

import pytest

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.registry import load_dataset

from . import official


def check(data):
    assert data.train.images.shape == (9, 3, 64, 64)
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.test.labels.tolist() == [0, 1, 2, 0]
    assert data.classes == ("n01443537", "n01629819", "n01641577")
    assert data.mirror


def test_official_zip_and_extracted(tmp_path):
    path = official.zipped(tmp_path / "tiny-imagenet-200.zip", official.tiny())
    check(load_dataset("tiny_imagenet", tmp_path))
    check(load_dataset("tiny_imagenet", path))
    zipfile.ZipFile(path).extractall(tmp_path / "out")
    check(load_dataset("tiny_imagenet", tmp_path / "out"))
    check(load_dataset("tiny_imagenet", tmp_path / "out" / "tiny-imagenet-200"))
    assert load_dataset("tiny_imagenet", path, size=32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiny-imagenet-200/val/val_annotations.txt": b"val_0.JPEG\tn999\t0"}, "'n999'"),
        ({"tiny-imagenet-200/val/val_annotations.txt": b"none.JPEG\tn01443537\t0"}, "none.JPEG is missing"),
        ({"tiny-imagenet-200/val/val_annotations.txt": b""}, "every validation image is missing"),
        ({"tiny-imagenet-200/val/images/val_0.JPEG": b"no image"}, "cannot be read as an image"),
    ],
)
def test_damaged(change, message, tmp_path):
    path = official.zipped(tmp_path / "tiny-imagenet-200.zip", official.tiny() | change)
    with pytest.raises(InputError, match=message):
        load_dataset("tiny_imagenet", path)
