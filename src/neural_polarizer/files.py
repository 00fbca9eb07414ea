"""Files: written whole or not at all, read with a bound."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from .errors import InputError, in_short

MAX_JSON = 1 << 20  # bytes


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write to a temporary name beside `path`, then rename: whoever reads sees the old file or the new one."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def make_directory(argument: str, path: str | os.PathLike[str]) -> Path:
    """The directory at `path`, made where it is missing."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{argument}: {str(path)!r} cannot be made a directory ({error.strerror})") from None
    return Path(path)


def regular_file(path: str | os.PathLike[str], *, limit: int) -> None:
    """Refuse what is too large, and what is no regular file: a pipe or a device may keep its reader waiting forever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is no regular file")
    if found.st_size > limit:
        raise InputError(f"{path}: found {found.st_size} bytes, wanted at most {limit}")


def read_json_object(path: Path, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes."""
    regular_file(path, limit=limit)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path}: found more than {limit} bytes, wanted a small JSON file")
        value = json.loads(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: found no JSON ({in_short(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a JSON {type(value).__name__}, wanted an object")
    return value
