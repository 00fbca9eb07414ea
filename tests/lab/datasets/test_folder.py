from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.registry import load_dataset

from . import official

CIFAR = Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10.zip"


def two_level(count: int = 3) -> dict[str, bytes]:
    return {
        f"{part}/{c}/{i}.png": official.image_bytes(10 * i + len(part) + len(c))
        for part in ("train", "test")
        for c in ("cat", "doggy")
        for i in range(count)
    }


def one_level(count: int = 10) -> dict[str, bytes]:
    return {f"{c}/{i}.png": official.image_bytes(i + len(c)) for c in ("cat", "doggy") for i in range(count)}


def on_disk(folder, members):
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sources(tmp_path, members):
    """The same files as a folder, a zip, a tar, and inside one more folder."""
    yield on_disk(tmp_path / "plain", members)
    yield official.zipped(tmp_path / "x.zip", members)
    yield official.tar_gz(tmp_path / "x.tar.gz", members)
    yield official.zipped(tmp_path / "y.zip", {f"pictures/{k}": v for k, v in members.items()})


def test_train_and_test(tmp_path):
    for path in sources(tmp_path, two_level()):
        data = load_dataset("folder", path)
        assert data.classes == ("cat", "doggy")
        assert data.train.images.shape == (6, 3, 32, 32)
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
        expected = torch.frombuffer(bytearray(two_level()["train/doggy/1.png"]), dtype=torch.uint8)
        assert len(expected)
        from neural_polarizer.lab.datasets.images import decode_bytes

        assert torch.equal(data.train.images[4], decode_bytes(two_level()["train/doggy/1.png"], "x"))


def test_one_level_is_split_class_by_class(tmp_path):
    for path in sources(tmp_path, one_level()):
        data = load_dataset("folder", path, seed=3)
        assert torch.bincount(data.train.labels).tolist() == [8, 8]
        assert torch.bincount(data.test.labels).tolist() == [2, 2]
        assert torch.equal(data.test.images, load_dataset("folder", path, seed=3).test.images)
        assert not torch.equal(data.test.images, load_dataset("folder", path, seed=4).test.images)


def test_sizes(tmp_path):
    path = official.zipped(tmp_path / "x.zip", one_level() | {"cat/big.png": official.image_bytes(1, size=(40, 30))})
    with pytest.raises(InputError, match="size: .*big.png has 40 x 30 pixels|size: .*32 x 32"):
        load_dataset("folder", path)
    assert load_dataset("folder", path, size=16).shape == (3, 16, 16)
    with pytest.raises(InputError, match="size: found 3"):
        load_dataset("folder", path, size=3)


def test_a_known_name_insists_on_its_classes(tmp_path):
    path = official.zipped(tmp_path / "x.zip", two_level())
    with pytest.raises(InputError, match="cifar10 has 10 classes"):
        load_dataset("cifar10", path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"readme.txt": b"x"}, "found no image"),
        ({"a.png": b""}, "lies outside every class"),
        (one_level() | {"a.png": b""}, "lies outside every class"),
        (one_level() | {"Cat/1.png": official.image_bytes(1)}, "differ in writing alone"),
        (one_level() | {"cat/x.png": b"\x89PNG no"}, "cat/x.png: cannot be read as an image"),
        (one_level() | {"cat/x.png": official.image_bytes(1)[:-60]}, "cat/x.png: cannot be read as an image"),
        ({f"cat/{i}.png": official.image_bytes(i) for i in range(4)}, "found one class|lies outside"),
        ({k: v for k, v in two_level().items() if not k.startswith("test")}, "no test folder|lies outside"),
        ({k: v for k, v in two_level().items() if not k.startswith("test/cat")}, "class 'cat' has no image in 'test'"),
        (one_level() | {"bird/1.png": official.image_bytes(1)}, "wanted at least two"),
    ],
)
def test_bad_folders(members, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_dataset("folder", official.zipped(tmp_path / "x.zip", members))


def test_an_empty_class_on_disk(tmp_path):
    folder = on_disk(tmp_path / "x", two_level())
    (folder / "train" / "bird").mkdir()
    with pytest.raises(InputError, match="class 'bird'.* has no image"):
        load_dataset("folder", folder)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "cat/../../out.png", "..\\out.png", "C:\\out.png"])
def test_names_that_climb_out(name, tmp_path):
    for path in (
        official.zipped(tmp_path / "x.zip", one_level() | {name: b"x"}),
        official.tar_gz(tmp_path / "x.tar.gz", one_level() | {name: b"x"}),
    ):
        with pytest.raises(InputError, match="wanted names inside the archive"):
            load_dataset("folder", path)


def test_links_in_archives_and_folders(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as file:
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    for path in (tmp_path / "x.tar", tmp_path / "x.zip"):
        with pytest.raises(InputError, match="link"):
            load_dataset("folder", path)
    folder = on_disk(tmp_path / "plain", one_level())
    secret = tmp_path / "secret.png"
    secret.write_bytes(official.image_bytes(1))
    (folder / "cat" / "link.png").symlink_to(secret)
    assert len(load_dataset("folder", folder).train) == 16, "a link out of the folder is not followed"


def test_damaged_archives(tmp_path):
    good = official.zipped(tmp_path / "x.zip", one_level()).read_bytes()
    tar = official.tar_gz(tmp_path / "x.tar.gz", one_level()).read_bytes()
    cases = {"a.zip": b"", "b.zip": good[:200], "c.zip": good[: len(good) // 2], "d.tar.gz": tar[: len(tar) // 2],
             "e.tar.gz": b"x", "f.rar": b"x", "g.zip": good.replace(b"IDAT", b"XXXX", 1)}  # fmt: skip
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            load_dataset("folder", tmp_path / name)
    with pytest.raises(InputError, match="neither a folder nor a file"):
        load_dataset("folder", tmp_path / "missing")
    with pytest.raises(InputError, match="data_dir: cifar10 needs a folder"):
        load_dataset("cifar10")


def test_a_member_that_lies_about_its_size(tmp_path):
    import struct

    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in one_level().items():
            file.writestr(name, data)
        file.writestr("cat/bomb.png", b"\0" * 50_000_000)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 100)))
    with pytest.raises(InputError):
        load_dataset("folder", path)


@pytest.mark.skipif(not CIFAR.exists(), reason="shared/data/cifar10.zip is not here")
@pytest.mark.slow
def test_cifar10_as_it_is_shared():
    data = load_dataset("cifar10", CIFAR, progress=False)
    assert data.train.images.shape == (50000, 3, 32, 32)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
