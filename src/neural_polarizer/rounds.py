"""The bi-level problem in rounds (ours): perturb everything, keep what worked, fit on what was kept.

The network is frozen, so the inner problem need not be solved anew for every batch. A round

1. perturbs every clean image towards a random wrong class, once with each family of the mixture: in the first round
   against the original model, later against the polarized one;
2. keeps the perturbed images whose original prediction changed to a wrong one, at the cut, with that class;
3. fits the polarizer on them and on the clean images: only the tail of the model runs.

The losses are those of the per-batch loop (`outer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut
from .history import History
from .kept import Kept
from .outer import Outer, batches, fooled, warm_up, wrong_targets
from .perturb import Descent, ThreatModel, descend, learn_patterns
from .polarizers import Polarizer
from .progress import Progress

GROUP = 16  # universal perturbations that are learned at a time, so that a batch has several images for each
MAX_CLASSES = 256  # with a universal perturbation in one round; of more classes so many are drawn

Attacked = Callable[[Tensor, Tensor], "Tensor | Sequence[Tensor]"]


def fit_in_rounds(
    cut: Cut,
    polarizer: Polarizer,
    images: Tensor,
    labels: Tensor,
    original: Tensor,
    config: FitConfig,
    *,
    seed: int,
    progress: bool,
) -> History:
    """Train `polarizer` in place, in `config.rounds` rounds of `config.epochs` epochs.

    `images` (N, C, H, W), `labels` (N,) and the `original` logits (N, K) are on the cut's device. Every step takes a
    batch of clean images and, for each, one of its kept perturbed copies at random, if it has any. For CNPD clean
    images carry the original prediction as their condition, perturbed ones the class that they reached or were sent to.

    Memory: activations of at most `kept.KEPT_BYTES`, or else the perturbed images, at most rounds x families x N.

    Returns:
        The history, with `round` (from 1), `moved_i`: the share of images whose original prediction family i (from 1)
        changed in this round, and for CNPD `mismatch`: the share of the kept ones that reached another class than T.
    """
    order = torch.Generator().manual_seed(seed)
    families, size, device = config.families(images.shape[1:]), config.batch_size, images.device
    predictions, history = original.argmax(1), History()
    rule = "random" if config.target is None else config.target
    conditional = isinstance(polarizer, ConditionalPolarizer)
    layout = fastest_layout(cut, images)
    images = images.contiguous(memory_format=layout)
    kept = Kept(cut, images, len(images) * (1 + len(families) * config.rounds))
    for batch in images.split(size):
        kept.add(kept.look(batch)[1], torch.arange(len(batch), device=device))
    kept.gather()
    copies = Copies(len(images), device)

    warm_up(polarizer, kept.forward, labels, lambda rows: predictions[rows], config, order, progress)
    for number in range(config.rounds):

        def attacked(
            x: Tensor, targets: Tensor, fool: str = config.fool if number else "original"
        ) -> Tensor | Sequence[Tensor]:
            x = x.contiguous(memory_format=layout)
            return fooled(cut, polarizer, fool, x, targets if conditional else None)

        polarizer.requires_grad_(False)
        shares = {}
        for i in Progress(len(families), "perturb", enabled=progress, lines=1):
            tried, moved = 0, 0
            for rows, found, targets in perturbed(
                *families[i], attacked, images, labels, rule, cut.classes, size, order
            ):
                logits, tensors = kept.look(found.contiguous(memory_format=layout))
                reached = logits.argmax(1)
                # What reached its true class, from a wrong prediction, is no attack.
                changed = ((reached != predictions[rows]) & (reached != labels[rows])).nonzero()[:, 0]
                kept.add(tensors, changed)
                copies.add(rows[changed], targets[changed], reached[changed])
                tried, moved = tried + len(rows), moved + len(changed)
            shares[f"moved_{i + 1}"] = moved / max(1, tried)
        polarizer.requires_grad_(True)
        kept.gather()
        copies.gather()
        aimed = copies.reached if config.condition == "reached" else copies.targets

        outer = Outer(polarizer, config)
        epochs = Progress(config.epochs, f"fit, round {number + 1}", enabled=progress)
        for epoch in epochs:
            outer.begin(epoch, device)
            for rows in batches(len(images), size, order, device):
                of, chosen = copies.draw(rows, order)
                sent, condition = aimed[chosen], predictions[rows]
                g, local = outer.stepper.take(torch.cat([condition, sent]) if conditional else None)
                conditions = (None, None) if local is None else local.split([len(rows), len(sent)])
                with g.batch_statistics(config.statistics == "batch"):
                    clean_logits = kept.forward(g, rows, conditions[0])
                logits = kept.forward(g, chosen + len(images), conditions[1]) if len(of) else clean_logits[:0]
                outer.step(clean_logits, original[rows], labels[rows], logits, sent, of=of)
            row = {"round": number + 1, **outer.told(number * config.epochs + epoch), **shares}
            if conditional:
                row["mismatch"] = copies.mismatch()
            history.append(row)
            epochs.note(f"loss {row['loss']:.3f}, clean {row['clean_accuracy']:.3f}, reached {row['reached']:.3f}")
    return history


class Copies:
    """The perturbed copies that were kept: of which clean image (P,), sent to which class, and which they reached."""

    def __init__(self, images: int, device: torch.device) -> None:
        self._images, self._new = images, list[tuple[Tensor, ...]]()
        self.of = self.targets = self.reached = torch.zeros(0, dtype=torch.long, device=device)

    def add(self, of: Tensor, targets: Tensor, reached: Tensor) -> None:
        self._new.append((of, targets, reached))

    def gather(self) -> None:
        columns = zip((self.of, self.targets, self.reached), *self._new, strict=True)
        self.of, self.targets, self.reached = (torch.cat(column) for column in columns)
        self._new = []
        self._by_image = self.of.argsort(stable=True)
        self._count = torch.bincount(self.of, minlength=self._images)
        self._first = self._count.cumsum(0) - self._count

    def draw(self, rows: Tensor, order: torch.Generator) -> tuple[Tensor, Tensor]:
        """For every clean image (B,) that has copies one of them: its place in the batch, and the copy's row."""
        count = self._count[rows]
        luck = torch.rand(len(rows), generator=order, dtype=torch.float64).to(rows.device)
        of = count.nonzero()[:, 0]
        return of, self._by_image[(self._first[rows] + (luck * count).long())[of]]

    def mismatch(self) -> float:
        """The share that reached another class than they were sent to."""
        return float((self.targets != self.reached).double().mean()) if len(self.of) else 0.0


