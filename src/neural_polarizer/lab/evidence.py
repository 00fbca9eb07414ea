"""The evidence of a report: what a purified model does with unseen images, beside the model as it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, in_short
from ..metrics import attackable
from ..polarized import PolarizedModel, Prediction
from ..report.figures import Confusion, Count, Detection, Evidence, Projection, Sample
from ..suspicion import Suspicion
from .datasets.base import to_floats
from .features import features_of, projected
from .patterns import Found, strongest

MOST = 512  # images that are looked at
PAIRS = 6  # that are shown
BATCH = 64
FEWEST = 2


@dataclass(frozen=True)
class Trigger:
    """A trigger that is known.

    Args:
        name: what to call it.
        act: images (B, C, H, W) in [0, 1] -> the same with the trigger.
        target: the class that they are sent to; None: each to the next one.
    """

    name: str
    act: Callable[[Tensor], Tensor]
    target: int | None


def evidence_of(
    purified: PolarizedModel,
    images: Tensor,
    labels: Tensor | None,
    names: Sequence[str] = (),
    *,
    trigger: Trigger | None = None,
    suspicion: Suspicion | None = None,
    seed: int = 0,
) -> Evidence:
    """Look at both models with images that no fit has seen.

    Args:
        images: (N, C, H, W) uint8, N >= 2; of more than `MOST` the first ones are taken.
        labels: (N,); None takes what the original model predicts.
        names: of the classes, as their folders are called; those that are missing are numbers.
        trigger: None uses the strongest pattern that is found (`patterns`) in its place.
        suspicion: what `purify` found, where it was asked.
        seed: of the search for patterns.

    Raises:
        InputError: too few images, a trigger that does not fit them, all of them of the target's class.
    """
    if len(images) < FEWEST:
        raise InputError(f"clean: found {len(images)} images to judge on, wanted at least {FEWEST}; give more")
    clean = to_floats(images[:MOST].cpu())
    said = _said(purified, clean)
    given, classes = said.original.argmax(1), said.logits.shape[1]
    truth = given if labels is None else labels[:MOST].cpu()
    shown = class_names(names, classes)
    patterns, found, ball = strongest(purified, clean, truth, shown, suspicion, seed=seed)
    known = trigger if trigger is not None else _strongest_of(found, [p.reached for p in patterns], ball, shown)
    rows = attackable(truth, known.target).nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"clean: all images are of class {known.target}, the target; give images of other classes")
    others, own = _triggered(known, clean[rows]), truth[rows]
    then = _said(purified, others)
    wanted = (own + 1) % classes if known.target is None else torch.full_like(own, known.target)
    layer, features = features_of(purified, clean[rows], given[rows], others, then.original.argmax(1))
    kind = "perturbed" if trigger is None else "triggered"
    return Evidence(
        other=kind,
        trigger=known.name,
        target=known.target,
        labelled=labels is not None,
        classes=shown,
        acc=_both(said, truth),
        asr=_both(then, wanted),
        ra=_both(then, own),
        pairs=_pairs(clean[rows], others, own, _rows_of(said, rows), then, shown, kind),
        patterns=patterns,
        ball=ball,
        confusions=[
            Confusion(
                caption=f"{caption} images",
                before=Confusion.count(y, p.original.argmax(1), classes),
                after=Confusion.count(y, p.logits.argmax(1), classes),
            )
            for caption, y, p in (("clean", truth, said), (kind, own, then))
        ],
        layer=layer,
        projections=[features, _outputs(_rows_of(said, rows), then)],
        detection=Detection(clean=said.score.float(), other=then.score.float()),
    )


def class_names(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """``"3"``, or ``"3 (cat)"`` where the folder has another name than its number."""
    given = [n for n in names if not n.isdecimal()]
    return tuple(f"{c} ({names[c]})" if given and c < len(names) else str(c) for c in range(classes))


def _said(purified: PolarizedModel, images: Tensor) -> Prediction:
    return purified.detect(iter(images.split(BATCH)))


def _rows_of(said: Prediction, rows: Tensor) -> Prediction:
    return Prediction(*(part[rows] for part in said))


def _both(said: Prediction, wanted: Tensor) -> tuple[Count, Count]:
    """How many of the images get the wanted class, before and after."""
    before, after = (int((z.argmax(1) == wanted).sum()) for z in (said.original, said.logits))
    return Count(before, len(wanted)), Count(after, len(wanted))


def _strongest_of(found: list[Found], reached: list[Count], ball: str, names: Sequence[str]) -> Trigger:
    """The pattern that reaches its class most often, in place of a trigger that nobody knows."""
    possible = [i for i, count in enumerate(reached) if count.images]  # images of one class alone leave no other to it
    best = found[max(possible, key=lambda i: reached[i].share)]
    name = f"the strongest pattern towards class {names[best.target]} that was found, {ball}"
    return Trigger(name, best.on, best.target)


def _triggered(trigger: Trigger, images: Tensor) -> Tensor:
    """Images (N, C, H, W) with the trigger."""
    try:
        out = torch.cat([trigger.act(batch) for batch in images.split(BATCH)])
    except RuntimeError as error:  # a trigger that was learned for another size
        raise InputError(
            f"attack: its trigger does not fit images of shape {tuple(images.shape[1:])} ({in_short(error)}); give the "
            "images that the attack was made for"
        ) from None
    return out.clamp(0, 1)


def _outputs(said: Prediction, then: Prediction) -> Projection:
    """The logits in two dimensions."""
    what = "what the whole network says (logits)"
    return projected(what, *(z.float() for z in (said.original, then.original, said.logits, then.logits)))


def _pairs(
    clean: Tensor, others: Tensor, labels: Tensor, said: Prediction, then: Prediction, names: Sequence[str], kind: str
) -> list[tuple[Sample, Sample]]:
    """The first image of each of a few classes, clean and triggered."""
    first = [int((labels == c).nonzero()[0, 0]) for c in labels.unique().tolist()[:PAIRS]]

    def sample(i: int, images: Tensor, p: Prediction, caption: str) -> Sample:
        (before, was), (after, now) = ((z[i].float().softmax(0).max(0)) for z in (p.original, p.logits))
        return Sample(
            caption=caption, image=images[i], truth=names[int(labels[i])], before=names[int(was)],
            after=names[int(now)], before_confidence=float(before), after_confidence=float(after),
        )  # fmt: skip

    return [(sample(i, clean, said, "clean"), sample(i, others, then, kind)) for i in first]


def rates_table(e: Evidence, after: str = "after") -> list[tuple[str, ...]]:
    """ACC, ASR and RA before and after with their intervals, header first."""
    acc = "ACC" if e.labelled else "agreement"
    if e.other == "triggered":
        header = ("", acc, "ASR", "RA")
    else:
        header = ("", acc, f"perturbed: to class {e.target}", "perturbed: own class")
    both = ((name, str(e.acc[i]), str(e.asr[i]), str(e.ra[i])) for i, name in enumerate(("before", after)))
    return [header, *both]


def rates_note(e: Evidence) -> str:
    """How to read that table."""
    agreement = "" if e.labelled else " No labels were given: the original model's predictions stand for them."
    others = (
        f"ASR (the attacker's class is given; lower is better) and RA (the true class is given; higher is better) over "
        f"{e.asr[0].images} of them with the trigger, whose true class is not the attacker's."
        if e.other == "triggered"
        else f"The other columns: over {e.asr[0].images} of them of other classes with {e.trigger}."
    )
    return (
        f"ACC over {e.acc[0].images} clean images that no fit has seen. {others} In brackets: 95 % intervals (Wilson), "
        f"in percent.{agreement}"
    )
