"""The command `polarize`. Imports nothing heavy: every command opens its rooms when it runs."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

try:
    import typer
except ImportError:  # the core was installed alone
    sys.exit('polarize: needs the command-line extra; pip install "neural-polarizer[cli]"')

from .. import __version__
from ..errors import InputError
from ..methods import METHODS
from .app import add_to as add_app
from .bench import bench
from .export import add_to as add_export
from .purify import add_to
from .report import add_to as add_report
from .tables import print_table

if TYPE_CHECKING:
    from ..lab.backdoor import Victim

app = typer.Typer(
    name="polarize",
    help="Take the backdoor out of an image classifier, with a few clean images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench", rich_help_panel="Reproduce and compare")
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
    from ..lab.demo import described, metrics_of, run_demo, table_of

    methods = list(METHODS) if all_methods else [method.value]
    results = run_demo(out, seed=seed, methods=methods, device=device)
    if as_json:
        metrics = {r.method: metrics_of(r) for r in results}
        typer.echo(json.dumps(metrics if all_methods else metrics[method.value], indent=2))
        return
    print_table(table_of(results))
    typer.echo(
        f"scikit-learn digits, BadNets patch on 10 % of the training images, {results[0].clean_images} clean images, "
        f"seed {seed}."
    )
    for r in results:
        typer.echo(f"{r.method}, chosen from the clean images alone: before {r.purified.layer!r}, {described(r)}.")
    own = "a folder per method, " if all_methods else "metrics.json, polarizer/, "
    typer.echo(f"Written to {out}/: report.html, {own}model/, images/")


add_to(app)
add_report(app)
add_export(app)
add_app(app)


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
    from ..checks import usable_device
    from ..lab.detect import check_out, detect_folder, write_suspects
    from ..models.checkpoint import read_checkpoint
    from ..polarized import PolarizedModel
    from ..saved import read_saved

    check_out(out)
    usable_device("device", device)
    base = read_checkpoint(model, arch=arch, width=width, classes=read_saved(polarizer).classes)
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
    from ..files import make_directory, write_atomically
    from ..lab.conditioning import run_conditioning, summary

    make_directory("out", out.parent)
    records = run_conditioning(range(seeds))
    text = json.dumps(records, indent=2) + "\n"
    write_atomically(out, text)
    if as_json:
        typer.echo(text)
    else:
        print_table(summary(records))


Precision = Enum("Precision", {p: p for p in ("auto", "float32", "bfloat16")}, type=str)  # type: ignore[misc]
AUTO = Precision("auto")

# Options that `attack` and `attacks` share.
DataOption = Annotated[str, typer.Option(help="digits, cifar10, cifar100, gtsrb, tiny_imagenet, or folder.")]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Where the data set lies, or is downloaded to: a folder, a .zip or a .tar.gz.")
]
ArchOption = Annotated[
    str, typer.Option(help="small_resnet, preact_resnet18, vgg11_bn, vgg19_bn, transformers:vit, timm:NAME, ...")
]
WidthOption = Annotated[int | None, typer.Option(help="Width of the network, where it has one.", min=1)]
SizeOption = Annotated[int | None, typer.Option(help="Side in pixels that images are resized to.")]
RatioOption = Annotated[float, typer.Option(help="Share of the training images that are poisoned.")]
EpochsOption = Annotated[int | None, typer.Option(help="Passes over the training images.", min=1)]
LrOption = Annotated[float | None, typer.Option(help="The highest learning rate of the schedule.")]
BatchOption = Annotated[int | None, typer.Option(help="Images per training step.", min=1)]
PrecisionOption = Annotated[
    Precision, typer.Option(help="auto is bfloat16 on a GPU; all are float32 on a processor that would imitate it.")
]
HoldBackOption = Annotated[int, typer.Option(help="Clean images kept from the training, for the defender.", min=0)]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing files from the official address.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, no table.")]
DIGITS_VICTIM = "digits", "small_resnet"


@app.command(rich_help_panel="Reproduce and compare")
def attack(
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted run goes on from it.")],
    attack: Annotated[str, typer.Option(help="badnets, blended, wanet, ...; none trains the clean twin.")],
    dataset: DataOption = DIGITS_VICTIM[0],
    data_dir: DataDirOption = None,
    arch: ArchOption = DIGITS_VICTIM[1],
    width: WidthOption = None,
    size: SizeOption = None,
    poisoning_ratio: Annotated[
        float | None, typer.Option(help="Share of the training images that are poisoned; the attack's own by default.")
    ] = None,
    target: Annotated[str, typer.Option(help="Class index that triggered images go to, or all: y + 1.")] = "0",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the attack as name=value; may be repeated.")
    ] = None,
    clean_model: Annotated[
        Path | None, typer.Option(help="Folder of the clean twin, for attacks that need one; trained where missing.")
    ] = None,
    epochs: EpochsOption = None,
    lr: LrOption = None,
    batch_size: BatchOption = None,
    precision: PrecisionOption = AUTO,
    hold_back: HoldBackOption = 0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a backdoored network, or its clean twin, and write it with everything that rebuilds the attack."""
    from ..lab.attacks.registry import build_attack
    from ..lab.backdoor import CLEAN, load_backdoored, train_backdoored

    chosen = None
    if attack != CLEAN:
        if target != "all" and not target.isdigit():
            raise InputError(f"target: found {target!r}, wanted a class index or all")
        options = {"target": None if target == "all" else int(target), "seed": seed, **_pairs(option or [])}
        if poisoning_ratio is not None:
            options["poisoning_ratio"] = poisoning_ratio
        chosen = build_attack(attack, options)
    elif option or poisoning_ratio is not None:
        raise InputError("attack: none takes neither --option nor --poisoning-ratio; leave them out")
    clean = load_backdoored(clean_model, device=device).model if clean_model else None
    victim = _victim(
        dataset, data_dir, arch, width, size, epochs, lr, batch_size, precision, hold_back, seed, device, download
    )
    done = train_backdoored(out, victim, chosen, clean=clean, device=device)
    if as_json:
        typer.echo(json.dumps({**done.card["metrics"], "seconds": done.card["seconds"], "out": str(out)}, indent=2))
        return
    m = done.card["metrics"]
    rates = "".join(f", {k.upper()} {m[k]:.1%}" for k in ("asr", "ra") if k in m)
    typer.echo(f"{attack} on {dataset}: ACC {m['acc']:.1%}{rates}. See {out}")


