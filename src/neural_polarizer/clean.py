"""The clean set: whatever the user has, as one tensor of images and one of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .checks import check_images
from .errors import InputError

_WANTED = "(images, labels) tensors, images alone, a Dataset, or a DataLoader of such items"


def _pair(item: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], Tensor) and len(item) <= 2:
        return item[0], None if len(item) == 1 else torch.as_tensor(item[1])
    raise InputError(f"clean: found an item of {type(item).__name__}, wanted an image tensor or (image, label)")


def _gather(clean: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(clean, Tensor):
        return clean, None
    if isinstance(clean, (tuple, list)) and len(clean) == 2 and all(isinstance(c, Tensor) for c in clean):
        return clean[0], clean[1]
    batched = isinstance(clean, DataLoader)
    if isinstance(clean, Dataset):
        if not hasattr(clean, "__len__") or not hasattr(clean, "__getitem__"):
            raise InputError("clean: found a Dataset without a length, wanted one with a length and items by index")
        items = [_pair(clean[i]) for i in range(len(clean))]
    elif batched:
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed from the global generator
            items = [_pair(batch) for batch in clean]
    else:
        raise InputError(f"clean: found {type(clean).__name__}, wanted {_WANTED}")
    if not items:
        raise InputError("clean: found no image at all, wanted at least one")
    labelled = [label for _, label in items if label is not None]
    if labelled and len(labelled) != len(items):
        raise InputError(f"clean: found labels for {len(labelled)} of {len(items)} items, wanted all or none")
    join = torch.cat if batched else torch.stack
    try:
        return join([image for image, _ in items]), join(labelled) if labelled else None
    except (RuntimeError, TypeError) as error:
        raise InputError(f"clean: images or labels do not fit together ({error})") from None


def load_clean(clean: Any) -> tuple[Tensor, Tensor | None]:
    """Images (N, C, H, W) in [0, 1] and labels (N,), or None where there are none, as given and checked.

    Raises:
        InputError: something else than the accepted forms, an empty set, images outside [0, 1] or with NaN.
    """
    images, labels = _gather(clean)
    return check_images("clean", images.detach()), labels
