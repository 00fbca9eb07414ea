"""Neurons: the channels of BatchNorm layers, or where a network has none, the outputs of its layers but the last.

A mask in [0, 1] per neuron scales its weight; pruning sets the weight to zero (the authors of ANP do the same).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...cut import logits_of
from ...errors import InputError
from .base import Job, accuracy_of

STEP = 0.05  # of the thresholds tried


def neurons_of(model: nn.Module) -> dict[str, int]:
    """Layers whose outputs are the neurons, with how many each has."""
    normed = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}
    if normed:
        return {n: m.num_features for n, m in normed.items()}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if len(layers) < 2:
        raise InputError("model: found no neurons to prune, wanted BatchNorm, or two convolutions or linear layers")
    return {n: m.weight.shape[0] for n, m in layers[:-1]}


class Masks(nn.Module):
    """One number per neuron, all 1 at first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        sizes = neurons_of(model)
        self.names = list(sizes)
        where = next(model.parameters())
        self.values = nn.ParameterList(torch.ones(n, device=where.device, dtype=where.dtype) for n in sizes.values())

    def clamp_(self) -> None:
        with torch.no_grad():
            for value in self.values:
                value.clamp_(0, 1)

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))


class Masked:
    """A network whose neurons are scaled: weight x (mask + noise), bias x (1 + noise) (ANP, eq. 2).

    Its own buffers are copies: batch statistics met on the way do not stay.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {n: p.detach() for n, p in model.named_parameters()}
        self.buffers = {n: b.clone() for n, b in model.named_buffers()}

    def __call__(
        self,
        images: Tensor,
        masks: Mapping[str, Tensor],
        noise: Mapping[str, Tensor] | None = None,
        bias_noise: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        own: dict[str, Tensor] = dict(self.weights)
        for name, mask in masks.items():
            weight = own[f"{name}.weight"]
            factor = mask + noise[name] if noise else mask
            own[f"{name}.weight"] = weight * factor.view(-1, *[1] * (weight.ndim - 1))
            if bias_noise and f"{name}.bias" in own:
                own[f"{name}.bias"] = own[f"{name}.bias"] * (1 + bias_noise[name])
        return logits_of(functional_call(self.model, {**own, **self.buffers}, (images,)))


def prune(model: nn.Module, rows: Mapping[str, Tensor], *, bias: bool = False) -> None:
    """Set the weights of those neurons to zero, in place. `rows` are masks (neurons,) of what goes."""
    with torch.no_grad():
        for name, gone in rows.items():
            layer = model.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            layer.weight[gone] = 0
            if bias and isinstance(layer.bias, Tensor):
                layer.bias[gone] = 0


def prune_within(
    model: nn.Module, masks: Mapping[str, Tensor], job: Job, tolerance: float, batch_size: int
) -> tuple[nn.Module, float, int]:
    """Prune all neurons whose mask is at most a threshold, the largest that keeps clean accuracy within `tolerance`.

    Thresholds are tried in steps of `STEP`. Where already the first that prunes anything costs more, the neurons go by
    their masks one by one, as many as are within the tolerance: a rule that prunes nothing would be no defence.

    The rule sees the clean set alone. Returns the pruned copy, the largest mask that went (0: none did) and the count.
    """

    def without(rows: Mapping[str, Tensor]) -> nn.Module | None:
        """The model without these neurons, if it keeps the accuracy."""
        tried = copy.deepcopy(model)
        prune(tried, rows)
        return tried if accuracy_of(tried, job, batch_size) >= job.accuracy - tolerance else None

    best, threshold, pruned = model, 0.0, 0
    for k in range(1, round(1 / STEP)):
        rows = {name: mask.detach() <= k * STEP for name, mask in masks.items()}
        total = sum(int(r.sum()) for r in rows.values())
        if total == pruned:
            continue
        tried = without(rows)
        if tried is None:
            if pruned == 0:
                best, threshold, pruned = _one_by_one(model, masks, without, total)
            break
        best, threshold, pruned = tried, round(k * STEP, 2), total
    return best, threshold, pruned


def _one_by_one(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    without: Callable[[Mapping[str, Tensor]], nn.Module | None],
    most: int,
) -> tuple[nn.Module, float, int]:
    """Prune by the smallest masks, fewer than `most`: halving finds how many, as if each cost something."""
    values = torch.cat([m.detach() for m in masks.values()])
    places = values.argsort(stable=True).argsort(stable=True).split([len(m) for m in masks.values()])
    best, few, many = model, 0, most
    while many - few > 1:
        count = (few + many) // 2
        tried = without({name: place < count for name, place in zip(masks, places, strict=True)})
        if tried is None:
            many = count
        else:
            best, few = tried, count
    return best, float(values.sort().values[few - 1]) if few else 0.0, few
