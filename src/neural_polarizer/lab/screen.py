"""Rank many models by suspicion: where do perturbations of clean images end?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..attempts import attempt
from ..checks import check_labels
from ..config import FitConfig
from ..cut import frozen_view, logits_of
from ..errors import InputError
from ..files import make_directory, write_atomically
from ..mixture import SPARSE, Family
from ..progress import Progress
from ..suspicion import Suspicion
from .clean_folder import check_classes
from .datasets.base import to_floats
from .machine import versions

# Beside the small families that `purify` fits on: few tones are no perturbation to fit on, but a trigger to look for.
TONES = Family(threat="quantised", radius=4, share="target", steps=10, step=0.1, focus=2)


@dataclass(frozen=True)
class Screened:
    """One model: its suspicion, or why there is none."""

    name: str
    suspicion: Suspicion | None
    seconds: float
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.suspicion
        about = {"error": self.error} if found is None else {"score": found.score, "target": found.target}
        more = {} if found is None else {"excess": list(found.excess)}
        return {"name": self.name, **about, "seconds": round(self.seconds, 2), **more}


def suspicion_in(
    model: nn.Module, images: Tensor, labels: Tensor | None, *, seed: int = 0, progress: bool = False
) -> Suspicion:
    """How much each class of a model stands out, with images (N, C, H, W) in [0, 1] and labels (N,) or None."""
    view = frozen_view(model)
    base = FitConfig.in_rounds()
    config = replace(base, mixture=(*(f for f in base.mixture if f.telling == 1 and f.threat not in SPARSE), TONES))
    return attempt(lambda x: logits_of(view(x)), images, labels, config, seed=seed + 1, progress=progress).suspicion


def candidates(directory: Path) -> list[Path]:
    """Files and folders in `directory`, sorted; hidden ones are not looked at."""
    if not directory.is_dir():
        raise InputError(f"models: {str(directory)!r} is no folder, wanted one of checkpoints")
    found = sorted(p for p in directory.iterdir() if not p.name.startswith("."))
    if not found:
        raise InputError(f"models: found nothing in {str(directory)!r}, wanted checkpoints")
    return found


def screen(
    paths: list[Path],
    read: Callable[[Path], nn.Module],
    images: Tensor,
    labels: Tensor | None,
    names: tuple[str, ...],
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> list[Screened]:
    """Every model, the most suspicious first, those that could not be read last. One bad file stops nothing.

    Args:
        read: a path -> a network; an `InputError` of it is that model's.
        images: (N, C, H, W) uint8. labels, names: see `read_clean`.
    """
    floats, out = to_floats(images).to(device), []
    bar = Progress(len(paths), "screen", enabled=progress, lines=len(paths))
    for i in bar:
        started, found, error = time.perf_counter(), None, ""
        try:
            model = read(paths[i]).to(device)
            classes = logits_of(frozen_view(model)(floats[:2])).shape[1]
            check_classes(labels, names, classes)
            given = None if labels is None else check_labels("clean", labels, len(floats), classes).to(device)
            found = suspicion_in(model, floats, given, seed=seed)
        except InputError as problem:
            error = str(problem)
        except (RuntimeError, ValueError, TypeError, IndexError) as problem:  # a network that fails on these images
            error = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
        out.append(Screened(paths[i].name, found, time.perf_counter() - started, error))
        bar.note(paths[i].name)
    return sorted(out, key=lambda s: (s.suspicion is None, -(s.suspicion.score if s.suspicion else 0.0), s.name))


def write_screened(path: Path, found: list[Screened], setting: dict[str, Any]) -> None:
    """All of it as JSON."""
    make_directory("out", path.parent)
    value = {"format": 1, "models": [s.to_dict() for s in found], "setting": setting, "versions": versions()}
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def table_of(found: list[Screened]) -> list[tuple[str, ...]]:
    """Header first."""
    rows: list[tuple[str, ...]] = [("model", "suspicion", "target", "seconds")]
    for s in found:
        if s.suspicion is None:
            rows.append((s.name, "not read", s.error[:60], ""))
        else:
            target = "" if s.suspicion.target is None else str(s.suspicion.target)
            rows.append((s.name, f"{s.suspicion.score:.3f}", target, f"{s.seconds:.1f}"))
    return rows
