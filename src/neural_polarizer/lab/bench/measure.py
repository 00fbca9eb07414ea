"""What is measured of a model on a test set: predictions and confidences on clean and on triggered images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...metrics import (
    attackable,
    auroc,
    defence_effectiveness,
    der_ceiling,
    excess_asr,
    tpr_at_fpr,
)
from ..attacks.base import Attack
from ..datasets.base import Split
from ..evaluate import evaluation_of
from ..train import logits_over


@dataclass(frozen=True)
class Said:
    """Of N clean images and the same N triggered: the class (N,) of each, and how sure the model is of `asked`.

    `asked` (N,) is the class that the backdoored network gives, so its own confidences are those of its predictions.
    """

    clean: Tensor
    clean_sure: Tensor
    triggered: Tensor
    triggered_sure: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))


@torch.no_grad()
def _one(
    model: nn.Module, images: Tensor, change: Callable[[Tensor], Tensor] | None, asked: Tensor | None
) -> tuple[Tensor, Tensor]:
    p = torch.cat([logits.float().softmax(1) for logits in logits_over(model, images, change)])
    classes = p.argmax(1)
    return classes, p.gather(1, (classes if asked is None else asked)[:, None])[:, 0]


def said_by(model: nn.Module, test: Split, attack: Attack, asked: Said | None = None) -> Said:
    """What a model in eval mode says of the test images; `asked` is what the backdoored network said of them."""
    clean = _one(model, test.images, None, None if asked is None else asked.clean)
    triggered = _one(model, test.images, attack.trigger, None if asked is None else asked.triggered)
    return Said(*clean, *triggered)


def figures(before: Said, after: Said, twin: Said, labels: Tensor, attack: Attack, classes: int) -> dict[str, Any]:
    """All metrics of a cell, as plain JSON, from what the network, the purified one and the clean twin say."""
    was, now, clean = (
        evaluation_of(said.clean, said.triggered, labels, attack, classes) for said in (before, after, twin)
    )
    counted = attackable(labels, attack.target)
    scores = before.clean_sure - after.clean_sure, (before.triggered_sure - after.triggered_sure)[counted]
    der = defence_effectiveness(acc_before=was.acc, acc_after=now.acc, asr_before=was.asr, asr_after=now.asr)
    return {
        "before": was.to_dict(),
        "after": now.to_dict(),
        "twin": clean.to_dict(),
        "excess_asr": excess_asr(now.asr, clean.asr),
        "der": der,
        "der_ceiling": der_ceiling(was.asr),
        "der_share": der / der_ceiling(was.asr),
        "auroc": auroc(*scores),
        "tpr_at_5_fpr": tpr_at_fpr(*scores),
    }
