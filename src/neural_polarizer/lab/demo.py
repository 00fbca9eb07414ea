"""The demonstration: backdoor a small network on real digits, purify it, show what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..attempts import Attempts
from ..checks import device_of, usable_device
from ..config import FitConfig
from ..files import make_directory, write_atomically
from ..fit import attempts_on, purify
from ..metrics import attackable, auroc, defence_effectiveness, der_ceiling, tpr_at_fpr
from ..models.small_resnet import SmallResNet
from ..models.zoo import save_model
from ..polarized import PolarizedModel
from ..report.figures import Count
from ..report.page import Report, write_report
from .attacks.badnets import BadNets
from .datasets.base import ImageData, Split
from .datasets.digits import digits
from .datasets.images import write_image
from .evaluate import Evaluation, evaluate
from .evidence import Trigger, evidence_of
from .machine import machine, versions
from .train import Recipe, train

ARCH = "small_resnet"
SIZE, STRIDE = 32, 2
SAMPLES = 20
CLEAN_SHARE = 0.1

RECIPE = Recipe()


@dataclass(frozen=True)
class Scene:
    """A backdoored network, its attack, its data, and the clean images that the defender has."""

    model: nn.Module
    attack: BadNets
    data: ImageData
    clean: Split
    before: Evaluation
    seconds: float


@dataclass(frozen=True)
class Result:
    """One method's outcome on a scene."""

    method: str
    purified: PolarizedModel
    before: Evaluation
    after: Evaluation
    seconds: float
    parameters: int
    clean_images: int
    auroc: float
    tpr_at_5_fpr: float

    @property
    def der(self) -> float:
        return defence_effectiveness(
            acc_before=self.before.acc,
            acc_after=self.after.acc,
            asr_before=self.before.asr,
            asr_after=self.after.asr,
        )


def backdoored_digits(seed: int, *, device: str = "cpu", progress: bool = True) -> Scene:
    """Train a small residual network on digits of which 10 % carry a BadNets patch and the label 0."""
    data = digits(size=SIZE, seed=seed)
    held, others = data.hold_back(int(CLEAN_SHARE * len(data.train)), seed)
    clean, rest = data.train.take(held), data.train.take(others)
    attack = BadNets()
    poisoned = attack.poison(rest, len(data.classes), seed).data
    model = SmallResNet(classes=len(data.classes), stride=STRIDE, seed=seed).to(device)
    start = time.perf_counter()
    train(model, poisoned.to(device), RECIPE, seed=seed, progress=progress, name="train the backdoored network")
    return scene_of(model, data, clean, attack, time.perf_counter() - start)


def scene_of(model: nn.Module, data: ImageData, clean: Split, attack: BadNets, seconds: float) -> Scene:
    """The scene around a trained network, measured."""
    test = data.test.to(device_of(model))
    before = evaluate(model, test, attack, len(data.classes))
    return Scene(model, attack, ImageData(data.name, data.train, test, data.classes), clean, before, seconds)


def scene_again(seed: int, model: nn.Module) -> Scene:
    """The scene of an earlier `demo` around the network that it wrote: data and attack follow from the seed."""
    data = digits(size=SIZE, seed=seed)
    held, _ = data.hold_back(int(CLEAN_SHARE * len(data.train)), seed)
    return scene_of(model, data, data.train.take(held), BadNets(), 0.0)


def attempts_of(scene: Scene, seed: int, *, progress: bool = True) -> Attempts:
    """The perturbed clean images, which all methods share."""
    return attempts_on(scene.model, (scene.clean.floats(), scene.clean.labels), seed=seed, progress=progress)


def defend(scene: Scene, method: str, seed: int, *, attempts: Attempts | None = None, progress: bool = True) -> Result:
    """Purify the scene's network from its clean images as any user would, and measure."""
    start = time.perf_counter()
    purified = purify(
        scene.model,
        (scene.clean.floats(), scene.clean.labels),
        method=method,
        attempts=attempts,
        seed=seed,
        progress=progress,
    )
    return judged(scene, method, purified, time.perf_counter() - start)


def judged(scene: Scene, method: str, purified: PolarizedModel, seconds: float) -> Result:
    """What a purified network does on the test images."""
    test = scene.data.test
    after = evaluate(purified, test, scene.attack, len(scene.data.classes))
    counted = test.take(attackable(test.labels, scene.attack.target))
    clean_scores = purified.predict(test.floats()).score
    triggered_scores = purified.predict(scene.attack.trigger(counted.floats())).score
    return Result(
        method=method,
        purified=purified,
        before=scene.before,
        after=after,
        seconds=seconds,
        parameters=purified.get_nb_trainable_parameters()[0],
        clean_images=len(scene.clean),
        auroc=auroc(clean_scores, triggered_scores),
        tpr_at_5_fpr=tpr_at_fpr(clean_scores, triggered_scores),
    )


def metrics_of(result: Result) -> dict[str, Any]:
    """The figures of one method as plain JSON values."""
    return {
        "method": result.method,
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "der": result.der,
        "auroc": result.auroc,
        "tpr_at_5_fpr": result.tpr_at_5_fpr,
        "parameters": result.parameters,
    }


def setting(scene: Scene, seed: int, *results: Result) -> dict[str, Any]:
    """Everything that a reader needs to place the figures; of results the layer and the config that were chosen."""
    chosen = {r.method: (r.purified.layer, r.purified.config) for r in results}
    return {
        "data": f"scikit-learn digits as {SIZE}x{SIZE} RGB",
        "train images": len(scene.data.train) - len(scene.clean),
        "test images": len(scene.data.test),
        "clean images": len(scene.clean),
        "architecture": "SmallResNet width 16, first stride 2",
        "attack": f"badnets {scene.attack.size}x{scene.attack.size} patch, all to class {scene.attack.target}",
        "poisoning ratio": scene.attack.poisoning_ratio,
        "layer": {method: layer for method, (layer, _) in chosen.items()},
        "config": {method: config and config.to_dict() for method, (_, config) in chosen.items()},
        "seed": seed,
        "machine": machine(device_of(scene.model)),
        "versions": versions(),
    }


