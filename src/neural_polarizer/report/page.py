"""The report: one self-contained HTML page, without scripts and without a request to anywhere.

Each section is a file of `templates/sections/`; what it shows is in `figures`. Texts of others (names of classes and
files) are escaped by the templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import write_atomically
from ..history import History
from . import charts
from .figures import Confusion, Evidence
from .pictures import heat_data_uri, png_data_uri

LOSSES = {
    "loss_bn": "clean (L_bn)",
    "loss_ce": "perturbed, to the class (L_ce)",
    "loss_max": "perturbed, strongest wrong class (L_max)",
    "loss_asr": "perturbed, target (L_asr)",
}
SHARES = {"clean_accuracy": "clean accuracy", "reached": "perturbed images that reach their target"}
READABLE = 12  # classes of which a table of counts is still read on a phone


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows; tables have a header row first.

    Attributes:
        verdict, good: one sentence, and whether it is good news.
        said: further sentences that belong to it.
        table: the figures, before and after.
        notes: how to read the table.
        evidence: what both models do with images that no fit has seen.
        histories: method -> its epochs.
        tried, tried_notes: what was tried on the way, and how to read that.
        setting: name -> value.
    """

    title: str
    verdict: str
    good: bool
    table: Sequence[Sequence[str]]
    setting: Mapping[str, str]
    said: Sequence[str] = ()
    notes: Sequence[str] = ()
    evidence: Evidence | None = None
    histories: Mapping[str, History] = field(default_factory=dict)
    tried: Sequence[Sequence[str]] = ()
    tried_notes: Sequence[str] = ()


def render(report: Report) -> str:
    """The page as a string.

    Raises:
        InputError: jinja2, matplotlib or Pillow is missing.
    """
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise InputError(f'report: needs {error.name}; pip install "neural-polarizer[cli]"') from None
    environment = Environment(
        loader=PackageLoader("neural_polarizer.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(png=png_data_uri, heat=heat_data_uri, percent=lambda share: f"{share:.0%}")
    environment.globals.update(
        losses=lambda h: charts.curves_svg(h, LOSSES), shares=lambda h: charts.curves_svg(h, SHARES, share=True),
        roc=charts.roc_svg, reach=charts.reach_svg, shifts=charts.shifts_svg, projected=charts.projection_svg,
        readable=lambda c: len(c.before) <= READABLE, cells=cells,
    )  # fmt: skip
    histories = {name: history for name, history in report.histories.items() if history}
    return environment.get_template("report.html.j2").render(report=report, e=report.evidence, histories=histories)


def cells(confusion: Confusion, after: bool) -> list[list[tuple[int, float]]]:
    """Rows of counts, each with its share of the row."""
    counts = confusion.after if after else confusion.before
    return [[(n, n / max(1, sum(row))) for n in row] for row in counts.tolist()]


def write_report(path: Path, report: Report) -> None:
    """Render and write, whole or not at all."""
    write_atomically(path, render(report))
