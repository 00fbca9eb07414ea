"""Images kept at the cut: the activations where they fit into memory, so that only the tail has to run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .config import FitConfig
from .cut import Activation, Cut
from .polarized import applied
from .polarizers import Polarizer
from .spread import parts_of, spread

KEPT_BYTES = 1 << 30  # of activations; above it the images are kept instead
HALF_MOST = 65504.0  # of float16
HALF_HOLDS = HALF_MOST / 32  # in the first image: others have larger values


def parts_by_row(cut: Cut, example: Tensor) -> list[bool] | None:
    """Which values that pass the cut beside `m` have one row per image; None where that cannot be told."""
    if cut.kind != "graph":
        return None  # the tail is a whole pass anyway
    two, three = (cut.prefix(example[:1].expand(n, *example.shape[1:]).contiguous()).alive for n in (2, 3))
    found = []
    for a, b in zip(two, three, strict=True):
        tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
        if tensors and a.shape[:1] == (2,) and b.shape[:1] == (3,) and a.shape[1:] == b.shape[1:]:
            found.append(True)
        elif torch.equal(a, b) if tensors else a == b:
            found.append(False)
        else:
            return None
    return found


@torch.no_grad()
def mean_and_variance(parts: Iterable[Tensor], channel_dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over all images and positions, of activations that come in parts."""

    def sums(m: Tensor) -> Tensor:
        rows = m.movedim(channel_dim, -1).flatten(0, -2).double()
        return torch.stack([rows.sum(0), rows.square().sum(0), torch.full_like(rows[0], len(rows))])

    total, square, count = torch.stack([sums(m) for m in parts]).sum(0)
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp_min(0).float()


class Kept:
    """Rows that stand for images, on the model's device; a polarizer can be run on any of them.

    Args:
        cut: the model.
        example: images, of which the first is looked at.
        rows: how many there will be at most.
        pass_size: images in a pass at a time; None: as many as there are.
        half: keep activations in float16, a thousandth wide at most, where they are float32 and small enough.

    Attributes:
        activations: whether activations are kept, and not images.
    """

    @torch.no_grad()
    def __init__(self, cut: Cut, example: Tensor, rows: int, pass_size: int | None = None, half: bool = False) -> None:
        self._pass_size = pass_size
        self._cut, self._rows, self._count, self._most, self._half = cut, list[Tensor](), 0, rows, False
        self._by_row = parts_by_row(cut, example)
        if self._by_row is not None:
            self._constants = list(cut.prefix(example[:1]).alive)
            one = self._tensors(cut.prefix(example[:1]))
            self._half = half and all(t.dtype == torch.float32 and bool((t.abs() < HALF_HOLDS).all()) for t in one)
            if rows * sum(t.numel() * (2 if self._half else t.element_size()) for t in one) > KEPT_BYTES:
                self._by_row, self._half = None, False
        self.activations = self._by_row is not None

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Original logits of images (B, C, H, W), and the tensors that stand for them."""
        own = images[spread().part(len(images)).rows]
        passes = [self._passed(own[p]) for p in parts_of(len(own), self._pass_size or len(own))]
        found = passes[0] if len(passes) == 1 else [torch.cat(column) for column in zip(*passes, strict=True)]
        logits, *tensors = (spread().whole(t, len(images)) for t in found)
        return logits, tensors or [images]

    def _passed(self, images: Tensor) -> list[Tensor]:
        if self._by_row is None:
            return [self._cut.original(images)]
        activation = self._cut.prefix(images)
        return [self._cut.tail(activation), *self._tensors(activation)]

    def add(self, tensors: list[Tensor], rows: Tensor) -> None:
        """Keep some rows of what `look` gave, behind those that are kept already."""
        first, last = self._count, self._count + len(rows)
        room = len(self._rows[0]) if self._rows else 0
        if last > room:  # what is never written to takes no memory on a CPU
            own = torch.float16 if self._half else None
            wide = [t.new_empty(max(self._most, last, 3 * room // 2), *t.shape[1:], dtype=own) for t in tensors]
            for new, old in zip(wide, self._rows, strict=bool(self._rows)):
                new[:first] = old[:first]
            self._rows = wide
        for kept, t in zip(self._rows, tensors, strict=True):
            picked = t.index_select(0, rows)
            kept[first:last] = picked.clamp_(-HALF_MOST, HALF_MOST) if self._half else picked
        self._count = last

    def parts(self, count: int, config: FitConfig) -> list[slice]:
        """The parts that a step sends so many rows on in: one if the tail alone runs, or statistics are a batch's."""
        whole = self.activations or config.statistics == "batch"
        return parts_of(count, count if whole else self._pass_size or count)

    def forward(
        self, polarizer: Polarizer | None, rows: Tensor, condition: Tensor | None, hasty: torch.autocast | None = None,
        note: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, K) of kept rows (B,), polarized or not; with the tail in `hasty` where activations are kept.

        `note` is given what enters the layer, before and after the polarizer.
        """

        def edit(m: Tensor) -> Tensor:
            edited = m if polarizer is None else applied(polarizer, m, condition)
            if note is not None:
                note(m, edited)
            return edited

        tensors = [self._wide(t, rows) for t in self._rows]
        if self._by_row is None:
            return self._cut.edited(tensors[0], edit)
        m, own = edit(tensors[0]), iter(tensors[1:])
        alive = [next(own) if flag else c for c, flag in zip(self._constants, self._by_row, strict=True)]
        with hasty or nullcontext():
            return self._cut.tail(Activation(m, tuple(alive))).to(m.dtype)

    @torch.no_grad()
    def entering(self, rows: Tensor) -> Tensor:
        """What enters the layer on kept rows (B,), as it is."""
        first = self._wide(self._rows[0], rows)
        return first if self.activations else self._cut.prefix(first).m

    def _wide(self, kept: Tensor, rows: Tensor) -> Tensor:
        return kept.index_select(0, rows).to(torch.float32 if self._half else kept.dtype)

    def _tensors(self, activation: Activation) -> list[Tensor]:
        assert self._by_row is not None
        beside: list[Any] = [a for a, flag in zip(activation.alive, self._by_row, strict=True) if flag]
        return [activation.m, *beside]
