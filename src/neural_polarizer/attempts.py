"""Clean images perturbed once against the original model, with every family of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut
from .outer import fooled
from .polarizers import Polarizer
from .precision import quick
from .progress import Progress
from .rounds import fastest_layout, most_tried, rule_of, scan, several_views, some_of
from .spread import spread
from .suspicion import Suspicion, suspicion_of
from .sweep import Sweep, Tally


class Attempt(NamedTuple):
    """Perturbed images (B, C, H, W) that fooled the model: of which clean ones (B,), sent to which classes (B,)."""

    family: int
    rows: Tensor
    images: Tensor
    targets: Tensor

    def only(self, which: Tensor) -> Attempt:
        """Those where `which` (B,) is True."""
        return Attempt(self.family, self.rows[which], self.images[which], self.targets[which])


@dataclass(frozen=True)
class Attempts:
    """Attributes:
    original: logits (N, K) of the clean images.
    found: what fooled the model.
    suspicion: where the perturbations ended.
    layout: of images that the model is fastest with.
    begin: per family, what `scan` has found.
    """

    original: Tensor
    found: list[Attempt]
    suspicion: Suspicion
    layout: torch.memory_format
    begin: Sequence[tuple[Tensor, Tensor] | None] = ()

    def sent_to(self, suspect: int | None) -> Attempts:
        """Those sent to one class, where one is suspected, by the families that `Suspicion.leading` names.

        Others cost clean accuracy and stop no trigger: given enough room, any class is reached in any network.
        """
        if suspect is None:
            return self
        lead = self.suspicion.leading(suspect).to(self.original.device)
        sent = (a.only(lead[a.family, a.targets]) for a in self.found)
        return replace(self, found=[a for a in sent if len(a.rows)])

    def again(
        self,
        cut: Cut,
        polarizer: Polarizer,
        images: Tensor,
        labels: Tensor,
        config: FitConfig,
        suspect: int | None,
        *,
        seed: int,
        progress: bool = True,
    ) -> list[Attempt]:
        """What fools both the original model and a polarized one: patterns for the classes that lead, all effort.

        A trigger that still passes is one that the polarizer has not seen the like of; here is the like of it.
        """
        order, out = torch.Generator().manual_seed(seed), list[Attempt]()
        conditional, hasty = isinstance(polarizer, ConditionalPolarizer), quick(cut.original, images)
        families, lead = config.families(images.shape[1:], images.device.type), self.suspicion.leaders(suspect)

        def attacked(x: Tensor, targets: Tensor) -> Tensor | Sequence[Tensor]:
            with hasty:
                x = x.contiguous(memory_format=self.layout)
                return fooled(cut, polarizer, "both", x, targets if conditional else None)

        for i in Progress(len(families), "perturb again", enabled=progress, lines=1):
            some = some_of(images, most_tried(images, config), order)
            own, classes = (images[some], labels[some]), lead[i][: config.focus()[i]].to(images.device)
            begin = self.begin[i] if self.begin else None
            family = Sweep(*families[i], attacked, *own, config.batch_size, order, begin)
            for rows, tried, targets in family.focused(classes):
                out.append(Attempt(i, some[rows], tried, targets))
        return out


def attempt(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor | None,
    config: FitConfig,
    *,
    seed: int,
    progress: bool = True,
) -> Attempts:
    """Perturb the clean images; with many of them, or so large ones that the found would not fit into memory, some.

    Args:
        forward: images (B, C, H, W) in [0, 1] -> the original model's logits (B, K), differentiable in the images.
        images, labels: (N, C, H, W), and (N,) or None: what the model predicts.
        config: `families` of it perturb.
    """
    families, layout = config.families(images.shape[1:], images.device.type), fastest_layout(forward, images)
    size = config.pass_size(images.shape[1:], images.device.type)
    order = torch.Generator().manual_seed(seed)
    of, views = several_views(images, config, order)
    with torch.no_grad():
        said = torch.cat([forward(b.contiguous(memory_format=layout)) for b in views.split(size)])
    original, predictions, classes = said[: len(images)], said.argmax(1), said.shape[1]
    labels = (original.argmax(1) if labels is None else labels)[of]
    tallies, found, begin = list[Tally](), list[Attempt](), list[tuple[Tensor, Tensor] | None]()

    hasty = quick(forward, images)

    def attacked(x: Tensor, targets: Tensor | None = None) -> Tensor:
        with hasty:
            return forward(x.contiguous(memory_format=layout))

    def keep(own: Tensor, tried: Tensor, targets: Tensor, family: int) -> Tensor:
        """Keep what fooled the model; the classes (B,) that it reached, -1 where nothing did."""
        part = spread().part(len(own)).rows
        with torch.no_grad():
            now = spread().whole(attacked(tried[part], targets[part]).argmax(1), len(own))
        worked = (now != predictions[own]) & (now != labels[own])
        if worked.any():
            found.append(Attempt(family, of[own[worked]], tried[worked], targets[worked]))
        return torch.where(worked, now, -1)

    for i in Progress(len(families), "perturb", enabled=progress, lines=2):
        some = some_of(views, most_tried(images, config), order)
        own = (views[some], labels[some])
        begin.append(scan(families[i][0], attacked, *own, classes, size, order))
        family = Sweep(*families[i], attacked, *own, config.batch_size, order, begin[i])
        tallies.append(family.run(some, rule_of(config), classes, config.focus()[i], partial(keep, family=i)))
    weights = torch.tensor([f.telling for f in config.mixture])
    reached, possible = (torch.stack(t).cpu() for t in ([t.reached for t in tallies], [t.possible for t in tallies]))
    suspicion = suspicion_of(reached, possible, weights if (weights == 1).any() else None)
    return Attempts(original, found, suspicion, layout, begin)
