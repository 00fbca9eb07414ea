"""`polarize purify`: a model and clean images in, a purified model with its verdict out."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import device_of
from ..choice import Choice, Trial
from ..choose import held_back
from ..cut import frozen_view, logits_of
from ..files import make_directory, write_atomically
from ..fit import purify
from ..polarized import PolarizedModel
from ..report.figures import Evidence
from ..report.page import Report, write_report
from ..saved import WEIGHTS_FILE
from .datasets.base import to_floats
from .evidence import class_names, evidence_of, rates_note, rates_table
from .machine import machine, versions

DONE, NOT_MET = 0, 3  # exit statuses
SAID = 10  # clean images that the verdict names
REPEATS, BATCH = 5, 16  # of the latency


@dataclass(frozen=True)
class Purification:
    """What came of it.

    Attributes:
        seconds: of the fit.
        latency: milliseconds per image before and after.
        names: of the classes.
        held_images, held_labels: the clean images that the fit has not seen (M, C, H, W) uint8, and (M,) or None.
        seed: of everything.
    """

    purified: PolarizedModel
    choice: Choice
    seconds: float
    latency: tuple[float, float]
    names: tuple[str, ...]
    held_images: Tensor
    held_labels: Tensor | None
    seed: int

    @property
    def status(self) -> int:
        return DONE if self.choice.within_budget else NOT_MET

    def class_name(self, index: int) -> str:
        return class_names(self.names, self.purified.cut.classes)[index]


def run_purification(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    names: tuple[str, ...],
    *,
    method: str,
    layer: str,
    max_accuracy_drop: float,
    device: str,
    seed: int,
    progress: bool = True,
) -> Purification:
    """Purify on clean images (N, C, H, W) uint8, and measure what it costs."""
    floats = to_floats(images)
    clean = floats if labels is None else (floats, labels)
    started = time.perf_counter()
    purified = purify(
        model, clean, method=method, layer=layer, max_accuracy_drop=max_accuracy_drop, seed=seed, device=device,
        progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert purified.choice is not None
    few, view = floats[:BATCH].to(device_of(model)), frozen_view(model)
    latency = _milliseconds(lambda x: logits_of(view(x)), purified, few)
    held, _ = held_back(len(images), seed, purified.choice.poisoned)
    held_labels = None if labels is None else labels[held]
    return Purification(purified, purified.choice, seconds, latency, names, images[held], held_labels, seed)


@torch.no_grad()
def _milliseconds(
    before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[float, float]:
    """Milliseconds per image of both, alternated, medians."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for run, seconds in zip((before, after), times, strict=True):
            started = time.perf_counter()
            run(images).sum().item()
            seconds.append(time.perf_counter() - started)
    one, two = (1000 * statistics.median(t[1:]) / len(images) for t in times)
    return one, two


def verdict(p: Purification) -> list[str]:
    """A few plain sentences."""
    c = p.choice
    what = "clean accuracy" if c.labelled else "agreement with the original model (no labels were given)"
    low, high = c.drop_interval
    out = []
    if c.within_budget:
        out.append(
            f"Purified: {p.purified.method} before {p.purified.layer!r}, within the budget of "
            f"{c.max_accuracy_drop:.1%} accuracy."
        )
    else:
        out.append(
            f"Not purified: no polarizer stayed within the budget of {c.max_accuracy_drop:.1%} accuracy; the polarizer "
            "that was written changes nothing."
        )
        if c.best is not None:
            best = c.trials[c.best]
            out.append(
                f"The best one outside ({best.method} before {best.layer!r}) loses "
                f"{max(best.accuracy_drop, best.doubt):.1%} and repairs {best.repaired:.1%} of the perturbed images; "
                "it is in over_budget/. Give more clean images or a larger --max-accuracy-drop."
            )
    out.append(
        f"On {c.held_back} clean images that no fit has seen, {what} went from {c.accuracy_before:.1%} to "
        f"{c.accuracy_after:.1%} (drop {c.accuracy_drop:+.1%}, 95 % interval {low:+.1%} to {high:+.1%})."
    )
    out.append(
        f"Of {c.perturbed} perturbed images that fool the original model, {c.repaired:.1%} get their class back "
        "(the mean over the kinds of perturbation)."
    )
    s = c.suspicion
    out.append(
        f"One class stands out as if it were a backdoor's target: {p.class_name(s.target)}, reached by {s.score:.0%} "
        "more of the images than the next class."
        if s.target is not None
        else "No class stands out as a backdoor's target; that is no proof that there is none."
    )
    if s.target is not None and c.trials[-1].suspect is None:
        out.append(
            "It was cleared: what leads there costs too much to stop for a backdoor, and all classes are guarded alike."
        )
    if c.poisoned:
        whose = "a" if c.trials[-1].suspect is None else "its"
        some = ", ".join(map(str, c.poisoned[:SAID])) + ", ..." * (len(c.poisoned) > SAID)
        out.append(
            f"{len(c.poisoned)} of the clean images seem to carry {whose} trigger (counted from 0: {some}); nothing "
            "was fitted on them or judged by them. Look at them, and where they came from: if they are clean after "
            "all, they are lost besides."
        )
    own, everything = p.purified.get_nb_trainable_parameters()
    out.append(
        f"{own:,} parameters added to {everything - own:,}; {p.latency[0]:.2f} ms per image before, "
        f"{p.latency[1]:.2f} ms after."
    )
    return out


