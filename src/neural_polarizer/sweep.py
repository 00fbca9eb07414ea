"""One family of the mixture perturbs clean images: all of them towards some class, and many towards a few classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .outer import wrong_targets
from .perturb import Descent, ThreatModel, descend, learn_patterns
from .spread import spread

GROUP = 16  # universal perturbations that are learned at a time, so that a batch has several images for each
FOCUS_BATCH = 64  # images of a step that one universal perturbation has for itself
MAX_CLASSES = 256  # with a universal perturbation in one round; of more classes so many are drawn
SOURCES = 32  # what an image of another class reaches is counted for so many groups of classes, class modulo this

Attacked = Callable[[Tensor, Tensor], "Tensor | Sequence[Tensor]"]
Perturbed = Iterator[tuple[Tensor, Tensor, Tensor]]
Keep = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sweep:
    """A family and what it perturbs.

    Attributes:
        threat, how: of the family.
        attacked: images (B, C, H, W), targets (B,) -> the logits, or several, that are to name the targets.
        images, labels: (N, C, H, W) in [0, 1] and (N,).
        batch_size: images of a step.
        order: the CPU generator to draw with.
        begin: what patterns start from, for every class (K, ...), and the classes (K,) that they reach most, first; see
            `rounds.scan`. None: from nothing.
    """

    threat: ThreatModel
    how: Descent
    attacked: Attacked
    images: Tensor
    labels: Tensor
    batch_size: int
    order: torch.Generator
    begin: tuple[Tensor, Tensor] | None = None

    def run(self, own: Tensor, rule: str | int, classes: int, focus: int, keep: Keep) -> Tally:
        """Perturb everything, then more towards the `focus` classes reached most.

        `keep` is given names of the images, of `own` (N,), perturbed images and targets, and gives the classes (B,)
        that they have reached, -1 where nothing worked. What a class is reached by with all effort is what counts in
        the tally.
        """
        tally = Tally(classes, self.images.device)
        for rows, found, targets in self.everywhere(rule, classes):
            tally.add(keep(own[rows], found, targets), self.labels[rows])
        leading = tally.most(focus) if self.begin is None else self.begin[1][:focus]
        tally.reached[leading] = tally.possible[leading] = 0
        for rows, found, targets in self.focused(leading):
            tally.add(keep(own[rows], found, targets), self.labels[rows], int(targets[0]))
        return tally

    def everywhere(self, rule: str | int, classes: int) -> Perturbed:
        """Every image perturbed towards a wrong class: rows (B,), perturbed images (B, C, H, W), targets (B,).

        Where all images of a target share a perturbation, it is learned first, over batches of all images.
        """
        targets = wrong_targets(rule, None, self.labels, classes, self.order)
        assert targets is not None
        if self.threat.share != "target":
            yield from self._one_by_one(targets)
            return
        chosen = targets.unique()
        if len(chosen) > MAX_CLASSES:
            lucky = torch.randperm(len(chosen), generator=self.order)[:MAX_CLASSES]
            chosen = chosen[lucky.sort().values.to(chosen.device)]
        for group in chosen.split(GROUP):
            patterns = self._learned(self.images, self.labels, group, self.batch_size)
            for rows in torch.isin(targets, group).nonzero()[:, 0].split(self.how.micro_batch or self.batch_size):
                own = patterns.index_select(0, torch.searchsorted(group, targets[rows]))
                yield rows, self.threat.act(own, self.images[rows]), targets[rows]

    def focused(self, targets: Tensor) -> Perturbed:
        """The same for a few classes `targets` (U,) alone, by patterns that had the batches for themselves.

        A pattern of `everywhere` shares each batch with those of all other classes, and is worse for it. Where a
        backdoor is, a better one comes close to its trigger. Each is for its share of the images, so that an image has
        one more copy, however many classes there are.
        """
        lots = torch.randint(max(1, len(targets)), self.labels.shape, generator=self.order).to(self.labels.device)
        for number, target in enumerate(targets):
            rows = (self.labels != target).nonzero()[:, 0]
            mine = rows[lots[rows] == number]
            if not len(mine):
                continue
            size = min(self.batch_size, FOCUS_BATCH)
            pattern = self._learned(self.images[rows], self.labels[rows], target[None], size)
            for some in mine.split(self.how.micro_batch or self.batch_size):
                wide = pattern.expand(len(some), *pattern.shape[1:])
                yield some, self.threat.act(wide, self.images[some]), target.expand(len(some))

    def _one_by_one(self, targets: Tensor) -> Perturbed:
        for rows in torch.arange(len(self.images), device=self.images.device).split(self.batch_size):
            sent = targets[rows][mine := spread().part(len(rows)).rows]

            def at(part: slice, sent: Tensor = sent) -> Callable[[Tensor], Tensor | Sequence[Tensor]]:
                return lambda x: self.attacked(x, sent[part])

            found = descend(self.threat, at(slice(None)), self.images[rows][mine], sent, self.how, at=at)
            yield rows, spread().whole(found.images, len(rows)), targets[rows]

    def _learned(self, images: Tensor, labels: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        return learn_patterns(
            self.threat, self.attacked, images, labels, targets, self.how, batch_size=batch_size, order=self.order,
            begin=self.begin and self.begin[0].index_select(0, targets),
        )  # fmt: skip


class Tally:
    """Perturbed images of one family: how many reached each class, how many could have, and how many worked.

    `reached` and `possible` (K, S) also tell the images' own classes apart, or groups of them.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.reached, self.possible = torch.zeros(2, classes, min(classes, SOURCES), dtype=torch.long, device=device)
        self.worked = self.tried = 0

    def add(self, reached: Tensor, labels: Tensor, target: int | None = None) -> None:
        """The classes (B,) that images of the labels (B,) reached, -1: none; or all were sent to one, which counts."""
        (classes, groups), worked = self.reached.shape, reached >= 0
        counted, sources = (worked if target is None else reached == target), labels % groups
        cells = reached[counted] * groups + sources[counted]
        self.reached += torch.bincount(cells, minlength=classes * groups).view(classes, groups)
        tried = torch.bincount(labels * groups + sources, minlength=classes * groups).view(classes, groups)
        which = slice(None) if target is None else slice(target, target + 1)
        self.possible[which] += (tried.sum(0) - tried)[which]
        self.worked, self.tried = self.worked + int(worked.sum()), self.tried + len(labels)

    def most(self, count: int) -> Tensor:
        """The `count` classes where the largest shares ended."""
        reached, possible = self.reached.sum(1), self.possible.sum(1)
        rates = torch.where(possible > 0, reached.double() / possible.clamp_min(1), -1.0)
        return rates.argsort(descending=True, stable=True)[:count]
