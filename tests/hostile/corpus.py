"""Broken and malicious inputs of everything that reads other people's models, as data.

A `Case` writes its input into an empty folder. `CASES` are all of them, seeded, the same every time; `KINDS` are the readers
that they are for. What none may do: run code (create the canary), leave anything on disk, end in another error than
`InputError`, take much memory. A test that goes through the command line takes its inputs from here as well.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from neural_polarizer.models.zoo import build_model, save_model

from . import pickles

MODEL = {"classes": 3, "width": 4}
ARCH = "small_resnet"


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        kind: what reads it: "file" (a checkpoint), "folder" (of a model), "hugging face", "polarizer", "backdoored".
        write: makes the input below an empty folder and gives its path; the second path is the file that must not appear.
        harmless: may load all the same, and then as a working network.
    """

    name: str
    kind: str
    write: Callable[[Path, Path], Path]
    harmless: bool = False


# What is well, before it is broken.


@cache
def state() -> dict[str, torch.Tensor]:
    return build_model(ARCH, **MODEL).state_dict()


@cache
def safe() -> bytes:
    return safetensors.torch.save(state())


def saved(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


@cache
def zipped() -> bytes:
    return saved(state())


def write_model(folder: Path) -> Path:
    save_model(folder, build_model(ARCH, **MODEL), ARCH, dict(MODEL))
    return folder


@cache
def hugging_face_files() -> dict[str, bytes]:
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2, num_labels=3)
    with torch.random.fork_rng(devices=[]):
        net = transformers.ConvNextForImageClassification(config)
    described = {**config.to_dict(), "architectures": ["ConvNextForImageClassification"]}
    normalization = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    return {
        "config.json": json.dumps(described).encode(),
        "preprocessor_config.json": json.dumps(normalization).encode(),
        "model.safetensors": safetensors.torch.save(net.state_dict()),
    }


def write_hugging_face(folder: Path) -> Path:
    folder.mkdir()
    for name, content in hugging_face_files().items():
        (folder / name).write_bytes(content)
    return folder


def base() -> torch.nn.Module:
    """The network that the polarizer of the corpus is for."""
    return build_model(ARCH, **MODEL)


@cache
def polarizer_files() -> dict[str, bytes]:
    import tempfile

    from neural_polarizer import FitConfig, purify

    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    config = FitConfig(epochs=1, warmup_epochs=0, steps=1)
    purified = purify(base(), images, method="npd", layer="layer3", config=config, progress=False)
    with tempfile.TemporaryDirectory() as place:
        purified.save_pretrained(place)
        return {p.name: p.read_bytes() for p in Path(place).iterdir()}


def write_polarizer(folder: Path) -> Path:
    folder.mkdir()
    for name, content in polarizer_files().items():
        (folder / name).write_bytes(content)
    return folder


ATTACK = {"format": 1, "setting": {"attack": {"name": "blended", "options": {"alpha": 0.2, "seed": 0}}}}


def write_backdoored(folder: Path) -> Path:
    write_model(folder)
    (folder / "attack.json").write_text(json.dumps(ATTACK))
    (folder / "trigger.safetensors").write_bytes(safetensors.torch.save({"noise": torch.zeros(3, 4, 4)}))
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "folder": write_model,
    "hugging face": write_hugging_face,
    "polarizer": write_polarizer,
    "backdoored": write_backdoored,
}


def file(name: str, content: Callable[[Path], bytes] | bytes, *, suffix: str = ".pt", harmless: bool = False) -> Case:
    def write(folder: Path, canary: Path) -> Path:
        path = folder / f"model{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content(canary))
        return path

    return Case(name, "file", write, harmless)


def in_folder(kind: str, name: str, member: str, content: Callable[[Path], bytes] | bytes | None) -> Case:
    """A whole folder in which one file is replaced, or missing."""

    def write(folder: Path, canary: Path) -> Path:
        path = FOLDERS[kind](folder / "input")
        if content is None:
            (path / member).unlink()
        else:
            (path / member).write_bytes(content if isinstance(content, bytes) else content(canary))
        return path

    return Case(f"{kind}: {member}: {name}", kind, write)


# Code.


