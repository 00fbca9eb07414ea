"""`polarize app`: a page where one drops an image and sees both predictions."""

from __future__ import annotations

import json
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


def app(
    polarizer: Annotated[Path, typer.Option(help="Folder of a saved polarizer.")],
    model: ModelOption,
    arch: ArchOption = None,
    normalization: NormalizationOption = None,
    width: WidthOption = None,
    clean: Annotated[
        Path | None, typer.Option(help="Clean images, whose scores an image is compared with: a folder or archive.")
    ] = None,
    attack: Annotated[
        Path | None, typer.Option(help="Folder of `polarize attack`, whose trigger can be put on an image.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 7860,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Open a page on this machine: drop an image, see the original and the purified prediction."""
    from ..checks import optional_library, usable_device
    from ..lab.app import serve
    from ..lab.backdoor import load_backdoored
    from ..lab.clean_folder import read_clean
    from ..lab.judging import Judge
    from ..polarized import PolarizedModel
    from ..saved import read_saved

    optional_library("app", "gradio", "app")  # before the model is read, and not after it
    usable_device("device", device)
    saved = read_saved(polarizer)
    channels, height, wide = saved.image_shape
    network = read_model(model, arch, normalization, saved.classes, width, channels)
    purified = PolarizedModel.from_pretrained(network.to(device), polarizer)
    names, images, found = list[str](), None, None
    if attack is not None:
        done = load_backdoored(attack)
        found, names = done.attack, [str(name) for name in done.card.get("classes", [])]
    if clean is not None:
        images, _, folders = read_clean(clean, channels=channels, size=height if height == wide else None)
        names = list(folders) if len(folders) == saved.classes else names

    def tell(address: str) -> None:
        typer.echo(json.dumps({"address": address}) if as_json else f"{address} (Ctrl-C ends it)")

    serve(Judge(purified, names=names, clean=images, attack=found), port, tell=tell)


def add_to(root: typer.Typer) -> None:
    root.command(rich_help_panel=DEFEND)(app)
