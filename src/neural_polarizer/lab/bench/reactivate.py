"""An attacker who knows: after the purification, a small perturbation on top of the trigger tries to wake the backdoor.

Source: Zhu et al., "Breaking the False Sense of Security in Backdoor Defense through Re-Activation Attack" (NeurIPS
2024): the attack searches a universal perturbation of triggered images, in a ball, that sends them to the target again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...cut import frozen_view, logits_of
from ...metrics import attack_success_rate
from ...mixture import Family
from ...perturb import learn_patterns
from ...threats import ThreatModel
from ..attacks.base import Attack
from ..datasets.base import Split
from ..train import predict

IMAGES = 2000  # of other classes than the target: half to search on, half to measure on
STEPS, BATCH = 60, 128


def reactivated(
    model: nn.Module, test: Split, attack: Attack, radii: Sequence[float], classes: int, seed: int
) -> list[dict[str, Any]]:
    """ASR of the trigger with a universal perturbation found for this very model, white box, on images of the attacker.

    Args:
        model: the defended model; not changed.
        test: images of which half are the attacker's to search on; the rate is that of the others.
        attack: all to one class.
        radii: budgets, L2 on 3x32x32 (the same share of other sizes); 0 is the trigger alone.

    Returns:
        Per budget {"radius", "asr"}.
    """
    assert attack.target is not None
    order = torch.Generator().manual_seed(seed)
    others = (test.labels != attack.target).nonzero()[:, 0].cpu()
    rows = others[torch.randperm(len(others), generator=order)[:IMAGES]].to(test.labels.device)
    theirs, judged = (test.take(part) for part in rows.chunk(2))
    triggered = torch.cat([attack.trigger(theirs.floats(part)) for part in torch.arange(len(theirs)).split(BATCH)])
    view = frozen_view(model)
    target = torch.tensor([attack.target], device=test.labels.device)
    out = []
    for radius in radii:
        change: Callable[[Tensor], Tensor] = attack.trigger
        if radius:
            family = Family(threat="l2", radius=radius, share="target", steps=STEPS, step=0.2)
            shape = tuple(triggered.shape[1:])
            threat = family.threat_model(shape)
            pattern = learn_patterns(
                threat, lambda x, _: logits_of(view(x)), triggered, theirs.labels, target, family.descent(shape),
                batch_size=BATCH, order=order,
            )  # fmt: skip
            change = partial(_on_top, attack, threat, pattern)
        said = predict(model, judged.images, change=change)
        rate = attack_success_rate(said, judged.labels, target=attack.target, classes=classes)
        out.append({"radius": float(radius), "asr": rate})
    return out


def _on_top(attack: Attack, threat: ThreatModel, pattern: Tensor, images: Tensor) -> Tensor:
    """The trigger, then the pattern (1, ...), on images (B, C, H, W)."""
    return threat.act(pattern.expand(len(images), *pattern.shape[1:]), attack.trigger(images))
