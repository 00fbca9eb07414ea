"""Tensors in files of strangers: what a file holds is known, and can be compared, before any of it is read."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .errors import InputError, in_short
from .files import regular_file

MAX_FILE = 8 << 30  # bytes
MAX_HEADER = 4 << 20  # bytes of names and shapes; tens of thousands of tensors
MAX_DIMENSIONS = 16
MAX_NAME = 512  # characters
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: what it is, and how to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor] = field(repr=False, compare=False)


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The tensors of a safetensors file by name; nothing but the header is read.

    The library checks that every tensor lies inside the file and that none overlap: no shape claims more than is there.

    Raises:
        InputError: no regular file, damaged, larger than `MAX_FILE`, or with a type of number outside `DTYPES`.
    """
    path = Path(path)
    regular_file(path, limit=MAX_FILE)
    try:
        with open(path, "rb") as raw:
            (header,) = struct.unpack("<Q", raw.read(8))
        if header > MAX_HEADER:
            raise InputError(f"{path}: found no valid safetensors file (a header of {header} bytes)")
        file: Any = safetensors.safe_open(path, framework="pt")
        found = {}
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
            if not name.isprintable() or len(name) > MAX_NAME:
                raise InputError(f"{path}: found a tensor named {name!r:.80}")
            if dtype not in DTYPES or len(shape) > MAX_DIMENSIONS:
                raise InputError(f"{path}: {name!r} is of type {dtype} and {len(shape)} dimensions, not supported")
            found[name] = Stored(shape, DTYPES[dtype], partial(_tensor, file, name, path))
    except (OSError, struct.error, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: found no valid safetensors file ({in_short(error)})") from None
    return found


def _tensor(file: Any, name: str, path: Path) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: found no valid safetensors file ({in_short(error)})") from None
    return tensor


def read_finite(stored: Mapping[str, Stored], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Their values.

    Raises:
        InputError: NaN or infinity among them.
    """
    state = {}
    for name, entry in stored.items():
        state[name] = entry.read()
        if not state[name].isfinite().all():
            raise InputError(f"{source}: {name} is not a finite tensor: there are NaN or infinite values in it")
    return state
