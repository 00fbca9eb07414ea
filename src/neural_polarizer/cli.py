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
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON, no table.")] = False,
) -> None:
    """Backdoor a small network on real digits, purify it, and show both."""
    from .lab.demo import CONFIG, run_demo, table_of

    results = run_demo(out, seed=seed, methods=[method.value], device=device)
    if as_json:
        typer.echo((out / "metrics.json").read_text())
        return
    _print_table(table_of(results))
    typer.echo(
        "\nscikit-learn digits, BadNets patch on 10 % of the training images, "
        f"{results[0].clean_images} clean images, seed {seed}.\nFitConfig: {json.dumps(CONFIG.to_dict())}"
    )
    typer.echo(f"Written to {out}/: report.html, metrics.json, polarizer/")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


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
