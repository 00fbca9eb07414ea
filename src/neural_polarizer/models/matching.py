"""Which architecture, and how wide: read off the names and shapes in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..tensorfile import Stored
from .elsewhere import FAMILIES, PREFIX
from .filling import differences
from .sketch import sketch
from .zoo import ARCHITECTURES, build_model, options_of

USUAL = 10  # classes, where a file does not say: it will not fit
SIZES = (32, 64, 224)  # of images: those that the networks of `transformers` are tried for


def outline(arch: str, options: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The state dict of an architecture, without numbers."""
    state: dict[str, Tensor] = sketch(partial(build_model, arch, **options), len(stored)).state_dict()
    return state


def renamed(arch: str, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """With the names that our wrapper gives to the networks of other libraries, where they have their own."""
    if ":" in arch and not all(name.startswith(PREFIX) for name in stored):
        return {PREFIX + name: entry for name, entry in stored.items()}
    return dict(stored)


def completed(arch: str, options: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Any]:
    """`options` with the classes, channels and width of the file where they were not given.

    The first convolution has the width and the channels, the last matrix the classes; an architecture of usual size
    says which of its tensors these are.
    """
    takes = set(options_of(arch))
    if ":" in arch and not arch.startswith("transformers:"):
        takes -= {"width"}  # it is in the name
    pattern = outline(arch, {"classes": USUAL, **options}, stored)
    first = next((n for n, v in pattern.items() if v.ndim == 4), "")
    last = next((n for n, v in reversed(pattern.items()) if v.ndim == 2), "")
    found = {}
    if first in stored and len(stored[first].shape) == 4:
        found["width"], found["channels"] = stored[first].shape[:2]
    if last in stored and len(stored[last].shape) == 2:
        found["classes"] = stored[last].shape[0]
    return {"classes": USUAL, **{k: v for k, v in found.items() if k in takes}, **options}


def fitting(stored: Mapping[str, Stored]) -> Iterator[str]:
    """Every known architecture that a file fits, with its options in words."""
    for arch, options in _candidates(stored):
        try:
            names = renamed(arch, stored)
            full = completed(arch, options, names)
            if not differences(outline(arch, full, names), names):
                yield ", ".join([arch, *(f"{k}={v}" for k, v in full.items())])
        except InputError:
            continue


def _candidates(stored: Mapping[str, Stored]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((arch, {}) for arch in ARCHITECTURES)
    starts = {name.removeprefix(PREFIX).partition(".")[0] for name in stored}
    for family in FAMILIES:  # whose networks begin with their own name: transformers is imported for no other
        if family in starts:
            yield from ((f"transformers:{family}", {"size": size}) for size in SIZES)


def advice(stored: Mapping[str, Stored]) -> str:
    """What to ask for instead, in words."""
    fits = list(dict.fromkeys(fitting(stored)))
    if not fits:
        return "it fits no architecture known here: give its own as path/to/file.py:function"
    return f"it fits {' or '.join(fits)}"