def code_cases() -> Iterator[Case]:
    for path in pickles.payloads(""):
        yield file(
            f"code: {path} alone in a zip",
            lambda c, p=path: pickles.torch_zip(pickles.whole(pickles.payloads(str(c))[p])),
        )
        yield file(
            f"code: {path} beside tensors",
            lambda c, p=path: pickles.edited(zipped(), pickles.with_entry(pickles.payloads(str(c))[p])),
        )
        yield file(f"code: {path} as a bare pickle", lambda c, p=path: pickles.whole(pickles.payloads(str(c))[p]))
    for name in pickles.spellings(""):
        yield file(f"code: {name} in a zip", lambda c, n=name: pickles.torch_zip(pickles.spellings(str(c))[n]))
        yield file(f"code: {name} as a bare pickle", lambda c, n=name: pickles.spellings(str(c))[n])
        yield in_folder(
            "hugging face",
            f"code: {name}",
            "model.safetensors",
            lambda c, n=name: pickles.torch_zip(pickles.spellings(str(c))[n]),
        )

    def legacy(canary: Path) -> bytes:
        old = saved(state(), _use_new_zipfile_serialization=False)
        return old[:-8] + pickles.whole(pickles.call("os.system", f"touch '{canary}'"))

    def evil(canary: Path) -> bytes:
        return pickles.whole(pickles.call("os.system", f"touch '{canary}'"))

    def behind_the_magic(canary: Path) -> bytes:
        magic = pickles.whole(pickles.plain(0x1950A86A20F9469CFC6C))
        return magic + pickles.whole(pickles.plain(1001)) + evil(canary)

    yield file("code: a file from before PyTorch 1.6", legacy)
    yield file("code: behind the magic number of old files", behind_the_magic)
    yield file("code: a TorchScript program", lambda _: scripted())
    yield file("code: a whole module", lambda _: saved(build_model(ARCH, **MODEL)))
    yield file("code: named .safetensors", evil, suffix=".safetensors")
    for kind, member in (
        ("folder", "model.safetensors"),
        ("polarizer", "polarizer.safetensors"),
        ("backdoored", "trigger.safetensors"),
    ):
        yield in_folder(kind, "code: a pickle", member, evil)
        yield in_folder(kind, "code: a zip", member, lambda c: pickles.torch_zip(evil(c)))


def scripted() -> bytes:
    out = io.BytesIO()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and such files are still about
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2)), out)
    return out.getvalue()


# Damage.


