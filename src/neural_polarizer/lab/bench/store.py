"""The folder of a benchmark: `cells/KEY.json` per cell, `networks/KEY/` per network, `logs/`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import make_directory, read_json_object, write_atomically
from ..backdoor import CARD, FILES
from .cells import Cell, Network

DONE, REFUSED, FAILED = "done", "refused", "failed"
"""A cell's outcome: measured; impossible as its defence says (CLP without BatchNorm), which stays; or an error, which
the next run tries again."""
OUTPUTS = "outputs.safetensors"  # what the backdoored network itself says of the test images; written last


@dataclass(frozen=True)
class Store:
    """Reads and writes of one benchmark folder. Every file is written whole or not at all."""

    root: Path

    def make(self) -> None:
        for name in ("cells", "networks", "logs"):
            make_directory("out", self.root / name)

    def network(self, network: Network) -> Path:
        return self.root / "networks" / network.key

    def log(self, key: str) -> Path:
        return self.root / "logs" / f"{key}.log"

    def record(self, key: str) -> Path:
        return self.root / "cells" / f"{key}.json"

    def has_network(self, network: Network) -> bool:
        return (self.network(network) / (OUTPUTS if network.attack else CARD)).exists()

    def is_trained(self, network: Network, beside: Path | None = None) -> bool:
        """Whether nothing is to be trained: it is here, or in the folder that `adopt` would copy it from.

        Raises:
            InputError: no such folder.
        """
        places = [self.network(network)] + ([] if beside is None else [_networks(beside) / network.key])
        return any((place / CARD).exists() for place in places)

    def adopt(self, folder: Path, networks: Iterable[Network]) -> int:
        """Copy from `folder`/KEY/ those networks that are there and not here; how many. They are checked when read.

        Raises:
            InputError: no such folder.
        """
        there, count = _networks(folder), 0
        for network in networks:
            source, place = there / network.key, self.network(network)
            if place.exists() or not (source / CARD).exists():
                continue
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=".adopt") as scratch:
                whole = make_directory("out", Path(scratch) / network.key)
                for name in FILES:
                    if (source / name).is_file():
                        shutil.copyfile(source / name, whole / name)
                whole.rename(place)
            count += 1
        return count

    def outcome(self, cell: Cell) -> str | None:
        """What became of a cell in earlier runs; None: nothing, or nothing readable."""
        try:
            return str(read_json_object(self.record(cell.key))["outcome"])
        except (InputError, KeyError):
            return None

    def write(self, record: dict[str, Any]) -> None:
        write_atomically(self.record(record["key"]), json.dumps(record, indent=1, allow_nan=False) + "\n")


def _networks(folder: Path) -> Path:
    """The folder of networks that a user names, which is to be there."""
    if not folder.is_dir():
        raise InputError(f"networks: {str(folder)!r} is no folder")
    return folder


def read_records(root: Path) -> list[dict[str, Any]]:
    """All records of a benchmark folder, or of any folder of records, in the order of their names.

    Raises:
        InputError: no record there, or one that is damaged.
    """
    folder = root / "cells" if (root / "cells").is_dir() else root
    records = [read_json_object(path) for path in sorted(folder.glob("*.json"))]
    records = [r for r in records if "outcome" in r and "setting" in r]
    if not records:
        raise InputError(f"folder: found no record of a benchmark in {str(root)!r}, wanted what bench run --out wrote")
    return records
