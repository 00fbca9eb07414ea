"""Everything that one cut has seen: clean images, views of them, perturbed copies; a polarizer is fitted on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut
from .history import History
from .kept import Kept, mean_and_variance
from .losses import still_loss
from .outer import Outer, batches, warm_up
from .polarizers import Polarizer
from .precision import quick
from .progress import Progress
from .spread import rows_of, spread
from .views import mixed, moved_and_mirrored

SMALL_BATCH, BATCHES = 32, 8  # batches of a small clean set are smaller, down to the first, for the second in an epoch
SAME_IN_A_MIRROR = 0.8  # share of the images whose class must survive a mirror, or no view is mirrored: digits, signs
MIRRORED = 500  # images that are asked at most
ROUNDED = 0.02  # share of the clean images whose class may be another in bfloat16, or a fit is at full width
VIEWED = 8000  # rows of clean images that a small clean set is brought to, where views are wanted


def views_for(views: int, images: int) -> int:
    """How many further views of every image: more of them where there are few images."""
    return max(views, VIEWED // images - 1) if views else 0


def batch_for(batch_size: int, images: int) -> int:
    """How many clean images a step takes: of a few hundred a part, for the same steps at a fraction of the time."""
    return min(batch_size, max(SMALL_BATCH, images // BATCHES))


class Pool:
    """Clean images, their views and their perturbed copies, kept at a cut.

    Args:
        cut: the model.
        images, labels: (N, C, H, W) in [0, 1], (N,); None: the original model's predictions are the labels.
        views: of every image so many further ones, moved and mirrored, or more; see `views_for`.
        mix: every second one of those that are more is mixed with another image.
        apart: rows (M,) of images that are mixed with none: those that judge.
        copies: how many perturbed images will be taken at most.
        order: the CPU generator that the views are drawn with.
        batch_size, pass_size: images that views are drawn for at a time, and that are in a pass through the model.
        layout: of the images that the model is given.
        compile: see `FitConfig`.

    Attributes:
        lean: the cut that the pool runs, with less to compute.
        labels, predictions: of the clean images (N,): the true class, and the original model's.
        copies: what is known of the perturbed ones.
    """

    def __init__(
        self,
        cut: Cut,
        images: Tensor,
        labels: Tensor | None,
        *,
        views: int,
        copies: int,
        batch_size: int,
        pass_size: int,
        order: torch.Generator,
        layout: torch.memory_format = torch.contiguous_format,
        compile: bool = False,
        mix: bool = False,
        apart: Tensor | None = None,
    ) -> None:
        usual, views = views, views_for(views, len(images))
        self._cut, self._batch, self._layout, self._views = cut, batch_size, layout, views
        few, self.lean = images[:2].contiguous(memory_format=layout), cut.lean(images[:2], compile)
        self._kept = Kept(self.lean, few, len(images) * (1 + views) + copies, pass_size, half=True)
        said = [self._enter(images)]
        self.predictions = said[0].argmax(1)
        self.labels = self.predictions if labels is None else labels
        self._statistics: tuple[Tensor, Tensor] | None = None
        mirror = views > 0 and self._bears_a_mirror(images, pass_size)
        together = torch.ones(len(images), dtype=torch.bool)
        together[[] if apart is None else apart.cpu()] = False

        def view(rows: Tensor) -> Tensor:
            return moved_and_mirrored(images[rows.to(images.device)], order, mirror)

        def mixed_view(rows: Tensor) -> tuple[Tensor, Tensor]:
            seen, some, place = view(rows), together[rows].nonzero()[:, 0], images.device
            others = together.nonzero()[:, 0][torch.randint(max(1, int(together.sum())), some.shape, generator=order)]
            now = mixed(seen[some.to(place)], view(others), order)
            among = self.predictions[rows.to(place)][:, None].repeat(1, 2)
            among[some.to(place), 1] = self.predictions[others.to(place)]
            return seen.index_copy(0, some.to(place), now), among

        for number in range(views):
            mixes = mix and number >= usual and (number - usual) % 2
            said.append(self._enter(images, view, mixed_view if mixes else None))
        self._said = torch.cat(said)  # row v * N + i is view v of image i, as the original model sees it
        # What a fit holds clean logits to is rounded as they are: to change nothing costs nothing.
        self._held_to, self._hasty = self._rounded(quick(lambda x: self.lean.edited(x, lambda m: m), few))
        self.copies = Copies(len(images), images.device)

    def _enter(
        self, images: Tensor, view: Callable[[Tensor], Tensor] | None = None,
        mix: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """Keep all images, or the views of rows (B,) that `view` makes of them; the original logits.

        `mix` makes others, and says which classes (B, 2) they hold. What is taken for a third one is no such view: how
        the two were mixed may be a trigger, and what the original model says of that is not to be kept.
        """
        said = []
        for rows in torch.arange(len(images)).split(self._batch):
            if view is None or mix is None:
                logits, tensors = self._look(images[rows[0] : rows[-1] + 1] if view is None else view(rows))
            else:
                seen, among = mix(rows)
                logits, tensors = self._look(seen)
                third = (logits.argmax(1)[:, None] != among).all(1).nonzero()[:, 0]
                if len(third):
                    plain, rest = self._look(view(rows[third.cpu()]))
                    logits = logits.index_copy(0, third, plain)
                    tensors = [t.index_copy(0, third, p) for t, p in zip(tensors, rest, strict=True)]
            said.append(logits)
            self._kept.add(tensors, torch.arange(len(rows), device=images.device))
        return torch.cat(said)

    def _look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._kept.look(images.contiguous(memory_format=self._layout))

    def _bears_a_mirror(self, images: Tensor, pass_size: int) -> bool:
        """Whether the original model takes mirrored images for what they are: what it never saw is no view to keep."""
        step = -(-len(images) // MIRRORED)  # a folder's images come class by class
        some, known = images[::step], self.predictions[::step]
        with quick(self._cut.original, images), torch.no_grad():
            mirrored = (batch.flip(-1).contiguous(memory_format=self._layout) for batch in some.split(pass_size))
            seen = torch.cat([self._cut.original(batch).argmax(1) for batch in mirrored])
        return float((seen == known).double().mean()) >= SAME_IN_A_MIRROR

    def _rounded(self, hasty: torch.autocast) -> tuple[Tensor, torch.autocast | None]:
        """The original logits as kept rows give them in the fits' precision, and that, if it is bearable."""
        if not self._kept.activations:
            return self._said, None
        every = torch.arange(len(self._said), device=self._said.device)
        found = self._on(None, every, None, hasty)
        if float((found.argmax(1) != self._said.argmax(1)).double().mean()) <= ROUNDED:
            return found, hasty
        return self._on(None, every, None), None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) at the cut over the clean images and all positions, to start a polarizer from."""
        if self._statistics is None:
            rows = torch.arange(len(self.labels), device=self.labels.device).split(self._batch)
            self._statistics = mean_and_variance(map(self._kept.entering, rows), self._cut.channel_dim)
        return self._statistics

    def take(self, rows: Tensor, found: Tensor, targets: Tensor, family: int = 0) -> Tensor:
        """Keep those perturbed images `found` (B, C, H, W) of the clean ones `rows` (B,) that work.

        Returns the classes (B,) that they reached, -1 of those that do not work.

        They work where the original prediction changed, and to a wrong class: what reached its true class, from a
        wrong prediction, is no attack.
        """
        logits, tensors = self._look(found)
        reached = logits.argmax(1)
        worked = (reached != self.predictions[rows]) & (reached != self.labels[rows])
        self._kept.add(tensors, worked.nonzero()[:, 0])
        self.copies.add(*(v[worked] for v in (rows, targets, reached, torch.full_like(rows, family))))
        return torch.where(worked, reached, -1)

    def warm_up(
        self, polarizer: Polarizer, config: FitConfig, order: torch.Generator, *, rows: Tensor, progress: bool
    ) -> None:
        """See `outer.warm_up`; on the clean images `rows` alone."""
        warm_up(
            polarizer, lambda g, i, condition: self._kept.forward(g, rows[i], condition), self.labels[rows],
            lambda i: self.predictions[rows[i]], config, order, progress,
        )  # fmt: skip

    def fit(
        self,
        polarizer: Polarizer,
        config: FitConfig,
        order: torch.Generator,
        *,
        rows: Tensor,
        round: int = 0,
        told: dict[str, float] | None = None,
        progress: bool = True,
    ) -> History:
        """Train a polarizer in place on the clean images `rows` (M,) and their copies.

        For `config.epochs` epochs, or more where these are fewer than `config.least_steps` steps. The tail runs in
        bfloat16 where that is fast (`precision.quick`): rounding is little beside what a step's draw leaves to chance,
        and whoever judges the outcome does so at full width.

        Every step takes a batch of clean images, each as one of its views, and for each one of its perturbed copies at
        random, if it has any.

        Args:
            order: the CPU generator to draw with.
            round: how many came before, for the history; `told` is added to each of its rows.
        """
        conditional = isinstance(polarizer, ConditionalPolarizer)
        aimed = self.copies.reached if config.condition == "reached" else self.copies.targets
        size = batch_for(config.batch_size, len(rows))
        steps = -(-len(rows) // size)  # per epoch
        config = replace(config, epochs=max(config.epochs, -(-config.least_steps // steps)))
        outer, history, count = Outer(polarizer, config), History(), len(self.labels)
        moved, (mean, variance) = list[Tensor](), self.statistics()
        square = (mean.square() + variance).mean()

        def note(before: Tensor, after: Tensor) -> None:
            if config.lambda_still:
                moved.append(still_loss(after, before, square))

        epochs = Progress(config.epochs, f"fit, round {round + 1}", enabled=progress)
        for epoch in epochs:
            outer.begin(epoch, rows.device)
            for chosen in batches(len(rows), size, order, rows.device):
                clean = rows[chosen]
                of, copies = self.copies.draw(clean, order)
                sent, seen = aimed[copies], clean
                if self._views:
                    seen = clean + count * torch.randint(1 + self._views, clean.shape, generator=order).to(rows.device)
                said, own_class = self._held_to[seen], self._said[seen].argmax(1)
                g, local = outer.stepper.take(torch.cat([own_class, sent]) if conditional else None)
                # Everything was drawn for the whole batch; what runs is this process's part of it.
                (own, weight, times), every = spread().part(len(clean)), len(of)
                first, last, _ = own.indices(len(clean))
                mine = ((of >= first) & (of < last)).nonzero()[:, 0]
                clean_all, seen, said, clean = clean, seen[own], said[own], clean[own]
                of, copies, sent = of[mine] - first, copies[mine], sent[mine]
                conditions: Sequence[Tensor | None] = (None, None)
                if local is not None:
                    conditions = local[: len(clean_all)][own], local[len(clean_all) :][mine]
                for part in self._kept.parts(len(clean), config):
                    some = ((of >= part.start) & (of < part.stop)).nonzero()[:, 0]
                    weights = weight * (part.stop - part.start) / len(clean), len(some) / max(1, every) / times
                    with g.batch_statistics(config.statistics == "batch"):
                        logits = self._kept.forward(g, seen[part], rows_of(conditions[0], part), self._hasty, note)
                    copied = logits[:0]
                    if len(some):
                        which, sent_to = copies[some] + len(self._said), rows_of(conditions[1], some)
                        copied = self._kept.forward(g, which, sent_to, self._hasty)
                    outer.add(
                        logits, said[part], self.labels[clean[part]], copied, sent[some], of=of[some] - part.start,
                        still=moved.pop() if moved else None, weights=weights,
                    )  # fmt: skip
                outer.step()
            row: dict[str, Any] = {"round": round + 1, **outer.told(round * config.epochs + epoch), **(told or {})}
            if conditional:
                row["mismatch"] = self.copies.mismatch()
            history.append(row)
            epochs.note(f"loss {row['loss']:.3f}, clean {row['clean_accuracy']:.3f}, reached {row['reached']:.3f}")
        return history

    def on_views(self, polarizer: Polarizer, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M * (1 + views), K) of all views of clean images `rows` (M,): the original's, and the polarizer's."""
        seen = torch.cat([rows + len(self.labels) * number for number in range(1 + self._views)])
        return self._said[seen], self._on(polarizer, seen, self._said[seen].argmax(1))

    def on_clean(self, polarizer: Polarizer, rows: Tensor) -> Tensor:
        """Logits (M, K) of clean images `rows` (M,) through a polarizer."""
        return self._on(polarizer, rows, self.predictions[rows])

    def on_copies(self, polarizer: Polarizer, which: Tensor) -> Tensor:
        """Logits (P, K) of perturbed copies `which` (P,) through a polarizer, under the classes that they reached."""
        return self._on(polarizer, which + len(self._said), self.copies.reached[which])

    @torch.no_grad()
    def _on(
        self, polarizer: Polarizer | None, rows: Tensor, conditions: Tensor | None, hasty: torch.autocast | None = None
    ) -> Tensor:
        if not isinstance(polarizer, ConditionalPolarizer):
            conditions = None
        parts = torch.arange(len(rows), device=rows.device).split(self._batch)
        return torch.cat([self._kept.forward(polarizer, rows[p], rows_of(conditions, p), hasty) for p in parts])