def described(result: Result) -> str:
    """The config of a result, in words."""
    config, usual = result.purified.config, FitConfig.in_rounds().to_dict()
    if config is None:
        return "nothing, since nothing kept the accuracy budget"
    return f"FitConfig.in_rounds() with {json.dumps({k: v for k, v in config.to_dict().items() if v != usual[k]})}"


def run_demo(
    out: Path, *, seed: int = 0, methods: Sequence[str] = ("npd",), device: str = "cpu", progress: bool = True
) -> list[Result]:
    """Train, purify, write `metrics.json`, the polarizer and `report.html` under `out`; return the results.

    With several methods each has a folder of its own below `out`, and the page compares them.
    """
    usable_device("device", device)
    out = make_directory("out", out)
    scene = backdoored_digits(seed, device=device, progress=progress)
    shared = attempts_of(scene, seed, progress=progress) if len(methods) > 1 else None
    results = [defend(scene, method, seed, attempts=shared, progress=progress) for method in methods]
    save_model(out / "model", scene.model, ARCH, {"classes": len(scene.data.classes), "stride": STRIDE})
    _write_samples(scene, out / "images")
    for result in results:
        folder = out if len(results) == 1 else make_directory("out", out / result.method)
        result.purified.save_pretrained(folder / "polarizer")
        metrics = {
            "command": "demo",
            **metrics_of(result),
            "seconds": {"train": scene.seconds, "purify": result.seconds},
            "seed": seed,
            "setting": setting(scene, seed, result),
        }
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_report(out / "report.html", report_of(scene, results, setting(scene, seed, *results)))
    return results


def _write_samples(scene: Scene, folder: Path) -> None:
    """Some test images as files, plain and with the trigger: something to point `polarize detect` at."""
    test = scene.data.test
    images = test.floats(attackable(test.labels, scene.attack.target).nonzero()[:SAMPLES, 0])
    make_directory("out", folder)
    for i, (plain, triggered) in enumerate(zip(images, scene.attack.trigger(images), strict=True)):
        write_image(folder / f"clean_{i:02}.png", plain)
        write_image(folder / f"triggered_{i:02}.png", triggered)


HEADER = ("method", "ACC", "ASR", "RA", "DER", "AUROC", "parameters", "seconds")


def table_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The demo's one table, header first: the network as it came, then each method."""

    def percent(e: Evaluation) -> tuple[str, str, str]:
        return f"{e.acc:.1%}", f"{e.asr:.1%}", f"{e.ra:.1%}"

    return [HEADER, ("before", *percent(results[0].before), "", "", "", ""), *(
        (f"after {r.method}", *percent(r.after), *_further(r)) for r in results
    )]  # fmt: skip


def _further(r: Result) -> tuple[str, str, str, str]:
    return f"{r.der:.3f}", f"{r.auroc:.3f}", f"{r.parameters:,}", f"{r.seconds:.1f}"


def table_with_intervals(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The same with 95 % intervals, for the page."""

    def counted(e: Evaluation) -> tuple[str, str, str]:
        sizes = ((e.acc, e.images), (e.asr, e.triggered), (e.ra, e.triggered))
        acc, asr, ra = (str(Count(round(share * images), images)) for share, images in sizes)
        return acc, asr, ra

    return [HEADER, ("before", *counted(results[0].before), "", "", "", ""), *(
        (f"after {r.method}", *counted(r.after), *_further(r)) for r in results
    )]  # fmt: skip


def report_of(scene: Scene, results: Sequence[Result], described: dict[str, Any]) -> Report:
    """The page; what it shows beside table and curves is of the best method."""
    best = max(results, key=lambda r: r.der)
    test, attack = scene.data.test, scene.attack
    trigger = Trigger(f"a {attack.size}x{attack.size} patch (BadNets)", attack.trigger, attack.target)
    evidence = evidence_of(best.purified, test.images.cpu(), test.labels.cpu(), scene.data.classes, trigger=trigger)
    return Report(
        title="Neural Polarizer: demonstration on digits",
        verdict=(
            f"{best.method}: the trigger sent {best.before.asr:.1%} of the images to class {scene.attack.target}; "
            f"after purification it sends {best.after.asr:.1%} there, and {best.after.ra:.1%} get their true class. "
            f"Clean accuracy went from {best.before.acc:.1%} to {best.after.acc:.1%}."
        ),
        good=best.after.asr <= 0.05 and best.before.acc - best.after.acc <= 0.02,
        said=[f"Pictures and figures below the table are of {best.method}."] if len(results) > 1 else [],
        table=table_with_intervals(results),
        notes=(
            f"ACC over {best.after.images} clean test images; ASR (lower is better) and RA (higher is better) over the "
            f"{best.after.triggered} triggered ones whose true class is not the target. In brackets: 95 % intervals "
            f"(Wilson), in percent. DER at most {der_ceiling(best.before.asr):.3f} for an attack of this strength. "
            "AUROC: telling triggered from clean images by how much of the original class the polarizer took away.",
        ),
        evidence=evidence,
        histories={r.method: r.purified.history for r in results},
        setting={k: json.dumps(v) if isinstance(v, dict) else str(v) for k, v in described.items()},
    )
