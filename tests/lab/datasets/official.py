"""Small data sets in the official formats, written by hand."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile

import torch
from PIL import Image

FINE = [f"class{i}" for i in range(100)]


def image_bytes(seed: int, kind: str = "png", size=(32, 32)) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(out, kind)
    return out.getvalue()


def tar_gz(path, members: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def pixels(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3072), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def records(count: int, seed: int, classes: int = 10) -> bytes:
    rows, out = pixels(count, seed), b""
    for i in range(count):
        out += (bytes([i % 10]) if classes == 10 else bytes([i % 20, i % 100])) + bytes(rows[i].tolist())
    return out


def cifar10_binary() -> dict[str, bytes]:
    names = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    out = {"cifar-10-batches-bin/batches.meta.txt": names}
    for i in range(1, 6):
        out[f"cifar-10-batches-bin/data_batch_{i}.bin"] = records(12, i)
    out["cifar-10-batches-bin/test_batch.bin"] = records(20, 9)
    return out


def cifar100_binary() -> dict[str, bytes]:
    root = "cifar-100-binary/"
    return {
        root + "train.bin": records(200, 1, 100),
        root + "test.bin": records(100, 2, 100),
        root + "fine_label_names.txt": "\n".join(FINE).encode(),
        root + "coarse_label_names.txt": b"\n".join(b"c%d" % i for i in range(20)),
    }


# The pickles of the official python archives are of protocol 2, written by Python 2: text is BINSTRING, a numpy array is a
# call of _reconstruct and a state. Python 3 cannot write them so; they are put together opcode by opcode.


def text(value: str) -> bytes:
    data = value.encode()
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def blob(data: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(data)) + data


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)


def integers(values) -> bytes:
    return b"](" + b"".join(integer(v) for v in values) + b"e"


def array(rows: torch.Tensor) -> bytes:
    dtype = b"cnumpy\ndtype\n" + text("u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + integer(0) + b"tb"
    call = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text("b") + b"\x87R"
    shape = integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
    return call + b"(" + integer(1) + shape + dtype + b"\x89" + blob(bytes(rows.flatten().tolist())) + b"tb"


def python2_pickle(items: dict[str, bytes]) -> bytes:
    return b"\x80\x02}q\x01(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def names_of(values) -> bytes:
    return b"](" + b"".join(text(v) for v in values) + b"e"


def cifar10_python() -> dict[str, bytes]:
    root = "cifar-10-batches-py/"
    out = {
        root + "batches.meta": python2_pickle(
            {
                "num_cases_per_batch": integer(12),
                "label_names": names_of(
                    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
                ),
            }
        )
    }
    for name, count, seed in [*((f"data_batch_{i}", 12, i) for i in range(1, 6)), ("test_batch", 20, 9)]:
        out[root + name] = python2_pickle(
            {
                "batch_label": text("a batch"),
                "labels": integers(i % 10 for i in range(count)),
                "data": array(pixels(count, seed)),
                "filenames": names_of(f"{i}.png" for i in range(count)),
            }
        )
    return out


def cifar100_python() -> dict[str, bytes]:
    root = "cifar-100-python/"
    out = {root + "meta": python2_pickle({"fine_label_names": names_of(FINE), "coarse_label_names": names_of(["a"])})}
    for name, count, seed in (("train", 200, 1), ("test", 100, 2)):
        out[root + name] = python2_pickle(
            {
                "fine_labels": integers(i % 100 for i in range(count)),
                "coarse_labels": integers(i % 20 for i in range(count)),
                "data": array(pixels(count, seed)),
            }
        )
    return out


HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"


def gtsrb_train(root: str = "GTSRB/Training") -> dict[str, bytes]:
    out = {}
    for c in range(3):
        lines = HEAD
        for i in range(4):
            name = f"0000{i}_00000.ppm"
            out[f"{root}/0000{c}/{name}"] = image_bytes(10 * c + i, "ppm", (20 + i, 25))
            lines += f"{name};{20 + i};25;5;5;15;20;{c}\r\n"
        out[f"{root}/0000{c}/GT-0000{c}.csv"] = lines.encode()
    out["GTSRB/Readme-Images.txt"] = b"read me"
    return out


def gtsrb_test() -> dict[str, bytes]:
    return {f"GTSRB/Final_Test/Images/0000{i}.ppm": image_bytes(50 + i, "ppm", (30, 30)) for i in range(5)}


def gtsrb_truth() -> dict[str, bytes]:
    lines = "".join(f"0000{i}.ppm;30;30;5;5;25;25;{i % 3}\r\n" for i in range(5))
    return {"GT-final_test.csv": (HEAD + lines).encode()}


def tiny() -> dict[str, bytes]:
    root, ids = "tiny-imagenet-200/", ["n01443537", "n01629819", "n01641577"]
    out = {root + "wnids.txt": "\n".join(reversed(ids)).encode()}
    for k, c in enumerate(ids):
        for i in range(3):
            out[f"{root}train/{c}/images/{c}_{i}.JPEG"] = image_bytes(10 * k + i, "jpeg", (64, 64))
        out[f"{root}train/{c}/{c}_boxes.txt"] = b"0\t0\t1\t1"
    lines = ""
    for i in range(4):
        out[f"{root}val/images/val_{i}.JPEG"] = image_bytes(90 + i, "jpeg", (64, 64))
        lines += f"val_{i}.JPEG\t{ids[i % 3]}\t0\t32\t44\t62\n"
    out[root + "val/val_annotations.txt"] = lines.encode()
    out[root + "test/images/test_0.JPEG"] = image_bytes(99, "jpeg", (64, 64))
    return out
