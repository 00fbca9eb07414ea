"""The ablation of conditioning: does the class that stands for an image earn its parameters?

Each CNPD is trained and used with one of four conditions: the original model's prediction (the method), none (class 0
for every image), the true label (an oracle that no defender has), a random class. NPD with the same targets stands
beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..build import METHOD_STRUCTURE
from ..config import CONDITIONINGS, FitConfig
from ..fit import condition_for, purify
from ..polarized import PolarizedModel
from .demo import LAYER, Scene, augmented, backdoored_digits, config_for, setting
from .evaluate import evaluate, evaluation_of

METHODS = tuple(METHOD_STRUCTURE)  # the conditional ones


def conditions(kind: str, predicted: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """The class (N,) that stands for each image at test time, as `FitConfig.conditioning` has it in training."""
    return condition_for(kind, predicted, labels, classes, torch.Generator().manual_seed(seed))


@torch.no_grad()
def _predictions(purified: PolarizedModel, images: Tensor, labels: Tensor, kind: str, seed: int) -> Tensor:
    with purified.disabled():
        predicted = purified(images).argmax(1)
    condition = conditions(kind, predicted, labels, purified.cut.classes, seed)
    return purified(images, condition).argmax(1)


def _record(
    scene: Scene, method: str, kind: str, seed: int, config: FitConfig | None, progress: bool
) -> dict[str, Any]:
    config = replace(config or config_for(method), conditioning=kind)  # type: ignore[arg-type]
    clean, test, classes = augmented(scene.clean, seed), scene.data.test, len(scene.data.classes)
    purified = purify(scene.model, clean, method=method, layer=LAYER, config=config, seed=seed, progress=progress)
    if method == "npd":
        after = evaluate(purified, test, scene.attack, classes)
    else:
        on_clean = _predictions(purified, test.floats(), test.labels, kind, seed)
        on_triggered = _predictions(purified, scene.attack.trigger(test.floats()), test.labels, kind, seed)
        after = evaluation_of(on_clean, on_triggered, test.labels, scene.attack, classes)
    return {
        "method": method,
        "condition": "-" if method == "npd" else kind,
        "seed": seed,
        "parameters": purified.get_nb_trainable_parameters()[0],
        "before": scene.before.to_dict(),
        "after": after.to_dict(),
        "setting": {**setting(scene, seed), "config": config.to_dict()},
    }


def run_conditioning(
    seeds: Iterable[int], *, config: FitConfig | None = None, progress: bool = True
) -> list[dict[str, Any]]:
    """One record per seed, method and condition."""
    records = []
    for seed in seeds:
        scene = backdoored_digits(seed, progress=progress)
        records.append(_record(scene, "npd", "predicted", seed, config, progress))
        for method in METHODS:
            for kind in CONDITIONINGS:
                records.append(_record(scene, method, kind, seed, config, progress))
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Mean and standard deviation over the seeds, header first."""
    rows: list[tuple[str, ...]] = [("method", "condition", "parameters", "ACC drop", "ASR", "RA", "seeds")]
    for method, kind in dict.fromkeys((r["method"], r["condition"]) for r in records):
        mine = [r for r in records if (r["method"], r["condition"]) == (method, kind)]

        def cell(values: list[float]) -> str:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            return f"{statistics.mean(values):.3f} ± {spread:.3f}"

        drop = cell([r["before"]["acc"] - r["after"]["acc"] for r in mine])
        rates = [cell([r["after"][name] for r in mine]) for name in ("asr", "ra")]
        rows.append((method, kind, f"{mine[0]['parameters']:,}", drop, *rates, str(len(mine))))
    return rows
