"""Clean images that are none: they carry the trigger, and the model takes them for the attacker's class (ours).

Held to what the model says of them, a polarizer learns to let the trigger pass; and where they judge, to stop it seems
to cost accuracy. But it learns so from few images, against all that was perturbed: a strong one takes their class from
most of these even so, and from true ones in part at most.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

SHARE_TAKEN, TAKEN = 0.9, 0.8  # of the probability that an image had of its class, and of probability as such
ODD, SHARE = 4, 0.002  # images that lose such a share though it was fitted on them: so many, of all, are odd ones
MOST = 0.1  # of the set; more of it is what the polarizer destroys


def poisoned(
    original: Tensor, polarized: Tensor, fitted_on: Tensor, suspect: int | None = None, known: Sequence[int] = ()
) -> list[int]:
    """Rows of the clean images that seem to carry a trigger, as far as one polarizer tells, and those known before.

    Args:
        original, polarized: logits (N, K) of the model, and with the polarizer.
        fitted_on: rows (M,) that the polarizer was held to the model on; others are lost more easily, and do not count.
        suspect: only images that the model takes for this class; None: for any.
        known: rows that were found before; where there are such, even one more counts.

    Example:
        >>> import torch
        >>> before, after = torch.tensor([[9.0, 0.0]] * 60), torch.tensor([[9.0, 0.0]] * 55 + [[0.0, 9.0]] * 5)
        >>> poisoned(before, after, torch.arange(60))
        [55, 56, 57, 58, 59]
    """
    said = original.argmax(1, keepdim=True)
    before, after = (logits.double().softmax(1).gather(1, said) for logits in (original, polarized))
    mine, lost = said == (said if suspect is None else suspect), after < (1 - SHARE_TAKEN) * before
    rows = sorted({*known, *(mine & (lost | (before - after > TAKEN))).nonzero()[:, 0].tolist()})
    there = bool(known) or int((mine & lost)[fitted_on].sum()) > max(ODD, SHARE * len(fitted_on))
    return rows if there and len(rows) <= MOST * len(original) else list(known)