def perturbed(
    threat: ThreatModel,
    how: Descent,
    attacked: Attacked,
    images: Tensor,
    labels: Tensor,
    rule: str | int,
    classes: int,
    batch_size: int,
    order: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every image perturbed towards a wrong class: rows (B,), perturbed images (B, C, H, W), targets (B,).

    Where all images of a target share a perturbation, it is learned first, over batches of all images.
    """
    targets = wrong_targets(rule, None, labels, classes, order)
    assert targets is not None
    if threat.share != "target":
        for rows in torch.arange(len(images), device=images.device).split(batch_size):

            def towards(x: Tensor, sent: Tensor = targets[rows]) -> Tensor | Sequence[Tensor]:
                return attacked(x, sent)

            yield rows, descend(threat, towards, images[rows], targets[rows], how).images, targets[rows]
        return
    chosen = targets.unique()
    if len(chosen) > MAX_CLASSES:
        lucky = torch.randperm(len(chosen), generator=order)[:MAX_CLASSES]
        chosen = chosen[lucky.sort().values.to(chosen.device)]
    for group in chosen.split(GROUP):
        patterns = learn_patterns(threat, attacked, images, labels, group, how, batch_size=batch_size, order=order)
        for rows in torch.isin(targets, group).nonzero()[:, 0].split(batch_size):
            own = patterns.index_select(0, torch.searchsorted(group, targets[rows]))
            yield rows, threat.act(own, images[rows]), targets[rows]


def fastest_layout(cut: Cut, images: Tensor) -> torch.memory_format:
    """Channels last on a CPU, where convolutions take half the time so, unless the model relies on the order."""
    if images.device.type != "cpu":
        return torch.contiguous_format
    try:
        with torch.no_grad():
            cut.original(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # a view that the other order does not allow
        return torch.contiguous_format
    return torch.channels_last
