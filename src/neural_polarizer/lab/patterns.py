"""The strongest pattern that sends all images to one class: what a backdoored model has without anybody's looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import device_of, dtype_of
from ..config import FitConfig
from ..mixture import Family
from ..perturb import learn_patterns
from ..polarized import PolarizedModel
from ..report.figures import Count, Pattern
from ..report.pictures import around_grey
from ..rounds import fastest_layout
from ..suspicion import Suspicion, suspicion_of
from ..sweep import GROUP
from ..threats import Flow, ThreatModel

# What keeps this at a few percent of a fit, which takes some 180 such steps of 128 images:
STEPS, BATCH = 20, 48
JUDGED = 64  # images of other classes that each pattern is counted on
MOST_CLASSES = 12  # that are shown

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """A pattern's parameters (1, ...) towards one class, and how to apply it."""

    threat: ThreatModel
    parameters: Tensor
    target: int

    def on(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] with the pattern, on their own device."""
        own = self.parameters.to(images.device, images.dtype)
        return self.threat.act(own.expand(len(images), *own.shape[1:]), images)


def family_of(suspicion: Suspicion | None) -> Family:
    """The kind of pattern to seek: that by which a class stands out most, or L2 of length 2 where that is not known."""
    mixture = FitConfig.in_rounds().mixture
    if suspicion is None or len(suspicion.reached) != len(mixture):
        return replace(next(f for f in mixture if f.threat == "l2"), radius=2.0)
    first, second = torch.tensor(suspicion.reached, dtype=torch.float64).topk(2, dim=1).values.unbind(1)
    return mixture[int((first - second).argmax())]


def in_words(family: Family, shape: Sequence[int]) -> str:
    """How large its patterns may be on images of `shape` (C, H, W)."""
    size = family.size_for(shape)
    return {
        "l2": f"of an L2 length of at most {size:.1f} (pixels from 0 to 1)",
        "linf": f"of at most {size:.2f} in every pixel (from 0 to 1)",
        "l1": f"of an L1 length of at most {size:.0f}",
        "smooth": f"smooth and of an L2 length of at most {size:.1f} (pixels from 0 to 1)",
        "wave": f"waves of one frequency, of an L2 length of at most {size:.1f} (pixels from 0 to 1)",
        "flow": f"a warp of at most {size:.1f} pixels",
        "patch": f"one square of {max(1, round(size))} pixels a side",
        "pixels": f"of at most {max(1, round(size))} pixels",
        "quantised": f"{round(size)} tones",
    }[family.threat]


def classes_shown(classes: int, suspicion: Suspicion | None) -> list[int]:
    """All classes, or of many those that stand out most; the first ones where that is not known."""
    if classes <= MOST_CLASSES:
        return list(range(classes))
    if suspicion is None or len(suspicion.excess) != classes:
        return list(range(MOST_CLASSES))
    order = sorted(range(classes), key=lambda c: -suspicion.excess[c])
    return sorted(order[:MOST_CLASSES])


def seek(
    forward: Forward, images: Tensor, labels: Tensor, classes: Sequence[int], family: Family, *, seed: int
) -> list[Found]:
    """The strongest pattern towards each class against one model.

    Args:
        forward: images (B, C, H, W) in [0, 1] -> logits (B, K), differentiable in the images.
        images, labels: (N, C, H, W), (N,) on its device.
        seed: of the order of the images.
    """
    shape = images.shape[1:]
    threat, how = family.threat_model(shape), family.descent(shape)
    how = replace(how, steps=min(how.steps, STEPS), step=how.step * max(1.0, how.steps / STEPS))
    order, layout, out = torch.Generator().manual_seed(seed), fastest_layout(forward, images), list[Found]()
    for group in torch.tensor(list(classes), device=images.device).split(GROUP):
        parameters = learn_patterns(
            threat, lambda x, targets: forward(x.contiguous(memory_format=layout)), images, labels, group, how,
            batch_size=BATCH, order=order,
        )  # fmt: skip
        out += [Found(threat, p[None], int(c)) for p, c in zip(parameters, group, strict=True)]
    return out


def strongest(
    purified: PolarizedModel,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    suspicion: Suspicion | None,
    *,
    seed: int,
) -> tuple[list[Pattern], list[Found], str]:
    """The strongest pattern towards each class before and after, and what is reached with it.

    Args:
        images, labels: (N, C, H, W) in [0, 1], (N,), on the CPU.
        names: of all classes.
        suspicion: what is known of the model, to choose the kind of pattern and the classes by.

    Returns:
        What to show, the patterns against the model as it came, and how large they may be, in words.
    """
    home, dtype = device_of(purified.base), dtype_of(purified.base)
    x, y = images.to(home, dtype), labels.to(home)
    family, shown = family_of(suspicion), classes_shown(len(names), suspicion)
    before = seek(purified.cut.original, x, y, shown, family, seed=seed)
    after = seek(purified, x, y, shown, family, seed=seed)
    counts = []
    for found, again in zip(before, after, strict=True):
        others = (labels != found.target).nonzero()[:JUDGED, 0]
        was, left = _reached(purified, found, images[others])
        counts.append((was, left, _reached(purified, again, images[others])[1]))
    out = suspicion if suspicion is not None and len(suspicion.excess) == len(names) else _suspicion(counts)
    target = out.target if out is suspicion or out.target is None else shown[out.target]
    patterns = [
        Pattern(
            index=found.target, name=names[found.target], before=_picture(found, images), after=_picture(again, images),
            reached=was, left=left, again=anew, stands_out=found.target == target,
        )
        for found, again, (was, left, anew) in zip(before, after, counts, strict=True)
    ]  # fmt: skip
    return patterns, before, in_words(family, images.shape[1:])


def _reached(purified: PolarizedModel, found: Found, others: Tensor) -> tuple[Count, Count]:
    """Images of other classes that end in the pattern's class: in the model as it came, and in the purified one."""
    if not len(others):
        return Count(0, 0), Count(0, 0)
    said = purified.detect(found.on(part) for part in others.split(BATCH))
    hits = (int((z.argmax(1) == found.target).sum()) for z in (said.original, said.logits))
    was, left = (Count(n, len(others)) for n in hits)
    return was, left


def _suspicion(counts: Sequence[tuple[Count, Count, Count]]) -> Suspicion:
    """Which class stands out among those that were tried."""
    was = [c[0] for c in counts]
    return suspicion_of(torch.tensor([[c.hits for c in was]]), torch.tensor([[c.images for c in was]]))


def _picture(found: Found, images: Tensor) -> Tensor:
    """What the pattern does: to plain grey, or, since a warp leaves that alone, to the first image."""
    canvas = images[:1] if isinstance(found.threat, Flow) else torch.full_like(images[:1], 0.5)
    return around_grey((found.on(canvas) - canvas)[0].float())
