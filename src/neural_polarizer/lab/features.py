"""What the polarizer does to features: its matrices, the channels it clears, the features in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import device_of, dtype_of
from ..conditional import Attentive, Embedded, Replicated
from ..polarized import PolarizedModel, applied
from ..polarizers import Polarizer
from ..report.figures import Layer, Projection

BATCH = 64
LARGEST = 64  # rows and columns of the picture of |W - I|


@torch.no_grad()
def matrices(polarizer: Polarizer) -> Iterator[Tensor]:
    """The maps over channels (C, C) that a polarizer has, BatchNorm included: one, one per class, or none.

    Of a-CNPD it is the one behind the attention, whose scales start at 1.
    """
    if polarizer.affine:
        yield polarizer.folded()[0]
    elif isinstance(polarizer, Replicated):
        for scale, weight in zip(polarizer.norm.affine()[0], polarizer.weight, strict=True):
            yield scale[:, None] * weight
    elif isinstance(polarizer, (Embedded, Attentive)):
        yield polarizer.norm.affine()[0][:, None] * polarizer.weight[:, : polarizer.channels]


def _from_identity(polarizer: Polarizer) -> tuple[tuple[float, ...], Tensor | None]:
    """‖W - I‖ / ‖I‖ of every map, and |W - I| of the farthest, made small."""
    distances: list[float] = []
    farthest = None
    for matrix in matrices(polarizer):
        difference = matrix.float() - torch.eye(len(matrix), device=matrix.device)
        distance = float(difference.norm()) / math.sqrt(len(matrix))
        if farthest is None or distance > max(distances):
            farthest = difference.abs().cpu()
        distances.append(distance)
    if farthest is not None and len(farthest) > LARGEST:
        farthest = F.adaptive_max_pool2d(farthest[None], LARGEST)[0]
    return tuple(distances), farthest


@torch.no_grad()
def pooled(purified: PolarizedModel, images: Tensor, given: Tensor) -> tuple[Tensor, Tensor, float]:
    """Features (N, C) before and behind the polarizer, means over the positions, and ‖g(m) - m‖ / ‖m‖.

    Args:
        images: (N, C, H, W) in [0, 1].
        given: (N,) the original model's predictions, for CNPD.
    """
    home, dtype, dim = device_of(purified.base), dtype_of(purified.base), purified.polarizer.channel_dim
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    changed = length = 0.0
    for batch, classes in zip(images.split(BATCH), given.split(BATCH), strict=True):
        m = purified.cut.prefix(batch.to(home, dtype)).m
        g = applied(purified.polarizer, m, classes.to(home))
        changed, length = changed + float((g - m).double().square().sum()), length + float(m.double().square().sum())
        for side, features in zip(sides, (m, g), strict=True):
            rows = features.movedim(dim, -1).float()
            side.append(rows.reshape(len(rows), -1, rows.shape[-1]).mean(1).cpu())
    before, after = (torch.cat(side) for side in sides)
    return before, after, math.sqrt(changed / max(length, 1e-30))


def features_of(
    purified: PolarizedModel, clean: Tensor, clean_given: Tensor, other: Tensor, other_given: Tensor
) -> tuple[Layer, Projection]:
    """What the polarizer does to clean images and to the same ones triggered or perturbed, rows in the same order.

    Args:
        clean, other: (N, C, H, W) in [0, 1]; clean_given, other_given: (N,) the original model's predictions.
    """
    clean_before, clean_after, changed_clean = pooled(purified, clean, clean_given)
    other_before, other_after, changed_other = pooled(purified, other, other_given)
    spread = clean_before.std(0, unbiased=False)
    spread = spread.clamp_min(0.01 * float(spread.median()) + 1e-12)  # a dead channel moves by no deviations
    distance, difference = _from_identity(purified.polarizer)
    layer = Layer(
        distance=distance, difference=difference, changed_clean=changed_clean, changed_other=changed_other,
        shift_before=(other_before - clean_before).mean(0) / spread,
        shift_after=(other_after - clean_after).mean(0) / spread,
    )  # fmt: skip
    what = "what passes the polarizer, averaged over the positions"
    return layer, projected(what, clean_before, other_before, clean_after, other_after)


def projected(
    what: str, clean_before: Tensor, other_before: Tensor, clean_after: Tensor, other_after: Tensor
) -> Projection:
    """Rows (N, D) on the two principal components of what there was before; of one number each, beside 0."""
    room = (0, max(0, 2 - clean_before.shape[1]))
    sides = [F.pad(t, room).double() for t in (clean_before, other_before, clean_after, other_after)]
    before = torch.cat(sides[:2])
    middle = before.mean(0)
    _, lengths, axes = torch.linalg.svd(before - middle, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # the sign of an axis is chance: made positive here
    flat = [((side - middle) @ (axes * largest.sign())[:2].T).float() for side in sides]
    shares = (lengths.square() / lengths.square().sum().clamp_min(1e-30)).tolist()
    return Projection(
        what=what, clean_before=flat[0], other_before=flat[1], clean_after=flat[2], other_after=flat[3],
        explained=(shares[0], shares[1]),
    )  # fmt: skip
