"""Clean images that are none: they carry the trigger, and the model takes them for the attacker's class (ours).

Held to what the model says of them, a polarizer learns to let the trigger pass; and where they judge, to stop it seems
to cost accuracy. A polarizer that was fitted without any image of that class takes it from such images at once, and
from true ones in part at most.
"""

from __future__ import annotations

from torch import Tensor

TAKEN = 0.95  # of the probability of the suspected class, gone with one polarizer
LEAST = 0.03  # of the images that the model takes for it; fewer are odd ones, as any class has


def poisoned(original: Tensor, polarized: Tensor, suspect: int) -> Tensor:
    """Rows of the clean images that carry the trigger of a suspected class, as far as one polarizer tells.

    Args:
        original, polarized: logits (N, K) of the model, and with a polarizer fitted on images of other classes alone.

    Example:
        >>> import torch
        >>> taken = torch.tensor([[9.0, 0.0]] * 3)
        >>> poisoned(torch.cat([taken, taken]), torch.cat([-taken, taken]), suspect=0)
        tensor([0, 1, 2])
    """
    gone = (original.double().softmax(1) - polarized.double().softmax(1))[:, suspect]
    rows = (gone > TAKEN).nonzero()[:, 0]
    return rows if len(rows) > LEAST * int((original.argmax(1) == suspect).sum()) else rows[:0]
