"""FP, Fine-Pruning: prune the channels that clean images leave asleep, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...capture import make_cut
from ...cut import Cut
from ...graph import CaptureError
from ...metrics import accuracy
from .base import Defended, Job, count
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
        entered = entrance(steps)
        layer = job.model.get_submodule(entered.name)
        assert isinstance(layer, nn.Linear)
        kept = self.awake(job, entered.name, _channels(steps, layer))
        mask = kept.repeat_interleave(layer.in_features // len(kept))
        with torch.no_grad():
            layer.weight.mul_(mask)
        hook = layer.weight.register_hook(lambda gradient: gradient * mask)
        self.tune(job, job.model, cross_entropy)
        hook.remove()
        return Defended(job.model, count(job.model), {"channels": len(kept), "pruned": int((kept == 0).sum())})

    @torch.no_grad()
    def awake(self, job: Job, layer: str, channels: int) -> Tensor:
        """1 for each channel (C,) that stays, 0 for those that go; only what lies behind the cut is run for each."""
        cut = _cut(job.model, layer, job.images[:2])
        entering = [cut.prefix(batch) for batch in job.images.split(self.batch_size)]
        each = torch.cat([a.m.double().abs().view(len(a.m), channels, -1).mean(2) for a in entering])
        kept = torch.ones(channels, device=each.device, dtype=entering[0].m.dtype)
        for channel in each.mean(0).argsort(stable=True)[:-1]:  # something must enter
            kept[channel] = 0
            mask = kept.repeat_interleave(entering[0].m.shape[1] // channels)
            said = torch.cat([cut.tail(a._replace(m=a.m * mask)).argmax(1) for a in entering])
            if accuracy(said, job.labels) < job.accuracy - self.tolerance:
                kept[channel] = 1
                break
        return kept


def _cut(model: nn.Module, layer: str, example: Tensor) -> Cut:
    try:
        return make_cut(model, layer, example, "graph")
    except CaptureError:  # then every channel costs a whole pass
        return make_cut(model, layer, example, "hooks")


def _channels(steps: list[Step], layer: nn.Linear) -> int:
    """Channels of the last feature map: its positions may all enter, flattened."""
    maps = [s.made for s in steps if len(s.made) == 4]
    features = layer.in_features
    return maps[-1][1] if maps and features % maps[-1][1] == 0 else features
