"""Official files: found where they were put, or fetched with a checksum, going on where a download stopped."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...files import make_directory
from ...progress import Progress

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class Source:
    """One official file: its address, its name on disk and its MD5, as its publisher states it."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(source: Source, directory: Path, *, download: bool, progress: bool = True) -> Path:
    """The file in `directory`: as it lies there, or downloaded to it.

    A download is written to `<name>.part` and goes on from there when it is called again; only a file of the right
    checksum gets its name.

    Raises:
        InputError: missing and not to be downloaded, no connection, a wrong checksum; it says what to fetch by hand.
    """
    path = directory / source.name
    if path.is_file():
        return path
    by_hand = f"fetch {source.url} by hand and put it at {path}"
    if not download:
        raise InputError(f"data_dir: {path} is missing; pass --download, or {by_hand}")
    make_directory("data_dir", directory)
    part = directory / f"{source.name}.part"
    try:
        _receive(source.url, part, progress)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"data_dir: {source.name} could not be downloaded ({reason}); try again to go on, or {by_hand}"
        ) from None
    found = md5_of(part)
    if found != source.md5:
        part.unlink()
        raise InputError(
            f"data_dir: {source.name} was downloaded with MD5 {found}, wanted {source.md5}; it was removed; {by_hand}"
        )
    os.replace(part, path)
    return path


def _receive(url: str, part: Path, progress: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # everything is there already; the checksum decides
            return
        raise
    with answer:
        resumes = answer.status == 206
        left = int(answer.headers.get("Content-Length") or 0)
        bar = iter(Progress(-(-left // CHUNK), f"download {part.stem}", enabled=progress))
        with open(part, "ab" if resumes else "wb") as file:
            received = 0
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                next(bar, None)
        next(bar, None)
    if left and received < left:
        raise OSError(f"the connection ended after {received} of {left} bytes")
