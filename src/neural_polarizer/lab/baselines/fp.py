"""FP, Fine-Pruning: prune the channels that clean images leave asleep, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...cut import logits_of
from .base import Defended, Job, accuracy_of, count
from .trace import Step, entrance, trace
from .tuning import Tuning, cross_entropy


@dataclass(frozen=True, kw_only=True)
class FP(Tuning):
    """Fine-Pruning.

    Paper: Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks",
    arXiv 1805.12185. The channels of the last feature map are pruned where they enter the classifier, the least active
    on clean images first, as long as clean accuracy stays within `tolerance`; then everything is fine-tuned, with
    pruned channels kept at zero. Any network with a linear classifier.

    Args:
        tolerance: share of clean accuracy that pruning may cost (the paper's 4 %).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> done = FP(epochs=1)(net, (torch.rand(8, 3, 8, 8), torch.arange(8)), progress=False)
        >>> done.notes["channels"]
        4
    """

    name = "fp"
    batch_size: int = 256
    tolerance: float = 0.04

    def defend(self, job: Job) -> Defended:
        steps = trace(job.model, job.images[:2])
        layer = entrance(steps)
        channels = _channels(steps, layer)
        order = mean_activation(job.model, layer, job.images, channels, self.batch_size).argsort(stable=True)
        weight = layer.weight
        before, kept = weight.detach().clone(), torch.ones(channels, device=weight.device)
        pruned = 0
        for channel in order[:-1]:  # something must enter
            kept[channel] = 0
            _apply(weight, before, kept)
            if accuracy_of(job.model, job, self.batch_size) < job.accuracy - self.tolerance:
                kept[channel] = 1
                break
            pruned += 1
        _apply(weight, before, kept)
        mask = kept.repeat_interleave(weight.shape[1] // channels)
        hook = weight.register_hook(lambda gradient: gradient * mask)
        self.tune(job, job.model, cross_entropy)
        hook.remove()
        return Defended(job.model, count(job.model), {"channels": channels, "pruned": pruned})


def _channels(steps: list[Step], layer: nn.Linear) -> int:
    """Channels of the last feature map: its positions may all enter, flattened."""
    maps = [s.made for s in steps if len(s.made) == 4]
    features = layer.in_features
    return maps[-1][1] if maps and features % maps[-1][1] == 0 else features


def _apply(weight: Tensor, before: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(before * kept.repeat_interleave(weight.shape[1] // len(kept)))


@torch.no_grad()
def mean_activation(model: nn.Module, layer: nn.Linear, images: Tensor, channels: int, batch_size: int) -> Tensor:
    """The mean size (C,) of what enters `layer`, by channel."""
    total = torch.zeros(channels, dtype=torch.float64, device=images.device)

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        total.add_(args[0].detach().double().abs().view(len(args[0]), channels, -1).mean(2).sum(0))

    handle = layer.register_forward_pre_hook(note)
    try:
        for batch in images.split(batch_size):
            logits_of(model(batch))
    finally:
        handle.remove()
    return total / len(images)