def damage_cases() -> Iterator[Case]:
    rng = random.Random(0)
    for suffix, well in ((".safetensors", safe), (".pt", zipped)):
        size = len(well())
        for at in sorted({0, 1, 7, 8, 9, size - 1, *(rng.randrange(size) for _ in range(24))}):
            yield file(f"damage: {suffix} cut at {at}", lambda _, w=well, a=at: w()[:a], suffix=suffix)
        header = struct.unpack("<Q", well()[:8])[0] + 8 if suffix == ".safetensors" else 4096
        for i in range(48):
            bit = rng.randrange(8 * (header if i % 2 else size))
            yield file(
                f"damage: {suffix} with bit {bit} turned",
                lambda _, w=well, b=bit: turned(w(), b),
                suffix=suffix,
                harmless=True,
            )
        for i in range(6):
            start, length = rng.randrange(size - 400), rng.randrange(1, 400)
            yield file(
                f"damage: {suffix} without {length} bytes at {start}",
                lambda _, w=well, s=start, n=length: w()[:s] + w()[s + n :],
                suffix=suffix,
            )
            yield file(
                f"damage: {suffix} with zeros at {start}, {i}",
                lambda _, w=well, s=start, n=length: w()[:s] + b"\0" * n + w()[s + n :], suffix=suffix, harmless=True,
            )  # fmt: skip
    for at in range(3, 60, 7):
        yield file(
            f"damage: a pickle cut {at} bytes before its end",
            lambda _, a=at: pickles.edited(zipped(), lambda p: p[:-a]),
        )
    for i in range(16):
        noise = random.Random(i).randbytes(2000)
        start = (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95")[i % 4]
        yield file(f"damage: noise {i} after {start!r}", start + noise)
        yield file(f"damage: a pickle of noise {i}", pickles.torch_zip(b"\x80\x02" + noise))


def turned(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


# Bombs.


def directory_bomb() -> bytes:
    """A zip whose directory alone is 14 MB."""
    whole = pickles.torch_zip(b"\x80\x02}.")
    end = len(whole) - 22
    _, start = struct.unpack("<II", whole[end + 12 : end + 20])
    entries = whole[start:end] * 60_000
    return whole[:start] + entries + whole[end : end + 12] + struct.pack("<II", len(entries), start) + b"\0\0"


def overlapping() -> bytes:
    """A zip of many members that all lie in the same place."""
    whole = pickles.torch_zip(
        pickles.state_of(**{"fc.weight": pickles.tensor((4,), (1,), count=1 << 18)}), {"0": b"\0" * (1 << 20)}
    )
    end = len(whole) - 22
    _, start = struct.unpack("<II", whole[end + 12 : end + 20])
    last = whole[start:end].rindex(b"PK\x01\x02")
    entry = whole[start + last : end]
    more = b"".join(entry.replace(b"data/0", b"data/" + bytes([c])) for c in range(97, 123))
    entries = whole[start:end] + more
    count = struct.unpack("<H", whole[end + 8 : end + 10])[0] + 26
    return (
        whole[:start]
        + entries
        + whole[end : end + 8]
        + struct.pack("<HHII", count, count, len(entries), start)
        + b"\0\0"
    )


def compressed(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


def laughs(depth: int = 60) -> bytes:
    """A list of two lists, which are the same list of two lists, and so on: a list of all of them."""
    body = b"(]q\x00"
    for i in range(1, depth):
        body += b"](" + b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"eq" + bytes([i])
    return body + b"l"


def bomb_cases() -> Iterator[Case]:
    zeros = b"\0" * (64 << 20)
    yield file(
        "bomb: a compressed pickle", lambda _: compressed(archive__data_pkl=zeros).replace(b"data_pkl", b"data.pkl")
    )
    yield file(
        "bomb: compressed numbers", lambda _: compressed(archive__datapkl=pickles.whole(b"}"), archive__data__0=zeros)
    )
    yield file(
        "bomb: compressed numbers with a pickle",
        lambda _: compressed(
            **{
                "archive/data.pkl": pickles.state_of(x=pickles.tensor((4,), (1,), count=16 << 20)),
                "archive/data/0": zeros,
            }
        ),
    )
    yield file("bomb: a directory of a million members", lambda _: directory_bomb())
    yield file("bomb: members on top of each other", lambda _: overlapping())
    yield file("bomb: lists in lists", pickles.torch_zip(pickles.whole(b"]" * 100_000 + b"a" * 99_999)))
    yield file("bomb: tuples in tuples", pickles.torch_zip(pickles.whole(b")" + b"\x85" * 300_000)))
    yield file("bomb: marks", pickles.torch_zip(pickles.whole(b"(" * 300_000)))
    yield file("bomb: marks over a large stack", pickles.torch_zip(pickles.whole(b"K\x01" * 200_000 + b"(t" * 200_000)))
    yield file("bomb: laughs", pickles.torch_zip(pickles.whole(laughs())))
    yield file(
        "bomb: laughs as a state dict",
        pickles.torch_zip(pickles.whole(b"}" + pickles.text("state_dict") + laughs() + b"s")),
    )
    yield file(
        "bomb: laughs as a name",
        pickles.torch_zip(pickles.whole(pickles.named("numpy.dtype") + laughs() + b"\x85R")),
    )
    yield file(
        "bomb: laughs as a module",
        pickles.torch_zip(pickles.whole(laughs() + pickles.text("x") + b"\x93", 4)),
    )
    yield file("bomb: a list that holds itself", pickles.torch_zip(pickles.whole(b"]q\x00h\x00a")))
    yield file(
        "bomb: a dict that holds itself",
        pickles.torch_zip(pickles.whole(b"}q\x00" + pickles.text("state_dict") + b"h\x00s")),
    )
    yield file("bomb: opcodes without end", lambda _: pickles.torch_zip(pickles.whole(b"N" * 2_100_000)))
    yield file(
        "bomb: a huge number as a key", pickles.torch_zip(pickles.whole(b"}" + pickles.plain(1 << 4000) + b"Ns"))
    )
    yield file("bomb: a tuple as a key", pickles.torch_zip(pickles.whole(b"})Ns")))
    yield file("bomb: a long number in digits", pickles.torch_zip(pickles.whole(b"L" + b"9" * 100_000 + b"L\n")))
    yield file("bomb: a text that claims four gigabytes", pickles.torch_zip(b"\x80\x02X\xff\xff\xff\xffab."))
    yield file("bomb: bytes that claim eight exabytes", pickles.torch_zip(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab."))
    yield file("bomb: an array of numpy of a terabyte", pickles.torch_zip(pickles.whole(
        pickles.named("numpy._core.multiarray._reconstruct") + b")R" + b"(K\x01" + pickles.plain((1 << 40,))
        + pickles.call("numpy.dtype", "u1") + b"\x89" + pickles.text("") + b"tb")))  # fmt: skip
    yield file("bomb: an array of numpy without a number", pickles.torch_zip(pickles.whole(
        pickles.named("numpy._core.multiarray._reconstruct") + b")R" + b"(K\x01" + pickles.plain((0, 1 << 62))
        + pickles.call("numpy.dtype", "f8") + b"\x89" + pickles.text("") + b"tb")))  # fmt: skip
    # What is remembered once and used again and again.
    large, many = b"(" + b"N" * 500_000 + b"tq\x01", 200_000
    words = pickles.text("x" * (8 << 20)) + b"q\x01"
    for name, remembered, used in (
        ("bytes", words, pickles.named("_codecs.encode") + b"h\x01\x85R"),
        ("arguments", large, pickles.named("torch.device") + b"h\x01R"),
        ("a size", large, pickles.named("torch.Size") + b"h\x01\x85R"),
        ("a text as a size", words, pickles.named("torch.Size") + b"h\x01\x85R"),
        ("a name", words, b"h\x01h\x01\x93"),
        ("a type", words, pickles.named("numpy.dtype") + b"h\x01\x85R"),
        ("a persistent id", large, b"h\x01Q"),
        ("the name of a storage", words, b"(" + pickles.text("storage") + pickles.named("torch.FloatStorage") + b"h\x01NK\x04tQ"),
        ("a dict", b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(100_000)) + b"uq\x01", pickles.named("collections.OrderedDict") + b"h\x01\x85R"),
    ):  # fmt: skip
        body = b"(" + remembered + used * (many // 10) + b"l"
        yield file(
            f"bomb: {name} again and again",
            lambda _, b=body: pickles.torch_zip(pickles.whole(b)),
        )
    huge = pickles.plain(1 << (1 << 20))
    yield file("bomb: an array of huge sizes", lambda _: pickles.torch_zip(pickles.whole(
        pickles.named("numpy._core.multiarray._reconstruct") + b")R" + b"(K\x01(" + huge * 60 + b"t"
        + pickles.call("numpy.dtype", "u1") + b"\x89" + pickles.text("") + b"tb")))  # fmt: skip
    yield file(
        "bomb: a tensor of huge sizes",
        lambda _: pickles.torch_zip(
            pickles.state_of(x=pickles.tensor((1 << (1 << 20),) * 8, (1,) * 8)), {"0": b"\0" * 16}
        ),
    )
    for count in (1 << 62, 1 << 40, (100 << 20) + 1, 2):
        yield file(
            f"bomb: a header of {count} bytes", struct.pack("<Q", count) + b"{" + b" " * 100, suffix=".safetensors"
        )
    yield file("bomb: a header of brackets", header(b"[" * 100_000), suffix=".safetensors")
    yield file("bomb: a header of objects", header(b'{"a":' * 100_000), suffix=".safetensors")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield file(
        "bomb: a header of many names",
        lambda _: header({f"a{i}": entry for i in range(100_000)}),
        suffix=".safetensors",
    )


def header(described: Any, data: bytes = b"") -> bytes:
    content = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(content)) + content + data


# Sizes and values.


def absurd_cases() -> Iterator[Case]:
    four = {"0": b"\0" * 16}

    def one(**arguments: Any) -> bytes:
        options = {"size": (3, 16), "stride": (16, 1), **arguments}
        return pickles.torch_zip(pickles.state_of(**{"fc.weight": pickles.tensor(**options)}), four)

    for name, arguments in {
        "a terabyte by a stride of zero": {"size": (1 << 40,), "stride": (0,)},
        "more than it stores": {"size": (1 << 40, 4), "stride": (4, 1)},
        "a negative size": {"size": (-1, 4), "stride": (4, 1)},
        "a negative stride": {"size": (2, 2), "stride": (-2, 1)},
        "an offset beyond its end": {"size": (4,), "stride": (1,), "offset": 1},
        "a negative offset": {"size": (4,), "stride": (1,), "offset": -4},
        "a huge offset": {"size": (1,), "stride": (1,), "offset": 1 << 62},
        "a stride beyond its end": {"size": (2,), "stride": (1 << 61,)},
        "a size that overflows": {"size": (1 << 32, 1 << 32), "stride": (1, 1)},
        "more strides than sizes": {"size": (4,), "stride": (1, 1)},
        "forty dimensions": {"size": (1,) * 40, "stride": (1,) * 40},
        "sizes that are words": {"size": ("a",), "stride": (1,)},
        "sizes that are true": {"size": (True,), "stride": (1,)},
        "a storage that claims more": {"count": 1 << 40},
        "a storage that claims less": {"count": 2},
        "a negative storage": {"count": -4},
        "a storage of complex numbers": {"kind": "ComplexFloatStorage"},
        "a storage of nothing known": {"kind": "EvilStorage"},
        "zeros of a size that nobody means": {"size": (0, 1 << 61), "stride": (1, 1)},
    }.items():  # fmt: skip
        yield file(f"absurd: {name}", one(**arguments))
    for name, shape, dtype, data in (
        ("a terabyte", [1 << 40, 1 << 20], "F32", b"\0" * 8),
        ("an overflow", [1 << 63, 2], "F32", b"\0" * 8),
        ("a negative size", [-1], "F32", b"\0" * 4),
        ("half a number", [1.5], "F32", b"\0" * 6),
        ("two hundred thousand dimensions", [1] * 200_000, "F32", b"\0" * 4),
        ("no numbers of a huge size", [0, 1 << 62], "F32", b""),
        ("complex numbers", [1], "C64", b"\0" * 8),
        ("numbers of four bits", [4], "F4", b"\0" * 2),
        ("numbers of eight bits", [4], "F8_E4M3", b"\0" * 4),
        ("an unknown type", [1], "F31", b"\0" * 4),
    ):
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
        yield file(f"absurd: safetensors: {name}", header({"fc.weight": entry}, data), suffix=".safetensors")
    for name, described, data in (
        ("nothing at all", {}, b""),
        ("an array", [], b""),
        ("a number", 3, b""),
        ("no type", {"a": {"shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        ("offsets backwards", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
        ("offsets beyond the end", {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"0000"),
        ("a gap", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"00000000"),
        ("an overlap", {k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, b"0000"),
        ("metadata of numbers", {"__metadata__": {"a": 1}}, b""),
        ("a name of escapes", {"\x1b[2Jfc.weight\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        ("a name of a megabyte", {"a" * (1 << 20): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        ("more behind its end", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"00001111"),
    ):  # fmt: skip
        yield file(f"absurd: safetensors: {name}", header(described, data), suffix=".safetensors")
    for name, change in {
        "NaN": {"fc.bias": torch.tensor([0.0, torch.nan, 0.0])},
        "infinity": {"conv1.weight": torch.full((4, 3, 3, 3), torch.inf)},
        "negative infinity": {"layer1.conv1.weight": torch.full((4, 4, 3, 3), -torch.inf)},
        "NaN in a variance": {"bn1.running_var": torch.full((4,), torch.nan)},
        "a negative variance": {"bn1.running_var": torch.full((4,), -1.0)},
        "NaN in half precision": {"fc.bias": torch.full((3,), torch.nan, dtype=torch.float16)},
        "infinity in bfloat16": {"fc.bias": torch.full((3,), torch.inf, dtype=torch.bfloat16)},
        "numbers too large for float32": {"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)},
        "whole numbers": {"fc.bias": torch.zeros(3, dtype=torch.int64)},
        "truths": {"fc.bias": torch.zeros(3, dtype=torch.bool)},
        "another shape": {"fc.bias": torch.zeros(4)},
        "one dimension more": {"fc.bias": torch.zeros(3, 1)},
        "a scalar": {"fc.bias": torch.tensor(0.0)},
        "nothing in a tensor": {"fc.bias": torch.zeros(0)},
        "a name too many": {"fc.more": torch.zeros(3)},
        "a convolution of a million classes": {"fc.weight": torch.zeros(1_000_000, 1)},
    }.items():
        yield file(
            f"values: {name}, safetensors",
            lambda _, c=change: safetensors.torch.save({**state(), **c}),
            suffix=".safetensors",
        )
        yield file(f"values: {name}, torch.save", lambda _, c=change: saved({**state(), **c}))
    for name, value in {
        "nothing": None, "a number": 3, "a text": "state", "an empty dict": {}, "an empty list": [], "a list of tensors": [torch.zeros(1)],
        "a tensor": torch.zeros(3), "numbers by name": {"fc.weight": 3}, "tensors by number": {1: torch.zeros(3)},
        "an empty state dict": {"state_dict": {}}, "a state dict of lists": {"state_dict": {"fc.weight": [1.0]}},
        "two state dicts": {"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}},
        "an optimizer alone": {"optimizer": {"state": {}, "param_groups": []}},
        "prefixes alone": {"module.": torch.zeros(1)}, "an empty name": {"": torch.zeros(1)},
        "half of BackdoorBench": {"model_name": "preactresnet18", "num_classes": 10, "model": None},
        "BackdoorBench without a data set": {"model_name": "preactresnet18", "num_classes": 10, "model": {"x": torch.zeros(1)}},
        "BackdoorBench with a number for a name": {"model_name": 3, "num_classes": 10, "model": {}},
        "BackdoorBench with many classes": {"model_name": "preactresnet18", "num_classes": 1 << 60, "model": {}, "clean_data": "cifar10"},
        "BackdoorBench with true classes": {"model_name": "preactresnet18", "num_classes": True, "model": {}, "clean_data": "cifar10"},
        "BackdoorBench of an unknown network": {"model_name": "../../x", "num_classes": 3, "model": {"x": torch.zeros(1)}, "clean_data": "cifar10"},
    }.items():  # fmt: skip
        yield file(f"content: {name}", lambda _, v=value: saved(v))


# Other files.


def other_cases() -> Iterator[Case]:
    def archived(mode: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            info = tarfile.TarInfo("storages")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"\0" * 4))
        return out.getvalue()

    for name, content in {
        "empty": b"", "one byte": b"\0", "zeros": b"\0" * 4096, "text": b"hello\n" * 9, "HTML": b"<!DOCTYPE html><html>",
        "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "ELF": b"\x7fELF" + b"\0" * 100, "numpy": b"\x93NUMPY\x01\0" + b"\0" * 100,
        "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "gzip": b"\x1f\x8b\x08" + b"\0" * 100, "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 100,
        "ONNX": b"\x08\x07\x12\x07pytorch" + b"\0" * 100, "an empty zip": b"PK\x05\x06" + b"\0" * 18,
        "a zip of something else": compressed(**{"word/document.xml": b"<x/>"}), "numpy's zip": compressed(**{"a.npy": b"\x93NUMPY"}),
        "two pickles in a zip": pickles.torch_zip(b"\x80\x02}.", **{"x/data.pkl": b"\x80\x02}."}), "a git-lfs pointer":
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a tar": archived("w"), "a tar.gz": archived("w:gz"),
        "a highest byte first": pickles.torch_zip(b"\x80\x02}.").replace(b"little", b"big   "),
    }.items():  # fmt: skip
        yield file(f"other: {name}", content)
        yield file(f"other: {name} named .safetensors", content, suffix=".safetensors")

    def special(make: Callable[[Path], None], suffix: str) -> Callable[[Path, Path], Path]:
        def write(folder: Path, _: Path) -> Path:
            path = folder / f"model{suffix}"
            make(path)
            return path

        return write

    for suffix in (".pt", ".safetensors"):
        for name, make in {
            "a pipe": os.mkfifo,
            "a folder": Path.mkdir,
            "nothing there": lambda path: None,
            "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
            "a link to nowhere": lambda path: path.symlink_to("nowhere"),
            "a link to itself": lambda path: path.symlink_to(path.name),
            "a link to a file of /proc": lambda path: path.symlink_to("/proc/self/status"),
            "eight gigabytes of nothing": lambda path: os.truncate(
                os.open(path, os.O_CREAT | os.O_WRONLY), (8 << 30) + 1
            ),
            "a gigabyte of nothing": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30),
        }.items():
            yield Case(f"other: {name}{suffix}", "file", special(make, suffix))
    for kind, member in (
        ("folder", "model.json"), ("folder", "model.safetensors"), ("hugging face", "config.json"),
        ("hugging face", "preprocessor_config.json"), ("hugging face", "model.safetensors"),
        ("polarizer", "polarizer_config.json"), ("polarizer", "polarizer.safetensors"),
        ("backdoored", "attack.json"), ("backdoored", "trigger.safetensors"), ("backdoored", "model.json"),
    ):  # fmt: skip
        if member != "trigger.safetensors":
            yield in_folder(kind, "missing", member, None)
        yield in_folder(kind, "empty", member, b"")
        yield in_folder(kind, "noise", member, random.Random(1).randbytes(500))

        def pipe(folder: Path, _: Path, kind: str = kind, member: str = member) -> Path:
            path = FOLDERS[kind](folder / "input")
            (path / member).unlink()
            os.mkfifo(path / member)
            return path

        yield Case(f"{kind}: {member}: a pipe", kind, pipe)
    for kind, member in (
        ("polarizer", "polarizer.safetensors"),
        ("hugging face", "model.safetensors"),
        ("folder", "model.safetensors"),
    ):
        for share in (0.1, 0.5, 0.9, 0.999):

            def cut(folder: Path, _: Path, kind: str = kind, member: str = member, share: float = share) -> Path:
                path = FOLDERS[kind](folder / "input")
                content = (path / member).read_bytes()
                (path / member).write_bytes(content[: int(share * len(content))])
                return path

            yield Case(f"{kind}: {member}: {share:.1%} of it", kind, cut)


# Configurations.

NO_OBJECTS = ("", "{", "[]", "3", "null", '"text"', "nul", '{"a": }', "[" * 100_000, '{"a":' * 100_000, "\xff\xfe", " " * (9 << 20),
              '{"format": ' + "9" * 5000 + "}")  # fmt: skip
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    1e400,
    float("nan"),
    10**30,
    "",
    "x",
    "../../etc/passwd",
    [],
    [1, 2],
    {},
    {"a": 1},
)


def edited_json(kind: str, member: str, name: str, change: Callable[[dict[str, Any]], Any]) -> Case:
    def write(folder: Path, _: Path) -> Path:
        path = FOLDERS[kind](folder / "input")
        values = json.loads((path / member).read_text())
        out = change(values)
        (path / member).write_text(json.dumps(values if out is None else out))
        return path

    return Case(f"{kind}: {member}: {name}", kind, write)


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            values = values[part]
        values[last] = value

    return change


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            values = values[part]
        del values[last]

    return change


def config_cases() -> Iterator[Case]:
    for kind, member in (
        ("folder", "model.json"), ("hugging face", "config.json"), ("hugging face", "preprocessor_config.json"),
        ("polarizer", "polarizer_config.json"), ("backdoored", "attack.json"),
    ):  # fmt: skip
        for i, text in enumerate(NO_OBJECTS):
            yield in_folder(kind, f"no object {i}", member, text.encode("latin1"))
    # Values that are wrong wherever they stand, by key; those that happen to be right are left out.
    tables: tuple[tuple[str, str, dict[str, tuple[Any, ...]]], ...] = (
        ("folder", "model.json", {
            "arch": (*WRONG, "os.system", "preact_resnet18", "transformers:vit", "timm:x", "user.py:build"),
            "options": (None, True, 3, "x", [], {}, [["classes", 3]]),
            "options.classes": (None, True, -1, 0, 1.5, 10**30, "3", [3], {}, 4, float("nan")),
            "options.width": (None, True, -4, 0, 4.5, 10**9, "4", 8, 4096),
            "options.stride": (0, -1, 10**6, "1"),
            "options.arch": ("small_resnet",), "options.self": (1,), "options.evil": (1,), "options.": (1,), "options.seed": (-1, "0"),
        }),
        ("hugging face", "config.json", {
            "model_type": (*WRONG, "bert", "timm_wrapper", "vit", "llama"),
            "auto_map": ({"AutoModelForImageClassification": "evil.Evil"}, {}, None, "x"),
            "hidden_sizes": (None, True, 3, "x", [], [4], [4, 10**9], [-4, 8], [4, 8, 16], ["4", "8"], [[4], [8]], [4.5, 8], [0, 0]),
            "depths": (3, "x", [], [1], [1, 10**9], [1, 4096], [1, -1], [10_000] * 2, {"a": 1}),
            "num_stages": (0, -1, 1, 3, 1.5, 10**9, "2"),
            "num_channels": (0, -1, 1, 10**9, "3", 4096, [3]),
            "patch_size": (0, -2, 10**9, 3, "2", [[2]]),
            "hidden_act": ("os.system", 3, [], {}, "__import__('os')"),
            "id2label": (3, "x", [], {"a": 1}, {"0": "a"}, {str(i): "x" for i in range(7)}),
            "layer_norm_eps": ("x", [1], {}),
        }),
        ("hugging face", "preprocessor_config.json", {
            "image_mean": (None, 3, "x", [], ["x"], [0.5], [0.5] * 4, [float("nan")] * 3, [[0.5]] * 3, {}),
            "image_std": (None, 3, "x", [], [0.0] * 3, [-1.0] * 3, [float("inf")] * 3, [0.5] * 2),
            "rescale_factor": (None, 0, -1, "x", [], float("nan"), 1e30, True),
        }),
        ("polarizer", "polarizer_config.json", {
            "format": (None, True, 0, 2, "1", 1.0, [1], 10**30),
            "method": (None, 3, "", [], {}), "layer": (None, 3, "", [], {}, "nowhere", "../x", "__class__", "fc"),
            "structure": (None, 3, "", [], "os.system", "__init__", "diagonal", "replicated"),
            "channels": (None, True, -1, 0, 1.5, 10**9, "16", [16], 15, 65_536), "channel_dim": (None, 2, -2, "1", 1.5),
            "classes": (None, True, 0, 1, 2, 4, 10**9, "3", 1.5), "sha256": (None, 3, "", "0" * 64, []),
            "image_shape": (None, 3, "x", [], [3, 8], [3, 8, 8, 8], [3, -8, 8], [3, 0, 8], [3, 10**6, 10**6], ["3", 8, 8], [3.0, 8, 8], [True, 8, 8]),
            "options": (None, 3, "x", [], {"rank": 1}, {"rank": "x"}, {"shape": [1 << 40]}, {"channels": 3}, {"self": 1}),
            "fit": (3, "x", [], {"radius": "x"}, {"epochs": -1}, {"nonsense": 1}, {"norm": 3}, {"steps": 10**400}),
            "history": (3, "x", {}, [3], [[1]], [{"loss": "x"}], [{"loss": None}]),
        }),
        ("backdoored", "attack.json", {
            "format": (None, 0, 2, "1"), "setting": (None, 3, "x", [], {}),
            "setting.attack": (None, 3, "x", [], {}), "setting.attack.name": (None, 3, [], "x", "os.system", "__init__"),
            "setting.attack.options": (None, 3, "x", [], {"evil": 1}, {"learned": {}}, {"self": 1}, {"name": "x"}),
            "setting.attack.options.alpha": ("x", [], {}, float("nan"), float("inf"), True, 10**30),
            "setting.attack.options.target": ("x", -1, 1.5, [0], 10**30), "setting.attack.options.poisoning_ratio": (0, -1, 2, "x"),
        }),
    )  # fmt: skip
    for kind, member, table in tables:
        for key, values in table.items():
            for i, value in enumerate(values):
                shown = f"{value!r:.30}"
                yield edited_json(kind, member, f"{key} = {shown} ({i})", setting(key, value))
    for kind, member, keys in (
        ("folder", "model.json", ("arch", "options", "options.classes", "options.width")),
        ("hugging face", "config.json", ("model_type", "hidden_sizes")),
        ("hugging face", "preprocessor_config.json", ("image_mean", "image_std")),
        ("polarizer", "polarizer_config.json", ("format", "layer", "structure", "channels", "classes", "image_shape", "sha256")),
        ("backdoored", "attack.json", ("format", "setting", "setting.attack", "setting.attack.name")),
    ):  # fmt: skip
        for key in keys:
            yield edited_json(kind, member, f"without {key}", without(key))


CASES: tuple[Case, ...] = (
    *code_cases(), *damage_cases(), *bomb_cases(), *absurd_cases(), *other_cases(), *config_cases(),
)  # fmt: skip


def read(case: Case, path: Path) -> Any:
    """What the library makes of an input, by its reader."""
    from neural_polarizer import PolarizedModel
    from neural_polarizer.lab.backdoor import load_backdoored
    from neural_polarizer.models.checkpoint import read_checkpoint

    if case.kind == "file":
        return read_checkpoint(path, arch=ARCH)
    if case.kind == "polarizer":
        return PolarizedModel.from_pretrained(base(), path)
    if case.kind == "backdoored":
        return load_backdoored(path)
    return read_checkpoint(path)