@app.command(rich_help_panel="Reproduce and compare")
def attacks(
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted run goes on from it.")],
    only: Annotated[str | None, typer.Option(help="Some attacks, separated by commas; all by default.")] = None,
    dataset: DataOption = DIGITS_VICTIM[0],
    data_dir: DataDirOption = None,
    arch: ArchOption = DIGITS_VICTIM[1],
    width: WidthOption = None,
    size: SizeOption = None,
    poisoning_ratio: RatioOption = 0.1,
    target: Annotated[int, typer.Option(help="Class index that triggered images go to.", min=0)] = 0,
    epochs: EpochsOption = None,
    lr: LrOption = None,
    batch_size: BatchOption = None,
    precision: PrecisionOption = AUTO,
    hold_back: HoldBackOption = 0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    download: DownloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the clean twin and every attack on one data set and architecture, and show how strong each is."""
    from ..lab.proving import LABELS, run_attacks, table_of

    labels = [x.strip() for x in only.split(",")] if only else list(LABELS)
    victim = _victim(
        dataset, data_dir, arch, width, size, epochs, lr, batch_size, precision, hold_back, seed, device, download
    )
    proofs = run_attacks(out, victim, labels, poisoning_ratio=poisoning_ratio, target=target, device=device)
    if as_json:
        typer.echo(json.dumps([p.to_dict() for p in proofs], indent=2))
    else:
        print_table(table_of(proofs))


def _pairs(texts: list[str]) -> dict[str, object]:
    """Options given as name=value; values are JSON where they can be, text otherwise."""
    out: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"option: found {text!r}, wanted name=value")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def _victim(
    dataset: str,
    data_dir: Path | None,
    arch: str,
    width: int | None,
    size: int | None,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    precision: Precision,
    hold_back: int,
    seed: int,
    device: str,
    download: bool,
) -> Victim:
    from dataclasses import replace

    from ..checks import usable_device
    from ..lab.backdoor import Victim
    from ..lab.datasets.registry import load_dataset
    from ..lab.proving import recipe_for
    from ..models.zoo import build_model, sized

    usable_device("device", device)
    options = {} if width is None else {"width": width}
    model = build_model(arch, classes=10, **options)  # an unknown name is said before the data is read
    data = load_dataset(dataset, data_dir, size=size, seed=seed, download=download)
    options = sized(arch, options, data.shape[1])
    given = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "precision": precision.value}
    recipe = replace(
        recipe_for(dataset, data.shift, data.mirror, model), **{k: v for k, v in given.items() if v is not None}
    )
    source = data_dir.name if data_dir else ""
    return Victim(data, arch, options, recipe, hold_back, seed, source)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit status 2, an interruption 130."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org; rich would still write bold and dim, this stops all of it
        os.environ["TERM"] = "dumb"
    # Before torch is loaded: threads that wait for each other sleep. Where other processes use the same cores, those
    # that stay awake take several times as long; see docs/performance.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except InputError as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))


def _complain(text: str, status: int) -> int:
    print(f"polarize: {text}", file=sys.stderr)
    return status