class Copies:
    """The perturbed copies that were kept: of which clean image (P,), sent to which class, which they reached, by which
    family of the mixture."""

    def __init__(self, images: int, device: torch.device) -> None:
        self._images, self._new = images, list[tuple[Tensor, ...]]()
        self.of = self.targets = self.reached = self.family = torch.zeros(0, dtype=torch.long, device=device)

    def add(self, of: Tensor, targets: Tensor, reached: Tensor, family: Tensor) -> None:
        self._new.append((of, targets, reached, family))

    def gather(self) -> None:
        """Put together what was added; all of it is drawn."""
        columns = zip((self.of, self.targets, self.reached, self.family), *self._new, strict=True)
        self.of, self.targets, self.reached, self.family = (torch.cat(column) for column in columns)
        self._new = []
        self.only(torch.ones_like(self.of, dtype=torch.bool))

    def only(self, drawn: Tensor, favoured: Tensor | None = None, share: float = 0.0) -> None:
        """Draw no others than those where `drawn` (P,) is True, and this share of the time a `favoured` (P,) one."""
        liked = torch.zeros_like(drawn) if favoured is None else favoured & drawn
        self._share = share
        order = (2 * self.of + ~liked).argsort(stable=True)  # image by image, the favoured ones first
        self._by_image = order[drawn[order]]
        self._count, self._liked = (torch.bincount(self.of[d], minlength=self._images) for d in (drawn, liked))
        self._first = self._count.cumsum(0) - self._count

    def draw(self, rows: Tensor, order: torch.Generator) -> tuple[Tensor, Tensor]:
        """For every clean image (B,) that has copies one of them: its place in the batch, and the copy's row."""
        count, liked = self._count[rows], self._liked[rows]
        luck = torch.rand(len(rows), generator=order, dtype=torch.float64).to(rows.device)
        part = self._share * (liked > 0)  # one number says whether a favoured one, and which
        place = torch.where(luck < part, luck / part * liked, (luck - part) / (1 - part) * count).long()
        of = count.nonzero()[:, 0]
        return of, self._by_image[(self._first[rows] + place)[of]]

    def mismatch(self) -> float:
        """The share that reached another class than they were sent to."""
        return float((self.targets != self.reached).double().mean()) if len(self.of) else 0.0
