from __future__ import annotations

import zipfile

import pytest

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.registry import load_dataset

from . import official


def archives(folder, file="GTSRB-Training_fixed.zip", root="GTSRB/Training", **changes):
    official.zipped(folder / file, official.gtsrb_train(root) | changes.get("train", {}))
    official.zipped(folder / "GTSRB_Final_Test_Images.zip", official.gtsrb_test())
    official.zipped(folder / "GTSRB_Final_Test_GT.zip", official.gtsrb_truth() | changes.get("truth", {}))


def check(data):
    assert data.train.images.shape == (12, 3, 32, 32)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.images.shape == (5, 3, 32, 32)
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1]
    assert not data.mirror, "a mirrored sign is another sign"
    assert data.classes == ("00000", "00001", "00002")


@pytest.mark.parametrize(
    ("train", "root"),
    [
        ("GTSRB-Training_fixed.zip", "GTSRB/Training"),
        ("GTSRB_Final_Training_Images.zip", "GTSRB/Final_Training/Images"),
    ],
)
def test_official_archives(train, root, tmp_path):
    archives(tmp_path, train, root)
    check(load_dataset("gtsrb", tmp_path))
    assert load_dataset("gtsrb", tmp_path, size=20).shape == (3, 20, 20)


def test_extracted(tmp_path):
    archives(tmp_path)
    for path in sorted(tmp_path.glob("*.zip")):
        zipfile.ZipFile(path).extractall(tmp_path / "GTSRB" if "GT.zip" in path.name else tmp_path)
        path.unlink()
    check(load_dataset("gtsrb", tmp_path))


def test_labels_come_from_the_annotations(tmp_path):
    swapped = official.gtsrb_truth()["GT-final_test.csv"].replace(b";25;25;0", b";25;25;2")
    archives(tmp_path, truth={"GT-final_test.csv": swapped})
    assert load_dataset("gtsrb", tmp_path).test.labels.tolist() == [2, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": {"GT-final_test.csv": b"a,b\n1,2"}}, "wanted Filename and ClassId"),
        ({"truth": {"GT-final_test.csv": b"Filename;ClassId\nx.ppm;99"}}, "class '99'"),
        ({"truth": {"GT-final_test.csv": b"Filename;ClassId\nx.ppm;1"}}, "x.ppm of .* is missing"),
        ({"train": {"GTSRB/Training/00000/00001_00000.ppm": b"P6 no image"}}, "cannot be read as an image"),
        ({"train": {"GTSRB/Training/00000/GT-00000.csv": b"Filename;ClassId\n../x.ppm;1"}}, "wanted a file name"),
    ],
)
def test_damaged(changes, message, tmp_path):
    archives(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_dataset("gtsrb", tmp_path)


def test_missing_archive_says_what_to_fetch(tmp_path):
    archives(tmp_path)
    (tmp_path / "GTSRB_Final_Test_GT.zip").unlink()
    with pytest.raises(InputError, match=r"pass --download, or fetch https://.*GTSRB_Final_Test_GT.zip by hand"):
        load_dataset("gtsrb", tmp_path)