def metrics(p: Purification, setting: dict[str, Any]) -> dict[str, Any]:
    """Plain JSON values."""
    own, everything = p.purified.get_nb_trainable_parameters()
    return {
        "format": 1,
        "command": "purify",
        "status": p.status,
        "within_budget": p.choice.within_budget,
        "method": p.purified.method,
        "layer": p.purified.layer,
        "verdict": verdict(p),
        "choice": p.choice.to_dict(),
        "parameters": {"added": own, "base": everything - own},
        "milliseconds_per_image": {"before": round(p.latency[0], 4), "after": round(p.latency[1], 4)},
        "seconds": round(p.seconds, 2),
        "setting": setting,
        "machine": machine(device_of(p.purified.base)),
        "versions": versions(),
    }


def write(p: Purification, out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The polarizer, `metrics.json` and `report.html` under `out`; returns the metrics.

    The report comes last: it takes some passes more, and `polarize report` can make it again.
    """
    folder = make_directory("out", out)
    p.purified.save_pretrained(folder / "polarizer")
    if p.purified.outside_budget is not None:
        p.purified.outside_budget.save_pretrained(folder / "over_budget")
    found = {**metrics(p, setting), "polarizer_bytes": (folder / "polarizer" / WEIGHTS_FILE).stat().st_size}
    write_atomically(folder / "metrics.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    evidence = evidence_of(
        p.purified, p.held_images, p.held_labels, p.names, suspicion=p.choice.suspicion, seed=p.seed
    )  # fmt: skip
    write_report(
        folder / "report.html", report_of(found, evidence, p.purified, trials_table(p.choice.trials, p.choice.chosen))
    )
    return found


TRIALS = ("layer", "method", "strength", "accuracy drop", "doubt", "repaired", "score", "budget", "seconds")


def trials_table(trials: Sequence[Trial], chosen: int | None) -> list[tuple[str, ...]]:
    """What was tried, header first; the chosen one is marked."""
    rows: list[tuple[str, ...]] = [TRIALS]
    for i, t in enumerate(trials):
        name = f"{t.layer} *" if i == chosen else t.layer
        method = t.method + ", twice as long" * t.twice + ", suspect alone" * t.alone
        if t.error:
            rows.append((name, method, f"{t.strength:g}", "failed", "", "", "", "", f"{t.seconds:.0f}"))
            continue
        rows.append(
            (name, method, f"{t.strength:g}", f"{t.accuracy_drop:+.1%}", f"{t.doubt:+.1%}", f"{t.repaired:.1%}",
             f"{t.score:.3f}", "kept" if t.within_budget else "missed", f"{t.seconds:.0f}")
        )  # fmt: skip
    return rows


TRIALS_NOTE = (
    "* is what was taken. Accuracy drop: on held-back clean images. Doubt: the same drop as the original model's own "
    "confidences tell it, on moved and mirrored views as well. Repaired: share of held-back perturbed images that get "
    "their class back."
)


def report_of(
    found: dict[str, Any], evidence: Evidence, purified: PolarizedModel, tried: Sequence[Sequence[str]]
) -> Report:
    """The page, from what `metrics.json` says and the evidence."""
    said = [str(sentence) for sentence in found["verdict"]]
    if evidence.other == "triggered":
        said.append(
            f"With {evidence.trigger}: the attacker's class was given to {evidence.asr[0]} of {evidence.asr[0].images} "
            f"images before, and to {evidence.asr[1]} after; {evidence.ra[1]} get their true class."
        )
    about = {**found["setting"], "fit, seconds": found["seconds"], "machine": found["machine"], **found["versions"]}
    return Report(
        title="Neural Polarizer: purification",
        verdict=" ".join(said[:1]),
        good=bool(found["within_budget"]),
        said=said[1:],
        table=rates_table(evidence, f"after {purified.method}"),
        notes=(rates_note(evidence),),
        evidence=evidence,
        histories={purified.method: purified.history} if purified.history else {},
        tried=tried,
        tried_notes=(TRIALS_NOTE,),
        setting={k: str(v) for k, v in about.items() if v is not None},
    )
