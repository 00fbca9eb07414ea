"""`metrics.json` of `polarize purify` and `demo`, read as input from strangers."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..choice import Trial
from ..errors import InputError
from ..files import read_json_object
from ..suspicion import Suspicion

METRICS = "metrics.json"
MAX_METRICS = 1 << 24  # bytes
COMMANDS = ("purify", "demo")
KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str, "float": (int, float), "bool": bool, "int": int, "int | None": (int, type(None)),
}  # fmt: skip
LATER = {"suspect", "look"}  # of a trial: records of earlier versions say nothing of them


class Recorded:
    """Checked values of the file: every one has the right type, or there is an `InputError` that names it.

    Attributes:
        command: that wrote it.
        values: everything, `verdict`, `setting` and the like being what they should.
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source = values, source
        self.command = self.text("command", default="")
        if self.command not in COMMANDS:
            raise InputError(
                f"folder: {source} does not say that `polarize purify` or `polarize demo` wrote it; run that again"
            )
        self.section("setting")
        if self.command == "purify":
            verdict = values.get("verdict")
            if not isinstance(verdict, list) or not verdict or not all(isinstance(s, str) for s in verdict):
                raise self._wrong("verdict", verdict, "a list of sentences")
            if not isinstance(values.get("within_budget"), bool):
                raise self._wrong("within_budget", values.get("within_budget"), "true or false")
            self.section("versions")
            self.number("seconds")
            self.text("machine")

    def _wrong(self, key: str, value: object, wanted: str) -> InputError:
        return InputError(f"{self.source}: {key}: found {value!r:.80}, wanted {wanted}")

    def _at(self, keys: tuple[str, ...]) -> object:
        value: Any = self.values
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def section(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value

    def text(self, *keys: str, default: str | None = None) -> str:
        value = self._at(keys)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(".".join(keys), value, "a string")
        return value

    def whole(self, *keys: str, least: int = 0, default: int | None = None) -> int:
        value = self._at(keys)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value < 1 << 40:
            raise self._wrong(".".join(keys), value, f"a whole number from {least} on")
        return value

    def number(self, *keys: str) -> float:
        value = self._at(keys)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1 << 40:
            raise self._wrong(".".join(keys), value, "a number")
        return value

    def suspicion(self) -> Suspicion:
        """Where the perturbations of the original model ended."""
        excess = self._shares("excess", self._at(("choice", "suspicion", "excess")))
        rows = self._at(("choice", "suspicion", "reached"))
        if not isinstance(rows, list):
            raise self._wrong("choice.suspicion.reached", rows, "a list of lists of shares")
        reached = tuple(self._shares("reached", row) for row in rows)
        if not excess or any(len(row) != len(excess) for row in reached):
            raise self._wrong("choice.suspicion.reached", rows, "a share per class in every list")
        return Suspicion(excess, reached)

    def poisoned(self, images: int) -> list[int]:
        """Which of the clean images were left out."""
        rows = self._at(("choice", "poisoned")) or []  # not in records of before they were looked for
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < images for row in rows):
            raise self._wrong("choice.poisoned", rows, f"a list of whole numbers below {images}")
        return rows

    def _shares(self, key: str, value: object) -> tuple[float, ...]:
        if not isinstance(value, list) or not all(
            isinstance(v, (int, float)) and math.isfinite(v) and -1 <= v <= 1 for v in value
        ):
            raise self._wrong(f"choice.suspicion.{key}", value, "a list of shares from -1 to 1")
        return tuple(float(v) for v in value)

    def trials(self) -> tuple[tuple[Trial, ...], int | None]:
        """What was tried, and the place of what was taken."""
        rows, chosen = self._at(("choice", "trials")), self._at(("choice", "chosen"))
        kinds = {f.name: KINDS[str(f.type)] for f in fields(Trial)}
        if not isinstance(rows, list) or not all(
            isinstance(row, dict)
            and set(kinds) - LATER <= set(row) <= set(kinds)
            and all(isinstance(value, kinds[name]) for name, value in row.items())
            for row in rows
        ):
            raise self._wrong("choice.trials", rows, f"a list of objects with {', '.join(kinds)}")
        if chosen is not None and type(chosen) is not int:
            raise self._wrong("choice.chosen", chosen, "a place in the list, or null")
        return tuple(Trial(**row) for row in rows), chosen


def recorded(folder: Path) -> Recorded:
    """The checked `metrics.json` of a folder.

    Raises:
        InputError: none there, or one that these commands did not write.
    """
    path = folder / METRICS
    if not path.exists():
        below = sorted(p.parent.name for p in folder.glob(f"*/{METRICS}")) if folder.is_dir() else []
        hint = f"; name one of its folders: {', '.join(below[:8])}" if below else ""
        raise InputError(
            f"folder: {str(folder)!r} holds no {METRICS}, wanted what `polarize purify` or `polarize demo` wrote{hint}"
        )
    return Recorded(read_json_object(path, limit=MAX_METRICS), str(path))
