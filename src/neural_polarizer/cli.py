"""The command `polarize`. Imports nothing heavy: every command opens its rooms when it runs."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError:  # the core was installed alone
    sys.exit('polarize: needs the command-line extra; pip install "neural-polarizer[cli]"')

from . import __version__
from .errors import InputError
from .methods import METHODS

app = typer.Typer(
    name="polarize",
    help="Take the backdoor out of an image classifier, with a few clean images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Method = Enum("Method", {name: name for name in METHODS}, type=str)  # type: ignore[misc]  # typer wants an Enum

NPD = Method("npd")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neural-polarizer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel="See it work")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what it writes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of data split, network and fit.", min=0)] = 0,
    method: Annotated[Method, typer.Option(help="The method to purify with.")] = NPD,
    all_methods: Annotated[bool, typer.Option("--all-methods", help="Every method, in one table.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON, no table.")] = False,
) -> None:
    """Backdoor a small network on real digits, purify it, and show both."""
    from .lab.demo import config_for, metrics_of, run_demo, table_of

    methods = list(METHODS) if all_methods else [method.value]
    results = run_demo(out, seed=seed, methods=methods, device=device)
    if as_json:
        metrics = {r.method: metrics_of(r) for r in results}
        typer.echo(json.dumps(metrics if all_methods else metrics[method.value], indent=2))
        return
    _print_table(table_of(results))
    typer.echo(
        f"scikit-learn digits, BadNets patch on 10 % of the training images, {results[0].clean_images} clean images, "
        f"seed {seed}."
    )
    for name in methods:
        typer.echo(f"FitConfig of {name}: {json.dumps(config_for(name).to_dict())}")
    own = "a folder per method, " if all_methods else "metrics.json, polarizer/, "
    typer.echo(f"Written to {out}/: report.html, {own}model/, images/")


@app.command(rich_help_panel="Defend a model")
def detect(
    polarizer: Annotated[Path, typer.Option(help="Folder of a saved polarizer.")],
    model: Annotated[Path, typer.Option(help="Model folder, or a .safetensors file with --arch.")],
    images: Annotated[Path, typer.Option(help="Folder of images to judge, searched below as well.")],
    out: Annotated[Path, typer.Option(help="CSV file to write, most suspect image first.")],
    arch: Annotated[str | None, typer.Option(help="For a file: the name of its architecture.")] = None,
    width: Annotated[int | None, typer.Option(help="For a file: the width of its architecture.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images per pass.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Tell which images of a folder carry a trigger: the original and the purified prediction differ."""
    from .checks import usable_device
    from .lab.detect import check_out, detect_folder, write_suspects
    from .models.zoo import load_model
    from .polarized import PolarizedModel
    from .saved import read_saved

    check_out(out)
    usable_device("device", device)
    base = load_model(model, arch=arch, width=width, classes=read_saved(polarizer).classes)
    purified = PolarizedModel.from_pretrained(base.to(device), polarizer)
    found, unreadable = detect_folder(purified, images, batch_size=batch_size)
    write_suspects(out, found)
    suspects = sum(s.original_class != s.purified_class for s in found)
    for message in unreadable:
        print(f"polarize: skipped {message}", file=sys.stderr)
    if as_json:
        summary = {"images": len(found), "suspect": suspects, "unreadable": len(unreadable), "out": str(out)}
        typer.echo(json.dumps(summary))
    else:
        typer.echo(f"{suspects} of {len(found)} images are suspect; {len(unreadable)} could not be read. See {out}")


@app.command(rich_help_panel="Reproduce and compare")
def conditioning(
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("runs/conditioning.json"),
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON, no table.")] = False,
) -> None:
    """Does conditioning earn its parameters? CNPD given the predicted class, none, the true one, or a random one."""
    from .files import make_directory, write_atomically
    from .lab.conditioning import run_conditioning, summary

    make_directory("out", out.parent)
    records = run_conditioning(range(seeds))
    text = json.dumps(records, indent=2) + "\n"
    write_atomically(out, text)
    if as_json:
        typer.echo(text)
    else:
        _print_table(summary(records))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    # A file or a pipe has no width: nothing is cut off there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit status 2, an interruption 130."""
    try:
        app()
    except InputError as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))


def _complain(text: str, status: int) -> int:
    print(f"polarize: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
