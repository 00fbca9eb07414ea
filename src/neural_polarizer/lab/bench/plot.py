"""Plots from records: DER against clean images, ASR against what accuracy was lost, time against DER."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...files import make_directory, write_atomically
from .table import PLACE, leaderboard, over_seeds

SUFFIXES = ("png", "svg")
MARKERS = "osD^v<>PX*hpd8"
COLOURS = [f"C{i}" for i in range(10)]


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th defence, the same in every plot."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _defences(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    names = sorted(set(frame["defence"]) - {"none"})
    return {name: _look(i) for i, name in enumerate(names)}


def _der_by_clean(axes: Axes, frame: pd.DataFrame) -> None:
    board = leaderboard(frame)
    for name, look in _defences(board).items():
        mine = board[board["defence"] == name].groupby("clean")["der_share"].mean().sort_index()
        axes.plot(mine.index, mine.to_numpy(), label=name, **look)
    axes.set(xscale="log", xlabel="clean images", ylabel="DER / ceiling, mean over attacks")


def _asr_by_loss(axes: Axes, frame: pd.DataFrame) -> None:
    rows = over_seeds(frame)
    for name, look in _defences(rows).items():
        mine = rows[rows["defence"] == name]
        axes.scatter(100 * (mine["acc_before"] - mine["acc"]), 100 * mine["asr"], label=name, s=24, alpha=0.8, **look)
    axes.set(xlabel="ACC drop (points)", ylabel="ASR (%)")


def _der_by_time(axes: Axes, frame: pd.DataFrame) -> None:
    board = leaderboard(frame)
    for name, look in _defences(board).items():
        mine = board[board["defence"] == name]
        axes.scatter(mine["seconds"].clip(lower=0.01), mine["der_share"], label=name, **look)
    axes.set(xscale="log", xlabel="seconds per model", ylabel="DER / ceiling, mean over attacks")


PLOTS: dict[str, Callable[[Axes, pd.DataFrame], None]] = {
    "der_by_clean_images": _der_by_clean,
    "asr_by_acc_drop": _asr_by_loss,
    "der_by_seconds": _der_by_time,
}


def write_plots(out: Path, frame: pd.DataFrame) -> list[Path]:
    """Every plot as PNG and SVG below `out`, per data set, architecture and poisoning ratio; the files written."""
    make_directory("out", out)
    written = []
    for place, mine in frame.groupby(PLACE[:3], sort=False):
        dataset, architecture, ratio = place
        where = f"{dataset}_{architecture}_{ratio:g}".replace("/", "-").replace(":", "-").replace(" ", "-")
        for name, draw in PLOTS.items():
            figure = Figure(figsize=(6.4, 4.2), layout="constrained")
            axes = figure.add_subplot()
            draw(axes, mine)
            axes.grid(alpha=0.3)
            axes.set_title(f"{dataset}, {architecture}, poisoning ratio {ratio:g}", fontsize=10)
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
            for suffix in SUFFIXES:
                buffer = io.BytesIO()
                # No date and no random names in the file: the same records are the same bytes.
                with matplotlib.rc_context({"svg.hashsalt": name}):
                    figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                path = out / f"{where}_{name}.{suffix}"
                write_atomically(path, buffer.getvalue())
                written.append(path)
    return written
