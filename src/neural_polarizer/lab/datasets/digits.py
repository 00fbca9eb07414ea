"""The handwritten digits that ship inside scikit-learn: 1,797 real 8x8 images, no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import InputError
from .base import ImageData, Split, to_bytes

TEST_SHARE = 0.2


def digits(*, size: int = 16, seed: int = 0) -> ImageData:
    """Digits as RGB images, enlarged bilinearly; 1,438 to train and 359 to test.

    Args:
        size: side in pixels, from 8 on.
        seed: of the split.

    Raises:
        InputError: a smaller size; scikit-learn is missing.
    """
    if size < 8:
        raise InputError(f"size: found {size}, wanted at least the 8 pixels that the digits have")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError('dataset: digits needs scikit-learn; pip install "neural-polarizer[lab]"') from None
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1).repeat(1, 3, 1, 1)
    labels = torch.tensor(found.target, dtype=torch.long)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test = int(TEST_SHARE * len(labels))
    everything = Split(to_bytes(images), labels)
    return ImageData(
        "digits",
        everything.take(order[test:]),
        everything.take(order[:test]),
        tuple(str(c) for c in range(10)),
    )
