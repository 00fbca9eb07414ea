"""A saved polarizer's two files, read as what they are: input from strangers."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch

from .build import build_polarizer
from .choice import JUDGED
from .config import FitConfig
from .errors import InputError, in_short
from .files import read_json_object
from .history import History
from .polarizers import Polarizer
from .tensorfile import open_safetensors, read_finite

FORMAT = 1
CONFIG_FILE = "polarizer_config.json"
WEIGHTS_FILE = "polarizer.safetensors"
MAX_CHANNELS = 65_536
MAX_PIXELS = 3 * 8192 * 8192  # of one image: what claims more is not believed


class SavedPolarizer:
    """The checked content of `polarizer_config.json`; every value has the right type and a believable size."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values, self._source = values, source
        if self._whole("format", 1, 1 << 30) != FORMAT:
            raise InputError(f"{source}: found format {values['format']}, wanted {FORMAT}; update neural-polarizer")
        self.method, self.layer = self._text("method"), self._text("layer")
        self.structure, self.sha256 = self._text("structure"), self._text("sha256")
        self.channels = self._whole("channels", 1, MAX_CHANNELS)
        self.channel_dim = self._whole("channel_dim", -1, 1)
        self.classes = self._whole("classes", 2, 1 << 24)
        shape = values.get("image_shape")
        if not isinstance(shape, list) or len(shape) != 3 or not all(type(s) is int and s > 0 for s in shape):
            raise self._wrong("image_shape", "three positive whole numbers")
        if math.prod(shape) > MAX_PIXELS:
            raise self._wrong("image_shape", f"at most {MAX_PIXELS} values")
        self.image_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.options = self._object("options")
        if not all(isinstance(v, (int, list)) for v in self.options.values()):
            raise self._wrong("options", "whole numbers and lists of them")
        try:
            self.fit = FitConfig.from_dict(self._object("fit")) if values.get("fit") is not None else None
        except OverflowError:  # a number beyond all floats
            raise self._wrong("fit", "numbers of a believable size") from None
        rows = values.get("history", [])
        if not isinstance(rows, list) or not all(
            isinstance(r, dict) and all(type(v) in (int, float) for v in r.values()) for r in rows
        ):
            raise self._wrong("history", "a list of rows of numbers")
        self.history = History(rows)
        self.clean_images = None
        if values.get("clean_images") is not None:
            self.clean_images = self._whole("clean_images", 1, 1 << 40)
        judged = self._object("judged") if values.get("judged") is not None else None
        if judged is not None and not (set(judged) == set(JUDGED) and all(map(_finite, judged.values()))):
            raise self._wrong("judged", f"numbers for {', '.join(JUDGED)}")
        self.judged: dict[str, float] | None = judged

    def _wrong(self, key: str, wanted: str) -> InputError:
        return InputError(f"{self._source}: {key}: found {self._values.get(key)!r:.80}, wanted {wanted}")

    def _text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a string")
        return value

    def _whole(self, key: str, low: int, high: int) -> int:
        value = self._values.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def _object(self, key: str) -> dict[str, Any]:
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return value

    def load(self, path: Path) -> Polarizer:
        """The polarizer with the weights at `path`; their sizes are compared before anything is allocated."""
        stored = open_safetensors(path)
        found = {k: entry.shape for k, entry in stored.items()}
        try:
            with torch.device("meta"):
                wanted = {k: tuple(v.shape) for k, v in self._build().state_dict().items()}
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
            raise InputError(f"{self._source}: describes no polarizer ({in_short(error)})") from None
        if found != wanted:
            odd = sorted(set(found.items()) ^ set(wanted.items()))[:4]
            raise InputError(f"{path}: its tensors do not fit the config beside it, for instance {odd}")
        types = {entry.dtype for entry in stored.values()}
        if len(types) != 1 or not all(t.is_floating_point for t in types):
            raise InputError(f"{path}: found tensors of {sorted(map(str, types))}, wanted one floating-point type")
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise InputError(
                f"{path}: its SHA-256 is not the one in the config beside it: another or a damaged one; copy both anew"
            )
        state = read_finite(stored, path)
        polarizer = self._build().to(types.pop())
        polarizer.load_state_dict(state)
        return polarizer

    def _build(self) -> Polarizer:
        return build_polarizer(self.structure, channels=self.channels, channel_dim=self.channel_dim, **self.options)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1 << 40  # NaN is not


def read_saved(directory: str | os.PathLike[str]) -> SavedPolarizer:
    """The checked config of the polarizer in a folder.

    Raises:
        InputError: no polarizer there, or a config that is none.
    """
    folder = Path(directory)
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(
            f"directory: {str(folder)!r} holds no polarizer, wanted the {CONFIG_FILE} and {WEIGHTS_FILE} of `purify`"
        )
    return SavedPolarizer(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
