"""A data set's files: a folder, a zip or a tar, read as input from strangers.

Nothing is ever extracted: members are read by name, into memory, with a bound. Names that climb out of their archive
(`..`, absolute paths), links and devices are refused, whether or not anybody asks for them.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...errors import InputError

MAX_MEMBERS = 2_000_000
MAX_FILE = 1 << 30  # bytes of one member
MAX_TOTAL = 8 << 30  # bytes of all members that are read together
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def checked_name(archive: Path, name: str) -> str:
    """The name, where it stays inside its archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]) or "\0" in name:
        raise InputError(f"{archive}: found a member named {name!r}, wanted names inside the archive")
    return str(path)


class Files(ABC):
    """Files by their name relative to the root, with `/` between folders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> Sequence[str]:
        """All file names, sorted."""

    @abstractmethod
    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Those files with their content, in whatever order is fast."""

    def find(self, ending: str) -> str:
        """The one file whose path ends so, wherever the archive's root is."""
        found = [n for n in self.names() if n == ending or n.endswith("/" + ending)]
        if len(found) != 1:
            raise InputError(f"{self.path}: found {len(found)} files {ending!r}, wanted one")
        return found[0]

    def one(self, ending: str) -> bytes:
        return next(self.read([self.find(ending)]))[1]


def files_below(directory: Path) -> list[Path]:
    """All files below a folder, sorted by path; links are not followed out of it."""
    root = directory.resolve()
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.resolve().is_relative_to(root))


class Folder(Files):
    """A folder on disk; links out of it are not followed."""

    def names(self) -> Sequence[str]:
        return sorted(p.relative_to(self.path).as_posix() for p in files_below(self.path))

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            try:
                path = self.path / name
                if path.stat().st_size > MAX_FILE:
                    raise InputError(f"{path}: found {path.stat().st_size} bytes, too large a file")
                yield name, path.read_bytes()
            except OSError as error:
                raise InputError(f"{self.path / name}: cannot be read ({error.strerror})") from None


class Zip(Files):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(path) as file:
                infos = file.infolist()
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise InputError(f"{path}: is no zip archive that can be read ({error})") from None
        if len(infos) > MAX_MEMBERS:
            raise InputError(f"{path}: found {len(infos)} members, too many")
        for info in infos:
            name = checked_name(path, info.filename)
            kind = info.external_attr >> 28
            if kind == 0o12:
                raise InputError(f"{path}: {name!r} is a link, wanted files and folders alone")
            if not info.is_dir():
                if name in self._members:
                    raise InputError(f"{path}: found two members named {name!r}")
                self._members[name] = info

    def names(self) -> Sequence[str]:
        return sorted(self._members)

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        total = 0
        try:
            with zipfile.ZipFile(self.path) as file:
                for name in names:
                    info = self._members[name]
                    with file.open(info) as member:  # reads as many bytes as were promised, and no more
                        if info.file_size > MAX_FILE:
                            raise InputError(f"{self.path}: {name!r} claims {info.file_size} bytes, too large a member")
                        data = member.read(info.file_size + 1)
                    total += len(data)
                    if len(data) != info.file_size or total > MAX_TOTAL:
                        raise InputError(f"{self.path}: {name!r} is not of the size it claims, or all are too large")
                    yield name, data
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.path}: is damaged or encrypted ({error})") from None


class Tar(Files):
    """A tar archive, plain or gzipped; read once from start to end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._sizes: dict[str, int] = {}
        for member in self._members():
            name = checked_name(path, member.name)
            if member.isdir():
                continue
            if not member.isfile():
                raise InputError(f"{path}: {name!r} is a link or a device, wanted files and folders alone")
            if name in self._sizes:
                raise InputError(f"{path}: found two members named {name!r}")
            self._sizes[name] = member.size

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            with tarfile.open(self.path, "r:*") as file:
                for count, member in enumerate(file):
                    if count > MAX_MEMBERS or member.size > MAX_FILE:
                        raise InputError(f"{self.path}: found too many or too large members")
                    yield member
        except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: is no tar archive that can be read ({error})") from None

    def names(self) -> Sequence[str]:
        return sorted(self._sizes)

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        wanted, total = set(names), 0
        try:
            with tarfile.open(self.path, "r:*") as file:
                for member in file:
                    name = checked_name(self.path, member.name)
                    if name not in wanted or not member.isfile():
                        continue
                    content = file.extractfile(member)
                    data = content.read(MAX_FILE + 1) if content else b""
                    total += len(data)
                    if total > MAX_TOTAL:
                        raise InputError(f"{self.path}: holds more than {MAX_TOTAL} bytes, too large")
                    yield name, data
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path}: is damaged ({error})") from None


def open_files(path: Path, argument: str = "data_dir") -> Files:
    """The files of a folder, a zip or a tar archive.

    Raises:
        InputError: nothing there, another kind of file, a damaged archive, members that climb out of it.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise InputError(f"{argument}: {str(path)!r} is neither a folder nor a file; give one that exists")
    if path.name.lower().endswith(".zip"):
        return Zip(path)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return Tar(path)
    raise InputError(f"{argument}: found {str(path)!r}, wanted a folder, .zip, .tar, .tar.gz or .tgz")
