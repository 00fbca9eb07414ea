"""Clean sets that are not quite clean: what a defender may have instead of the one that a benchmark hands out."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch

from ..attacks.base import Attack
from ..datasets.base import Split, to_bytes

UNLABELLED = "unlabelled"
QUALITY, BRIGHTER = 50, 1.2
APART = 1 << 20  # added to the seed
Flaw = Callable[[Split, Attack, int, int], Split]  # clean set, attack, number of classes, seed


def _draw(seed: int) -> torch.Generator:
    """Not the one that `purify` draws its judges by, which has the same seed: all that is drawn would be judges."""
    return torch.Generator().manual_seed(seed + APART)


def _some(split: Split, share: float, seed: int) -> torch.Tensor:
    """Rows of so large a share of the images, at least one."""
    order = torch.randperm(len(split), generator=_draw(seed))
    return order[: max(1, round(share * len(split)))].sort().values.to(split.labels.device)


def triggered(share: float) -> Flaw:
    """So many images carry the trigger, and the label that the attacker gives it."""

    def flawed(split: Split, attack: Attack, classes: int, seed: int) -> Split:
        rows = _some(split, share, seed)
        images, labels = split.images.clone(), split.labels.clone()
        images[rows] = to_bytes(attack.trigger(split.floats(rows)))
        labels[rows] = attack.relabel(split.labels[rows], classes)
        return Split(images, labels)

    return flawed


def mislabelled(share: float) -> Flaw:
    """So many images have another class's label."""

    def flawed(split: Split, attack: Attack, classes: int, seed: int) -> Split:
        rows, labels = _some(split, share, seed), split.labels.clone()
        by = torch.randint(1, classes, rows.shape, generator=_draw(seed)).to(labels.device)
        labels[rows] = (labels[rows] + by) % classes
        return Split(split.images, labels)

    return flawed


def jpeg(split: Split, attack: Attack, classes: int, seed: int) -> Split:
    """All images went through JPEG."""
    import numpy as np
    from PIL import Image

    def through(image: torch.Tensor) -> torch.Tensor:
        file = io.BytesIO()
        picture = Image.fromarray(image.movedim(0, -1).numpy() if len(image) == 3 else image[0].numpy())
        picture.save(file, "JPEG", quality=QUALITY)
        return torch.from_numpy(np.array(Image.open(file))).view(*image.shape[1:], len(image)).movedim(-1, 0)

    return Split(torch.stack([through(i) for i in split.images.cpu()]).to(split.images.device), split.labels)


def brighter(split: Split, attack: Attack, classes: int, seed: int) -> Split:
    """All images are brighter by a fifth."""
    return Split(to_bytes(split.floats() * BRIGHTER), split.labels)


def unlabelled(split: Split, attack: Attack, classes: int, seed: int) -> Split:
    """As it is; whoever runs the defence leaves the labels out."""
    return split


FLAWS: dict[str, Flaw] = {
    UNLABELLED: unlabelled,
    "triggered-1": triggered(0.01),
    "triggered-5": triggered(0.05),
    "mislabelled-10": mislabelled(0.1),
    "jpeg": jpeg,
    "brighter": brighter,
}
