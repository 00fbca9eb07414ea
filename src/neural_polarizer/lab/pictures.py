"""Pictures of triggers: clean, triggered, and the difference made visible."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from torch import Tensor

from .attacks.base import Attack
from .datasets.base import to_bytes
from .datasets.images import png

AMPLIFY, GAP = 5, 2


def sheet(rows: list[Tensor], scale: int) -> bytes:
    """Rows of images, each (N, C, H, W) in [0, 1], as one PNG on white, pixels enlarged `scale` times."""
    count, _, h, w = rows[0].shape
    canvas = torch.full((3, len(rows) * (h + GAP) + GAP, count * (w + GAP) + GAP), 255, dtype=torch.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(to_bytes(row.cpu()).expand(-1, 3, -1, -1)):
            top, left = GAP + r * (h + GAP), GAP + c * (w + GAP)
            canvas[:, top : top + h, left : left + w] = image
    return png(canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def views(attack: Attack, images: Tensor) -> list[Tensor]:
    """The images (N, C, H, W), the same triggered, and 0.5 + 5 x their difference."""
    triggered = attack.trigger(images)
    return [images, triggered, (0.5 + AMPLIFY * (triggered - images)).clamp(0, 1)]


def gallery(triggers: Mapping[str, Attack], image: Tensor) -> bytes:
    """A PNG with a column per attack, its name above: the image (C, H, W), the same triggered, and the difference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, len(triggers), figsize=(1.15 * len(triggers), 3.6), squeeze=False)
    for column, (name, attack) in enumerate(triggers.items()):
        for row, pictures in enumerate(views(attack, image[None])):
            pixels = pictures[0].cpu().expand(3, -1, -1).permute(1, 2, 0)
            axes[row][column].imshow(pixels.numpy(), interpolation="nearest")
            axes[row][column].axis("off")
        axes[0][column].set_title(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()


def trigger_sheet(attack: Attack, images: Tensor) -> bytes:
    """A PNG of the three rows of `views`."""
    return sheet(views(attack, images), max(1, min(4, 128 // images.shape[2])))
