"""`polarize bench`: from a grid to a leaderboard."""

from __future__ import annotations

import json
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .tables import print_table

if TYPE_CHECKING:
    from ..lab.bench.cells import Cell
    from ..lab.bench.grid import Grid
    from ..lab.bench.store import Store

bench = typer.Typer(help="Attacks x defences x data sets x architectures, in one table.", no_args_is_help=True)
ExecutorName = Enum("ExecutorName", {n: n for n in ("local", "ray")}, type=str)  # type: ignore[misc]
LOCAL = ExecutorName("local")


NEEDS = ("yaml", "pydantic", "pandas", "pyarrow", "tabulate", "filelock")


@bench.callback()
def root() -> None:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise InputError(f'bench: {", ".join(missing)} not installed; pip install "neural-polarizer[bench]"')


@bench.command()
def run(
    grid: Annotated[str, typer.Argument(help="A YAML file, or a shipped grid (see `polarize bench grids`).")],
    out: Annotated[Path, typer.Option(help="Folder of networks, records and logs; what is there is not done again.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Where a data set lies, as cifar10=PATH; may be repeated.")
    ] = None,
    networks: Annotated[
        Path | None,
        typer.Option(help="Folder of networks that are trained already, named by their keys: copied, not trained."),
    ] = None,
    executor: Annotated[ExecutorName, typer.Option(help="Processes here, or a Ray cluster.")] = LOCAL,
    jobs: Annotated[int | None, typer.Option(help="Tasks at a time; 1 by default, all that fit on Ray.", min=1)] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster, or auto; none starts one here.")] = None,
    gpus: Annotated[float, typer.Option(help="GPUs per task on Ray; may be a share of one.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    attacks: Annotated[str | None, typer.Option(help="Only these attacks, by label, separated by commas.")] = None,
    defences: Annotated[str | None, typer.Option(help="Only these defences, by label.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so many minutes.", min=0)] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing data sets.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells and an estimate; do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Run a grid: train each network once, run each cell once. Exit status 1 if a cell or a network failed."""
    import os

    from ..checks import usable_device
    from ..lab.bench.cells import cells_of, networks_of, twins_of
    from ..lab.bench.executors import executor_of
    from ..lab.bench.grid import read_grid
    from ..lab.bench.run import run_cells
    from ..lab.bench.show import Show
    from ..lab.bench.store import Store
    from ..lab.bench.work import Place

    read = read_grid(grid)
    places = _places(data or [])
    cells = cells_of(read, {name: path.name for name, path in places.items()})
    cells = _only(cells, "attack", attacks)
    cells = _only(cells, "defence", defences)
    store = Store(out)
    if dry_run:
        _tell_plan(read, cells, store, networks, as_json)
        return
    if networks is not None:
        store.make()
        store.adopt(networks, [*twins_of(cells).values(), *networks_of(cells).values()])
    ray = executor.value == "ray"
    if not ray:  # on a cluster the device is that of the workers
        usable_device("device", device)
    threads = None if ray or (jobs or 1) == 1 else max(1, (os.cpu_count() or 1) // (jobs or 1))
    # Absolute: workers may stand elsewhere.
    place = Place(out.resolve(), {n: p.resolve() for n, p in places.items()}, download, device, threads)
    workers = executor_of(executor.value, place, jobs=jobs, address=address, gpus=gpus)
    with Show() as show:
        status = run_cells(cells, Store(place.root), workers, minutes=minutes, tell=show.tell)
    left = status.cells - status.cached - status.finished
    summary = {"cells": status.cells, "from earlier runs": status.cached, **status.outcomes, "left": left}
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(", ".join(f"{k}: {v}" for k, v in summary.items()) + f". See {out}")
    if status.failed or status.networks_lost:
        raise typer.Exit(1)


@bench.command()
def table(
    folder: Annotated[Path, typer.Argument(help="Folder of `bench run`, or any folder of its records.")],
    out: Annotated[
        list[Path] | None, typer.Option(help="File to write: .md, .csv, .tex or .parquet; may be repeated.")
    ] = None,
    published: Annotated[
        list[Path] | None, typer.Option(help="CSV of published figures, in rows of their own; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Make tables from records: mean and standard deviation over seeds, best and second best marked."""
    from ..lab.bench.store import read_records
    from ..lab.bench.table import frame_of, markdown, over_seeds, published_of, write_table

    frame, others = frame_of(read_records(folder)), published_of(published or [])
    for path in out or []:
        write_table(path, frame, others)
    if as_json:
        typer.echo(over_seeds(frame).to_json(orient="records", indent=2))
    elif not out:
        typer.echo(markdown(frame, others), nl=False)


@bench.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="Folder of `bench run`, or any folder of its records.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; FOLDER/plots by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the written files as JSON.")] = False,
) -> None:
    """Draw DER by clean images, ASR by ACC drop and DER by time, as PNG and SVG."""
    from ..lab.bench.plot import write_plots
    from ..lab.bench.store import read_records
    from ..lab.bench.table import frame_of

    written = write_plots(out or folder / "plots", frame_of(read_records(folder)))
    if as_json:
        typer.echo(json.dumps([str(path) for path in written]))
        return
    for path in written:
        typer.echo(path)


