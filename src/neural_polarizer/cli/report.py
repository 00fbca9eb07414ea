"""`polarize report`: the page of a purified model, made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .purify import DEFEND, DeviceOption, JsonOption, read_model

AS_WRITTEN = "; as `polarize purify` was told by default."


def report(
    folder: Annotated[Path, typer.Argument(help="What `polarize purify --out` or `polarize demo --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; FOLDER/report.html by default.")] = None,
    attack: Annotated[
        Path | None, typer.Option(help="Folder of `polarize attack`: show what its real trigger does.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Other images that no fit has seen, <class>/<image>, to judge on all of them.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help=f"The checkpoint{AS_WRITTEN}")] = None,
    arch: Annotated[str | None, typer.Option(help=f"Its architecture{AS_WRITTEN}")] = None,
    clean: Annotated[
        Path | None, typer.Option(help=f"The clean images, of which the held-back part judges{AS_WRITTEN}")
    ] = None,
    normalization: Annotated[str | None, typer.Option(help=f"What the network was trained with{AS_WRITTEN}")] = None,
    classes: Annotated[int | None, typer.Option(help="How many classes; the polarizer says by default.", min=2)] = None,
    width: Annotated[int | None, typer.Option(help=f"Width of the architecture{AS_WRITTEN}", min=1)] = None,
    size: Annotated[
        int | None, typer.Option(help=f"Side in pixels that images are resized to{AS_WRITTEN}", min=1)
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help=f"Channels of the images, 3 or 1{AS_WRITTEN}", min=1, max=3)
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Make the report of a purified model again: verdict, figures and pictures in one HTML file."""
    from ..lab.detect import check_out
    from ..lab.reporting import Asked, report_again
    from ..report.page import write_report

    path = folder / "report.html" if out is None else out
    if out is not None:
        check_out(out)
    asked = Asked(
        model=model, arch=arch, normalization=normalization, classes=classes, width=width, channels=channels,
        clean=clean, test=test, size=size, attack=attack,
    )  # fmt: skip
    made = report_again(folder, asked, read_model, device=device)
    assert made.evidence is not None
    write_report(path, made)
    if as_json:
        told = {"verdict": made.verdict, "good": made.good, **made.evidence.to_dict(), "out": str(path)}
        typer.echo(json.dumps(told, indent=2, allow_nan=False))
        return
    from .tables import print_table

    print_table(made.table)
    for sentence in (made.verdict, *made.said):
        typer.echo(sentence)
    typer.echo(f"Written to {path} ({path.stat().st_size:,} bytes)")


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEFEND)(report)
