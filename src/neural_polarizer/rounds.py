"""The bi-level problem in rounds (ours): perturb everything, keep what worked, fit on what was kept.

The network is frozen, so the inner problem need not be solved anew for every batch. A round

1. perturbs the clean images towards random wrong classes, once with each family of the mixture: in the first round
   against the original model, later against the polarized one;
2. keeps the perturbed images whose original prediction changed to a wrong one, at the cut, with that class;
3. fits the polarizer on them and on the clean images: only the tail of the model runs.

The losses are those of the per-batch loop (`outer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut
from .history import History
from .kept import KEPT_BYTES
from .outer import fooled
from .perturb import ThreatModel
from .polarizers import Polarizer
from .pool import Pool
from .precision import quick
from .progress import Progress
from .spread import spread
from .sweep import Sweep
from .views import moved_and_mirrored

GLANCED, SCANNED, RANKED = 8, 32, 256  # images that a candidate is tried on, the best of them, and the best of all
BEST = 8  # candidates of every class that are tried on more images
MOST_TRIED = 1250  # clean images that one family perturbs, others for every family: a step draws one copy of an image
FEWEST = 10  # images that one perturbs at least, however large they are


def fit_in_rounds(
    cut: Cut,
    start: Callable[[Tensor, Tensor], Polarizer],
    images: Tensor,
    labels: Tensor | None,
    config: FitConfig,
    *,
    seed: int,
    progress: bool,
) -> tuple[Polarizer, History]:
    """Train a polarizer in `config.rounds` rounds of `config.epochs` epochs; see `Pool.fit`.

    `start` makes it from the mean and variance (C,) of what enters the layer. `images` (N, C, H, W) and `labels` (N,),
    or None: what the model predicts, are on the cut's device. For CNPD clean images carry the original prediction as
    their condition, perturbed ones the class that they reached or were sent to.

    Memory: activations of at most `kept.KEPT_BYTES`, or else the images, at most (1 + views + rounds x families) x N.

    Returns:
        The polarizer, and the history with `round` (from 1), `moved_i`: the share of images whose original prediction
        family i (from 1) changed in this round, and for CNPD `mismatch`: the share of the kept ones that reached
        another class than T.
    """
    order = torch.Generator().manual_seed(seed)
    families, layout = config.families(images.shape[1:], images.device.type), fastest_layout(cut.original, images)
    size = config.pass_size(images.shape[1:], images.device.type)
    of, views = several_views(images, config, order)
    pool = Pool(
        cut, images, labels, views=config.views, batch_size=config.batch_size, pass_size=size, order=order,
        copies=min(MOST_TRIED, len(views)) * config.copies() * config.rounds, layout=layout, compile=config.compile,
        mix=config.mix_views,
    )  # fmt: skip
    cut = pool.lean  # what perturbs runs the whole network, most of the time
    hasty = quick(cut.original, images)
    polarizer, labels = start(*pool.statistics()), pool.labels
    conditional = isinstance(polarizer, ConditionalPolarizer)
    every, history = torch.arange(len(images), device=images.device), History()

    def hastily(x: Tensor) -> Tensor:
        with hasty:
            return cut.original(x.contiguous(memory_format=layout))

    begin = [scan(threat, hastily, images, labels, cut.classes, size, order) for threat, _ in families]
    pool.warm_up(polarizer, config, order, rows=every, progress=progress)
    for number in range(config.rounds):

        def attacked(
            x: Tensor, targets: Tensor, fool: str = config.fool if number else "original"
        ) -> Tensor | Sequence[Tensor]:
            with hasty:
                x = x.contiguous(memory_format=layout)
                return fooled(cut, polarizer, fool, x, targets if conditional else None)

        polarizer.requires_grad_(False)
        shares = {}
        for i in Progress(len(families), "perturb", enabled=progress, lines=1):
            some = some_of(views, MOST_TRIED, order)
            family = Sweep(*families[i], attacked, views[some], labels[of[some]], config.batch_size, order, begin[i])
            keep = partial(pool.take, family=i)
            tally = family.run(of[some], rule_of(config), cut.classes, config.focus()[i], keep)
            shares[f"moved_{i + 1}"] = tally.worked / max(1, tally.tried)
        polarizer.requires_grad_(True)
        pool.copies.gather()
        history += pool.fit(polarizer, config, order, rows=every, round=number, told=shares, progress=progress)
    return polarizer, history


def several_views(images: Tensor, config: FitConfig, order: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is perturbed: rows (M,) of the images, and views (M, C, H, W) of them, first the images as they are.

    Of few images several views each, a little moved, where the config wants views: the clean side of the fit has them,
    and what comes in one place alone is told from it by that place.
    """
    down, across = (side // 16 for side in images.shape[2:])
    distinct = (2 * down + 1) * (2 * across + 1)
    times = max(1, min(distinct, most_tried(images, config) // len(images))) if config.views else 1
    moved = [moved_and_mirrored(images, order, mirror=False) for _ in range(times - 1)]
    every = torch.arange(len(images), device=images.device)
    return every.repeat(times), torch.cat([images, *moved]) if moved else images  # many images are not copied


def most_tried(images: Tensor, config: FitConfig) -> int:
    """How many images a family perturbs: of so many the perturbed ones fit into memory."""
    fit = KEPT_BYTES // (images[0].numel() * images.element_size() * config.copies())
    return min(MOST_TRIED, max(FEWEST, fit))


def some_of(images: Tensor, most: int, order: torch.Generator) -> Tensor:
    """Rows of the images, all of them or so many at random."""
    every = torch.arange(len(images))
    return (every if len(images) <= most else torch.randperm(len(images), generator=order)[:most]).to(images.device)


def rule_of(config: FitConfig) -> str | int:
    """Which wrong class each image is sent to: a random one unless the user says."""
    return "random" if config.target is None else config.target


def scan(
    threat: ThreatModel,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    classes: int,
    pass_size: int,
    order: torch.Generator,
) -> tuple[Tensor, Tensor] | None:
    """Of a threat model's candidates, the one that sends most images to each class: (K, ...); None: it has none.

    Also the classes (K,) by how many of other images these send there, most first: the best of many is best by luck.
    """
    every = threat.candidates(images) if threat.share == "target" else None
    if every is None:
        return None
    rows = torch.randperm(len(images), generator=order)[:RANKED].to(images.device)
    x, wrong = images[rows], F.one_hot(labels[rows], classes) == 0

    def counted(candidates: Tensor, first: int, last: int) -> Tensor:
        """Of these images, how many each candidate (P, ...) sends to each class: (P, K)."""
        own, counts = candidates[spread().part(len(candidates)).rows], [x.new_zeros(0, classes, dtype=torch.long)]
        few = x[first:last]
        for some in own.split(max(1, pass_size // len(few))):
            tried = threat.act(some.repeat_interleave(len(few), 0), few.repeat(len(some), 1, 1, 1))
            ended = F.one_hot(forward(tried).argmax(1), classes).view(len(some), -1, classes)
            counts.append((ended * wrong[first:last]).sum(1))
        return spread().whole(torch.cat(counts), len(candidates))

    with torch.no_grad():
        glance = counted(every, 0, GLANCED)
        best = glance.topk(min(BEST, len(every)), dim=0).indices.unique()
        rest = counted(every[best], GLANCED, SCANNED) if len(x) > GLANCED else 0
        found = every[best[(glance[best] + rest).argmax(0)]]
        return found, counted(found, min(SCANNED, len(x) // 2), RANKED).diagonal().argsort(descending=True, stable=True)


def fastest_layout(forward: Callable[[Tensor], Tensor], images: Tensor) -> torch.memory_format:
    """Channels last on a CPU, where convolutions take half the time so, unless the model relies on the order."""
    if images.device.type != "cpu":
        return torch.contiguous_format
    try:
        with torch.no_grad():
            forward(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # a view that the other order does not allow
        return torch.contiguous_format
    return torch.channels_last
