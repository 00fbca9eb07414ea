"""Every clean image perturbed once against the original model, with every family of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import FitConfig
from .kept import KEPT_BYTES
from .progress import Progress
from .rounds import fastest_layout, perturbed, rule_of
from .suspicion import Suspicion, suspicion_of

FEWEST = 10  # images that a family perturbs at least, however large they are


class Attempt(NamedTuple):
    """Perturbed images (B, C, H, W) that fooled the model: of which clean ones (B,), sent to which classes (B,)."""

    family: int
    rows: Tensor
    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Attempts:
    """Attributes:
    original: logits (N, K) of the clean images.
    found: what fooled the model.
    suspicion: where the perturbations ended.
    layout: of images that the model is fastest with.
    """

    original: Tensor
    found: list[Attempt]
    suspicion: Suspicion
    layout: torch.memory_format


def attempt(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor | None,
    config: FitConfig,
    *,
    seed: int,
    progress: bool = True,
) -> Attempts:
    """Perturb the clean images; with images so large that what is found would not fit into memory, some of them.

    Args:
        forward: images (B, C, H, W) in [0, 1] -> the original model's logits (B, K), differentiable in the images.
        images, labels: (N, C, H, W), and (N,) or None: what the model predicts.
        config: `families` of it perturb.
    """
    families, layout = config.families(images.shape[1:]), fastest_layout(forward, images)
    with torch.no_grad():
        original = torch.cat([forward(b.contiguous(memory_format=layout)) for b in images.split(config.batch_size)])
    predictions, classes = original.argmax(1), original.shape[1]
    labels = predictions if labels is None else labels
    order = torch.Generator().manual_seed(seed)
    most = max(FEWEST, KEPT_BYTES // (images[0].numel() * images.element_size() * len(families)))
    reached = torch.zeros(len(families), classes, dtype=torch.long)
    possible, found = torch.zeros_like(reached), []

    def attacked(x: Tensor, targets: Tensor) -> Tensor:
        return forward(x.contiguous(memory_format=layout))

    for i in Progress(len(families), "perturb", enabled=progress, lines=2):
        some = torch.randperm(len(images), generator=order)[:most].to(images.device)
        for rows, tried, targets in perturbed(
            *families[i], attacked, images[some], labels[some], rule_of(config), classes, config.batch_size, order
        ):
            with torch.no_grad():
                now = attacked(tried, targets).argmax(1)
            own = some[rows]
            worked = ((now != predictions[own]) & (now != labels[own])).nonzero()[:, 0]
            reached[i] += torch.bincount(now[worked].cpu(), minlength=classes)
            possible[i] += len(own) - torch.bincount(labels[own].cpu(), minlength=classes)
            found.append(Attempt(i, own[worked], tried[worked], targets[worked]))
    return Attempts(original, found, suspicion_of(reached, possible), layout)
