"""What `torch.save` wrote, read without `torch.load`: the pickle inside is walked, not run, and only plain data pass.

A file of PyTorch is a zip archive: `data.pkl` says what there is, `data/0`, `data/1`, ... hold the tensors' numbers.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, in_short
from ..files import regular_file
from ..tensorfile import MAX_DIMENSIONS, MAX_FILE, Stored
from .pickled import Maker, Name, NotPlain, are_sizes, as_dict, foreign_globals, read_pickle, said

MAX_PICKLE = 64 << 20  # bytes
MAX_PIECE = 4 << 20  # bytes of one read, and so of the zip's directory, which is read at once
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of what follows that
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

TRUSTED = "if you trust whoever made it, convert it on a machine where it may run:"
REWRITE = f"{TRUSTED} python -c \"import torch; torch.save(torch.load('FILE', weights_only=True), 'state.pt')\""
TAKE_STATE = (
    f"{TRUSTED} python -c \"import torch; m = torch.load('FILE', weights_only=False); "
    "torch.save(getattr(m, 'state_dict', lambda: m)(), 'state.pt')\""
)
TAKE_SCRIPTED = f"{TRUSTED} python -c \"import torch; torch.save(torch.jit.load('FILE').state_dict(), 'state.pt')\""


def read_torch_file(path: Path) -> Any:
    """The value that `torch.save` wrote, with a `Stored` for every tensor.

    Plain data: numbers, strings, lists, tuples, dicts, numpy's arrays and scalars (as tensors and numbers). The numbers
    of the tensors are read when they are asked for.

    Raises:
        InputError: another kind of file, damaged, too large, compressed, or in need of code to be loaded: what it would
            call is named, nothing is run.

    Example:
        >>> read_torch_file(Path("checkpoint.pt"))["state_dict"]["conv1.weight"].shape  # doctest: +SKIP
        (64, 3, 3, 3)
    """
    regular_file(path, limit=MAX_FILE)
    with _opened(path) as file:
        start = file.read(2)
        file.seek(0)
        if start[:1] == b"\x80":
            _refuse_pickle(path, file)
        if start != b"PK":
            raise InputError(f"model: {path} is neither a safetensors file nor one that torch.save wrote")
    return _Archive(path).value()


def _refuse_pickle(path: Path, file: _Bounded) -> None:
    """The format from before PyTorch 1.6 is several pickles in a row; anything else that is a pickle is no better."""
    found = foreign_globals(io.BytesIO(file.read(MAX_PIECE)), _known(lambda *_: None))
    if found:
        raise InputError(f"model: {path} is a pickle that calls {said(found)} when it is opened; {TAKE_STATE}")
    raise InputError(f"model: {path} is in the format from before PyTorch 1.6 or a bare pickle, not read; {REWRITE}")


class _Bounded(io.FileIO):
    """A file that never gives more than `MAX_PIECE` bytes at once: what a zip says of its own size is not believed."""

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(MAX_PIECE + 1 if size is None or size < 0 else min(size, MAX_PIECE + 1))
        if piece is not None and len(piece) > MAX_PIECE:
            raise InputError("a directory that is too large")
        return piece or b""


def _opened(path: Path) -> _Bounded:
    try:
        return _Bounded(path)
    except OSError as error:
        raise InputError(f"model: {path} cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class _Storage:
    """The numbers that tensors are views of."""

    key: str
    dtype: torch.dtype
    count: int


class _Archive:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = cache(self._storage_values)
        try:
            with _opened(path) as file, zipfile.ZipFile(file) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
        except Exception as error:  # zipfile has many ways to say that a file is none
            raise self._damaged(error) from None
        roots = [name.removesuffix("data.pkl") for name in self._members if name.endswith("data.pkl")]
        if len(roots) != 1:
            raise InputError(f"model: {path} is a zip archive that torch.save did not write: it has no one data.pkl")
        self._root = roots[0]
        code = [name for name in self._members if name.startswith((f"{self._root}code/", f"{self._root}constants.pkl"))]
        if code:
            raise InputError(
                f"model: {path} is a TorchScript program ({said(code, 2)} in it), not read; {TAKE_SCRIPTED}"
            )
        sizes = sum(info.file_size for info in self._members.values())
        if sizes > path.stat().st_size or any(info.compress_type for info in self._members.values()):
            raise InputError(
                f"model: {path} would unpack to {sizes} bytes; torch.save compresses nothing, this is none of its files"
            )
        if self._members.get(f"{self._root}byteorder") and self._read("byteorder", 16).strip() == b"big":
            raise InputError(f"model: {path} was written on a machine that puts the highest byte first; not supported")

    def value(self) -> Any:
        data = self._read("data.pkl", MAX_PICKLE)
        try:
            return read_pickle(data, str(self._path), makers=_known(self._tensor), persistent=self._storage)
        except NotPlain as error:
            whole = any(name.startswith("torch.nn.modules.") for name in error.foreign)
            what = "holds a whole pickled module" if whole else "is no plain state dict"
            raise InputError(
                f"model: {self._path} {what}: it calls {said(error.foreign)} when it is opened; {TAKE_STATE}"
            ) from None

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"model: {self._path} is a damaged zip archive ({in_short(error)})")

    def _read(self, name: str, limit: int) -> bytes | bytearray:
        """A member, whole and with the check sum that it claims."""
        info = self._members.get(self._root + name)
        if info is None or info.file_size > limit:
            raise InputError(f"model: {self._path} has no {name!r:.80} of at most {limit} bytes")
        content = bytearray()
        try:
            with _opened(self._path) as file:
                file.seek(info.header_offset)
                after, more = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                file.seek(after + more, io.SEEK_CUR)
                while missing := info.file_size - len(content):
                    content += file.read(min(missing, MAX_PIECE)) or _no_more()
        except (OSError, struct.error, InputError) as error:
            raise self._damaged(error) from None
        if zlib.crc32(content) != info.CRC:
            raise self._damaged(InputError(f"{name!r:.80} has another check sum"))
        return content

    def _storage(self, key: Any) -> _Storage:
        """A persistent id: ("storage", the class of its numbers, member, device, how many)."""
        if not isinstance(key, tuple) or len(key) != 5:
            raise InputError("a persistent id that is no storage")
        what, kind, member, _, count = key
        text = isinstance(member, str) and len(member) < 64
        if what != "storage" or not isinstance(kind, Name) or not text or not are_sizes((count,)):
            raise InputError("a persistent id that is no storage")
        library, _, name = kind.path.partition(" ")
        if library != "torch" or name not in STORAGES:
            raise InputError(f"a storage of the class {kind.path!r:.80}")
        info = self._members.get(f"{self._root}data/{member}")
        if info is None or info.file_size != count * STORAGES[name].itemsize:
            raise InputError(f"a storage of {count} numbers that are not in the file")
        return _Storage(member, STORAGES[name], count)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
        """What `_rebuild_tensor_v2` would make; it must lie inside its storage, and may not be larger."""
        if (
            not isinstance(storage, _Storage)
            or not are_sizes((offset,))
            or not are_sizes(size)
            or not are_sizes(stride)
        ):
            raise InputError("a tensor of no sizes")
        shape, steps = tuple(size), tuple(stride)
        if (
            not len(shape) == len(steps) <= MAX_DIMENSIONS
            or math.prod(shape) > storage.count
            or (
                math.prod(shape)
                and offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True)) >= storage.count
            )
        ):
            raise InputError("a tensor that is not inside its storage")
        return Stored(shape, storage.dtype, lambda: self._values(storage).as_strided(shape, steps, offset))

    def _storage_values(self, storage: _Storage) -> Tensor:
        content = self._read(f"data/{storage.key}", MAX_FILE)
        if not content:
            return torch.zeros(0, dtype=storage.dtype)
        return torch.frombuffer(content, dtype=storage.dtype)


def _no_more() -> bytes:
    raise InputError("the end comes too early")


def _known(tensor: Callable[..., Any]) -> dict[str, Maker]:
    """What stands for the globals in a state dict and the things that lie beside one in a checkpoint."""
    return {
        "collections OrderedDict": as_dict,
        "collections Counter": as_dict,
        "torch Size": _size,
        "torch device": lambda *_: None,
        "torch._utils _rebuild_tensor": tensor,
        "torch._utils _rebuild_tensor_v2": tensor,
        "torch._utils _rebuild_parameter": lambda data, *_: data,
        "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
        **{f"torch {name}": _never_called for name in STORAGES},
    }


def _size(items: Any = ()) -> tuple[int, ...]:
    if not are_sizes(items):
        raise InputError("a size of no sizes")
    return tuple(items)


def _never_called(*_: Any) -> Any:
    raise InputError("a storage that is called")