@bench.command()
def grids(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the grids that come with the library."""
    from ..lab.bench.grid import read_grid, shipped

    names = shipped()
    if as_json:
        typer.echo(json.dumps([{"name": name, "about": read_grid(name).about} for name in names], indent=2))
        return
    for name in names:
        typer.echo(f"{name:<{max(map(len, names))}}  {read_grid(name).about}")


def _places(texts: list[str]) -> dict[str, Path]:
    out = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InputError(f"data: found {text!r}, wanted NAME=PATH, for instance cifar10=data/cifar10.zip")
        out[name] = Path(path)
    return out


def _only(cells: list[Cell], kind: str, names: str | None) -> list[Cell]:
    """The cells whose label is among the names; a name that no cell has is an error."""
    if names is None:
        return cells
    wanted = {n.strip() for n in names.split(",")}
    known = {c.labels[kind] for c in cells}
    if not wanted <= known:
        raise InputError(f"{kind}s: found {sorted(wanted - known)}, wanted some of {', '.join(sorted(known))}")
    return [c for c in cells if c.labels[kind] in wanted]


def _tell_plan(grid: Grid, cells: list[Cell], store: Store, beside: Path | None, as_json: bool) -> None:
    from ..lab.bench.cells import described
    from ..lab.bench.estimate import estimate
    from ..lab.bench.run import open_cells, open_networks
    from ..lab.bench.show import name_of
    from ..lab.bench.work import Task

    missing = open_cells(cells, store)
    networks = [n for n in open_networks(missing, store) if not store.is_trained(n, beside)]
    hours, keys = estimate(networks, missing), {c.key for c in missing}
    if as_json:
        plan = {
            "grid": grid.name,
            "cells": [{"key": c.key, "cached": c.key not in keys, **c.labels, "clean": c.clean} for c in cells],
            "networks": [{"key": n.key, "network": described(n)} for n in networks],
            "cpu_hours": hours.cpu_hours,
            "gpu_hours": hours.gpu_hours,
        }
        typer.echo(json.dumps(plan, indent=2))
        return
    rows = [("cell", "what", "")]
    rows += [(c.key, name_of(Task(c)), "" if c.key in keys else "cached") for c in cells]
    print_table(rows)
    for network in networks:
        typer.echo(f"to train: {described(network)} ({network.key})")
    typer.echo(
        f"{grid.name}: {len(cells)} cells, {len(cells) - len(missing)} cached; {len(networks)} networks to train. "
        f"About {hours.cpu_hours:.1f} hours of one CPU core, or {hours.gpu_hours:.2f} hours of a data-centre GPU."
    )
