"""Charts as SVG that takes colour and font of its text from the page: light, dark and print alike.

No text from outside gets into them: matplotlib reads formulas in its labels.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..history import History
from .figures import Detection, Layer, Pattern, Projection

BEFORE, AFTER, OTHER = (
    "#2f7dd8",
    "#e0872a",
    "#d1495b",
)  # seen on white and on black, and told apart without red and green
FONT: Any = {"svg.fonttype": "none", "svg.hashsalt": "neural-polarizer", "font.family": "sans-serif", "font.size": 9}


@contextmanager
def drawn(columns: int = 1, height: float = 3.0) -> Iterator[tuple[Any, list[Any], list[str]]]:
    """A figure, its axes in a row, and a list that has the SVG in it afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = list(figure.subplots(1, columns, squeeze=False)[0])
        out: list[str] = []
        yield figure, axes, out
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.patch.set_alpha(0)
            legend = each.get_legend()
            if legend is not None:
                legend.get_frame().set_alpha(0)
        figure.patch.set_alpha(0)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        svg = text.getvalue()
        out.append(_for_a_page(svg[svg.index("<svg") :]))


def _for_a_page(svg: str) -> str:
    """Black becomes what the page writes with, also in text, which has no colour; names are the chart's own."""
    svg = svg.replace("#000000", "currentColor").replace("<text ", '<text fill="currentColor" ')
    own = "c" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", svg)


def curves_svg(history: History, columns: Mapping[str, str], *, share: bool = False) -> str:
    """Lines over the epochs. `columns`: column -> legend; those that a history lacks are left out."""
    with drawn() as (_, (axes,), out):
        for (name, legend), colour in zip(columns.items(), (BEFORE, AFTER, OTHER, "#7b61c9"), strict=False):
            if all(name in row for row in history):
                values = history.column(name)
                axes.plot(range(1, len(values) + 1), values, label=legend, linewidth=1.6, color=colour)
        axes.set_xlabel("epoch")
        if share:
            axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return out[0]


def roc_svg(detection: Detection) -> str:
    """True against false positives over all thresholds."""
    with drawn(height=3.4) as (_, (axes,), out):
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":")
        axes.plot(*detection.curve(), color=BEFORE, linewidth=1.8)
        axes.set_xlabel("clean images that are flagged")
        axes.set_ylabel("other images that are flagged")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.25)
    return out[0]


def reach_svg(patterns: Sequence[Pattern]) -> str:
    """Bars per class: the share that the strongest pattern reaches, before and after."""
    with drawn(height=2.4) as (_, (axes,), out):
        places = range(len(patterns))
        axes.bar([x - 0.2 for x in places], [p.reached.share for p in patterns], 0.38, label="before", color=BEFORE)
        axes.bar([x + 0.2 for x in places], [p.again.share for p in patterns], 0.38, label="after", color=AFTER)
        axes.set_xticks(list(places), [str(p.index) for p in patterns])
        axes.set_xlabel("class")
        axes.set_ylabel("images that end there")
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=8)
    return out[0]


def shifts_svg(layer: Layer) -> str:
    """Bars of the channels that move most: by how much before the polarizer, and behind it."""
    with drawn(height=2.6) as (_, (axes,), out):
        chosen = layer.strongest()
        places = range(len(chosen))
        for offset, shift, label, colour in (
            (-0.2, layer.shift_before, "before the polarizer", BEFORE), (0.2, layer.shift_after, "behind it", AFTER),
        ):  # fmt: skip
            axes.bar([x + offset for x in places], shift[chosen].tolist(), 0.38, label=label, color=colour)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_xticks(list(places), [str(c) for c in chosen], fontsize=7, rotation=90)
        axes.set_xlabel("channel")
        axes.set_ylabel("standard deviations")
        axes.legend(fontsize=8)
    return out[0]


def projection_svg(projection: Projection, other: str) -> str:
    """Clean images and others as points on the same axes, before and after."""
    p = projection
    with drawn(2, height=2.9) as (_, axes, out):
        for each, title, clean, moved in (
            (axes[0], "before", p.clean_before, p.other_before), (axes[1], "after", p.clean_after, p.other_after),
        ):  # fmt: skip
            each.scatter(*clean.T.tolist(), s=9, color=BEFORE, alpha=0.7, linewidths=0, label="clean")
            each.scatter(*moved.T.tolist(), s=9, color=OTHER, alpha=0.7, linewidths=0, label=other, marker="s")
            each.set_title(title, fontsize=9)
            each.set_xticks([])
            each.set_yticks([])
        across, up = _limits(p)
        for each in axes:
            each.set_xlim(*across)
            each.set_ylim(*up)
        axes[0].legend(fontsize=8)
    return out[0]


def _limits(p: Projection) -> list[tuple[float, float]]:
    """The same for both sides, or they could not be compared."""
    points = torch.cat([p.clean_before, p.other_before, p.clean_after, p.other_after])
    low, high = points.amin(0), points.amax(0)
    room = 0.05 * (high - low).clamp_min(1e-6)
    return list(zip((low - room).tolist(), (high + room).tolist(), strict=True))
