"""The report: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..files import write_atomically
from ..history import History


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with its predictions: class names before and after, and the class that it truly shows."""

    caption: str
    image: Tensor  # (C, H, W) in [0, 1]
    truth: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows. `table` has a header row first; `setting` is name -> value; `histories` method -> rows."""

    title: str
    verdict: str
    good: bool
    table: Sequence[Sequence[str]]
    setting: Mapping[str, str]
    pairs: Sequence[tuple[Sample, Sample]] = ()
    histories: Mapping[str, History] = field(default_factory=dict)
    notes: Sequence[str] = ()


def png_data_uri(image: Tensor, side: int = 96) -> str:
    """A (C, H, W) image in [0, 1] as a data URI, enlarged without smoothing so that pixels stay pixels."""
    from PIL import Image

    if image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    if max(picture.size) < side:
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
    out = io.BytesIO()
    picture.save(out, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def curves_svg(history: History, columns: Mapping[str, str]) -> str:
    """Lines over the epochs as an SVG that takes its text colour from the page. `columns`: column -> legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    epochs = history.column("epoch")
    for name, legend in columns.items():
        axes.plot(epochs, history.column(name), label=legend, linewidth=1.6)
    axes.set_xlabel("epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace("#000000", "currentColor")


LOSSES = {
    "loss_bn": "clean (L_bn)",
    "loss_ce": "perturbed, to the class (L_ce)",
    "loss_max": "perturbed, strongest wrong class (L_max)",
    "loss_asr": "perturbed, target (L_asr)",
}
SHARES = {"clean_accuracy": "clean accuracy", "reached": "perturbed images that reach their target"}


def render(report: Report) -> str:
    """The page as a string: no script, no request to anywhere."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InputError('report: needs jinja2 and matplotlib; pip install "neural-polarizer[cli]"') from None
    environment = Environment(
        loader=PackageLoader("neural_polarizer.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["png"] = png_data_uri
    curves = {
        name: (curves_svg(history, LOSSES), curves_svg(history, SHARES))
        for name, history in report.histories.items()
        if history
    }
    return environment.get_template("report.html.j2").render(report=report, curves=curves)


def write_report(path: Path, report: Report) -> None:
    """Render and write, whole or not at all."""
    write_atomically(path, render(report))
