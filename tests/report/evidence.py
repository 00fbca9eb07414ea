"""Made-up evidence for pages: what it shows is not measured, and names are as bad as a stranger can make them."""

from __future__ import annotations

import torch

from neural_polarizer.history import History
from neural_polarizer.report.figures import (
    Confusion,
    Count,
    Detection,
    Evidence,
    Layer,
    Pattern,
    Projection,
    Sample,
)
from neural_polarizer.report.page import Report

BAD_NAME = "<img src=x onerror=alert(1)>$\\frac{1}{\"&'"
ROW = {
    "loss": 1.0,
    "loss_bn": 0.5,
    "loss_ce": 1.0,
    "loss_max": 0.3,
    "loss_asr": 0.2,
    "clean_accuracy": 0.9,
    "reached": 0.5,
}


def evidence(classes: int = 5, side: int = 16, other: str = "triggered", **changes) -> Evidence:
    draw = torch.Generator().manual_seed(0)
    names = [f"{c} ({BAD_NAME if c == 1 else 'x' * 40 if c == 2 else c})" for c in range(classes)]

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    def sample(caption: str, before: int, c: int) -> Sample:
        return Sample(
            caption=caption, image=random(3, side, side), truth=names[c], before=names[before], after=names[c],
            before_confidence=0.987, after_confidence=0.765,
        )  # fmt: skip

    labels = torch.arange(100) % classes
    values = {
        "other": other,
        "trigger": f"the trigger of {BAD_NAME}",
        "target": 0,
        "labelled": True,
        "classes": names,
        "acc": (Count(98, 100), Count(97, 100)),
        "asr": (Count(80, 80), Count(2, 80)),
        "ra": (Count(0, 80), Count(77, 80)),
        "pairs": [(sample("clean", c, c), sample(other, 0, c)) for c in range(1, min(classes, 7))],
        "patterns": [
            Pattern(
                index=c, name=names[c], before=random(3, side, side), after=random(3, side, side),
                reached=Count(60 if c == 0 else 3, 64), left=Count(2, 64), again=Count(5, 64), stands_out=c == 0,
            )
            for c in range(min(classes, 12))
        ],
        "ball": "of an L2 length of at most 2.0",
        "confusions": [
            Confusion(
                caption=f"{caption} images",
                before=Confusion.count(labels, labels * 0 if caption == other else labels, classes),
                after=Confusion.count(labels, labels.roll(1) if caption == other else labels, classes),
            )
            for caption in ("clean", other)
        ],
        "layer": Layer(
            distance=(0.25,), difference=random(32, 32), changed_clean=0.1, changed_other=0.4,
            shift_before=random(32) * 5, shift_after=random(32),
        ),
        "projections": [
            Projection(
                what=what, clean_before=random(50, 2), other_before=random(50, 2) + 2, clean_after=random(50, 2),
                other_after=random(50, 2), explained=(0.6, 0.2),
            )
            for what in ("features", "logits")
        ],
        "detection": Detection(clean=random(100) * 0.5, other=random(80)),
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def report(**changes) -> Report:
    return Report(
        **{
            "title": "A <title> & more",
            "verdict": "ASR fell from 99 % to 1 %",
            "good": True,
            "said": ["On 100 images <i>nothing</i> was lost."],
            "table": [("", "ACC", "ASR"), ("before", "98 %", "100 %"), ("after npd", "97 %", "2.5 %")],
            "notes": ["How to read it."],
            "evidence": evidence(),
            "histories": {"npd": History([{"epoch": 1, **ROW}, {"epoch": 2, **ROW}])},
            "tried": [("layer", "repaired"), ("layer3 *", "88.7%")],
            "tried_notes": ["* was taken."],
            "setting": {"seed": "0", "model": "a/very/long/path" * 20},
            **changes,
        }
    )
