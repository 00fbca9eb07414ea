"""`polarize export`: a purified model as one file that runs without this library."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .purify import (
    DEFEND,
    ArchOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NormalizationOption,
    WidthOption,
    read_model,
)

Format = Enum("Format", {name: name for name in ("torch", "onnx", "safetensors")}, type=str)  # type: ignore[misc]
TORCH = Format("torch")


def export(
    model: ModelOption,
    polarizer: Annotated[Path, typer.Option(help="Folder of a saved polarizer.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[
        Format,
        typer.Option(
            help="torch (for torch.export.load), onnx, or safetensors: merged weights under the network's own names."
        ),
    ] = TORCH,
    arch: ArchOption = None,
    normalization: NormalizationOption = None,
    width: WidthOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write a purified model to a file, once its logits are those of PyTorch to 1e-4."""
    from ..checks import usable_device
    from ..deploy.export import write_exported
    from ..lab.detect import check_out
    from ..models.elsewhere import FromElsewhere
    from ..models.normalization import Normalized
    from ..polarized import PolarizedModel
    from ..saved import read_saved

    usable_device("device", device)
    check_out(out)
    saved = read_saved(polarizer)
    base = read_model(model, arch, normalization, saved.classes, width, saved.image_shape[0])
    purified = PolarizedModel.from_pretrained(base.to(device), polarizer)
    # The weights of the file that was read had the names of the network inside our wrappers.
    network = "model" if format.value == "safetensors" and isinstance(base, (Normalized, FromElsewhere)) else ""
    difference = write_exported(purified, out, format.value, network=network)
    if as_json:
        told = {
            "format": format.value, "method": saved.method, "layer": saved.layer, "largest_difference": difference,
            "bytes": out.stat().st_size, "out": str(out),
        }  # fmt: skip
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"Written to {out} ({format.value}, {out.stat().st_size:,} bytes); on 1 and on 7 random images its logits "
        f"differ from PyTorch's by at most {difference:.1e}."
    )


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=DEFEND)(export)
