"""`polarize purify`, `layers` and `screen`: a model that somebody else trained."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..methods import METHODS
from .tables import print_table

if TYPE_CHECKING:
    from torch import nn

DEFEND = "Defend a model"
Chosen = Enum("Chosen", {name: name for name in ("auto", *METHODS)}, type=str)  # type: ignore[misc]
AUTO = Chosen("auto")

ModelOption = Annotated[Path, typer.Option(help="The checkpoint: a file, or a folder of ours or of Hugging Face.")]
ArchOption = Annotated[
    str | None,
    typer.Option(
        help="For a file that does not say: preact_resnet18, vgg11_bn, vgg19_bn, transformers:vit, timm:NAME, "
        "torchvision:NAME, or path/to/file.py:function, your own code, which is run."
    ),
]
NormalizationOption = Annotated[
    str | None,
    typer.Option(help="What the network was trained with: cifar10, imagenet, ..., or none; the file's own by default."),
]
CleanOption = Annotated[
    Path, typer.Option(help="Clean images: <class>/<image> with labels, or image files without. A folder or archive.")
]
WidthOption = Annotated[int | None, typer.Option(help="Width of the architecture, where it has one.", min=1)]
ClassesOption = Annotated[int | None, typer.Option(help="How many classes; the file's shapes say by default.", min=2)]
SizeOption = Annotated[int | None, typer.Option(help="Side in pixels that images are resized to.", min=1)]
ChannelsOption = Annotated[int, typer.Option(help="Channels of the images: 3 or 1.", min=1, max=3)]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, no table.")]


def purify(
    model: ModelOption,
    clean: CleanOption,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    arch: ArchOption = None,
    method: Annotated[Chosen, typer.Option(help="The method, or auto.")] = AUTO,
    layer: Annotated[str, typer.Option(help="The layer to stand before (see `polarize layers`), or auto.")] = "auto",
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Clean accuracy that may be lost, as a share: 0.01 is one point.")
    ] = 0.01,
    normalization: NormalizationOption = None,
    classes: ClassesOption = None,
    width: WidthOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = 3,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    log: Annotated[str | None, typer.Option(help="Also write the fit's curves: tensorboard or mlflow.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Purify a model with clean images. Exit status 0: within the budget; 3: not, and said; 2: bad input.

    Started by torchrun, several processes share the work: torchrun --nproc-per-node 4 -m neural_polarizer purify ...
    """
    from ..checks import check_number, usable_device
    from ..lab.clean_folder import check_classes, read_clean
    from ..lab.purification import run_purification, trials_table, verdict, write
    from ..lab.tracking import check_tracker, track
    from ..spread import spread_out

    if log is not None:
        check_tracker(log)
    check_number("max_accuracy_drop", max_accuracy_drop, least=0, most=1)
    usable_device("device", device)
    _free(out)
    network = read_model(model, arch, normalization, classes, width, channels)
    images, labels, names = read_clean(clean, channels=channels, size=size)
    check_classes(labels, names, _classes(network, images))
    with spread_out(cpu=not device.startswith("cuda")) as processes:
        device = processes.device_of(device)
        done = run_purification(
            network.to(device), images, labels, names, method=method.value, layer=layer,
            max_accuracy_drop=max_accuracy_drop, device=device, seed=seed, progress=processes.first,
        )  # fmt: skip
    if not processes.first:  # all have the same; one writes and speaks
        raise typer.Exit(done.status)
    setting = {
        "model": str(model), "arch": arch or "", "clean": str(clean), "clean images": len(images),
        "labels": labels is not None, "method": method.value, "layer": layer, "max_accuracy_drop": max_accuracy_drop,
        "seed": seed, "device": device, "normalization": normalization or "", "classes": classes, "width": width,
        "size": size, "channels": channels,
    }  # fmt: skip
    found = write(done, out, setting)
    if log is not None:
        print(f"polarize: logged to {track(log, done.purified, out, setting)}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_table(trials_table(done.choice.trials, done.choice.chosen))
        for line in verdict(done):
            typer.echo(line)
        typer.echo(f"Written to {out}/: polarizer/, report.html, metrics.json")
    if done.status:
        raise typer.Exit(done.status)


def layers(
    model: ModelOption,
    arch: ArchOption = None,
    normalization: NormalizationOption = None,
    classes: ClassesOption = None,
    width: WidthOption = None,
    size: Annotated[int, typer.Option(help="Side in pixels of the images that it takes.", min=1)] = 32,
    channels: ChannelsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """List the layers that a polarizer can stand before; * are those that `--layer auto` tries."""
    import torch

    from ..choose import candidate_layers
    from ..cut import list_layers

    network = read_model(model, arch, normalization, classes, width, channels)
    example = torch.zeros(2, channels, size, size)
    tried = candidate_layers(network, example)
    found = list_layers(network, example)
    if as_json:
        typer.echo(json.dumps([{**i._asdict(), "tried": i.name in tried} for i in found], indent=2))
        return
    rows = [("layer", "kind", "channels", "positions", "parameters")]
    for i in found:
        star = " *" if i.name in tried else ""
        rows.append((i.name + star, i.kind, str(i.channels), "x".join(map(str, i.spatial)), f"{i.parameters:,}"))
    print_table(rows)


def screen(
    models: Annotated[Path, typer.Argument(help="Folder of checkpoints.")],
    clean: CleanOption,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("screen.json"),
    arch: ArchOption = None,
    normalization: NormalizationOption = None,
    classes: ClassesOption = None,
    width: WidthOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = 3,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rank the models of a folder by how much one class stands out. Exit status 1: some could not be read."""
    from ..checks import usable_device
    from ..lab import screen as room
    from ..lab.clean_folder import read_clean

    usable_device("device", device)
    paths = room.candidates(models)
    images, labels, names = read_clean(clean, channels=channels, size=size)
    found = room.screen(
        paths, lambda p: read_model(p, arch, normalization, classes, width, channels), images, labels, names,
        device=device, seed=seed,
    )  # fmt: skip
    setting = {"models": str(models), "arch": arch or "", "clean": str(clean), "images": len(images), "seed": seed}
    room.write_screened(out, found, setting)
    if as_json:
        typer.echo(json.dumps([s.to_dict() for s in found], indent=2))
    else:
        print_table(room.table_of(found))
    unread = [s for s in found if s.suspicion is None]
    for s in unread:
        print(f"polarize: {s.name}: {s.error}", file=sys.stderr)
    if unread:
        raise typer.Exit(1)


def read_model(
    path: Path, arch: str | None, normalization: str | None, classes: int | None, width: int | None, channels: int
) -> nn.Module:
    from ..models.checkpoint import read_checkpoint

    grey = {"channels": channels} if channels != 3 else {}
    return read_checkpoint(
        path, arch=arch, classes=classes, normalization=normalization, width=width, **grey
    )  # fmt: skip


def _classes(network: nn.Module, images: object) -> int:
    """K, from a pass of two images."""
    import torch
    from torch import Tensor

    from ..cut import frozen_view, logits_of
    from ..lab.datasets.base import to_floats

    assert isinstance(images, Tensor)
    try:
        with torch.no_grad():
            return logits_of(frozen_view(network)(to_floats(images[:2]))).shape[1]
    except RuntimeError as error:
        raise InputError(
            f"clean: the model fails on images of {images.shape[3]} x {images.shape[2]} pixels "
            f"({str(error).splitlines()[0]}); give the side that it wants with --size"
        ) from None


def _free(out: Path) -> None:
    """A folder that can be made, before the work and not after it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {str(out)!r} is a file, wanted a folder")


def add_to(app: typer.Typer) -> None:
    """The commands, in the order of the help."""
    for command in (purify, layers, screen):
        app.command(rich_help_panel=DEFEND)(command)
