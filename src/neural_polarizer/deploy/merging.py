"""Fold a polarizer into the layer behind it: the network as it was, with one layer's weights replaced.

For g(m) = A m + b in front of a layer that computes W m + c, the folded layer has W A and W b + c. This is exact for
linear layers and for convolutions whose input is padded with nothing, or with values of itself (reflected, repeated):
those pass through g like all others. Zeros that are padded behind g stay zeros, while g would make b of them before
it: then b must be 0.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..checks import device_of, dtype_of
from ..conditional import ConditionalPolarizer
from ..cut import find_layer, frozen_view, logits_of
from ..errors import InputError
from ..polarized import PolarizedModel

AGREEMENT = 1e-4  # of logits, or of the largest of them where that is above 1
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def merge(purified: PolarizedModel) -> nn.Module:
    """A copy of the base, in eval mode, whose layer behind the polarizer does the polarizer's work as well.

    Exact up to rounding (it is folded in float64), and checked on random images. Names and shapes of the parameters
    are the base's, save that a layer without bias gets one where the polarizer has a constant part. The base stays as
    it is.

    Returns:
        A network of the base's own class: images (B, C, H, W) in [0, 1] -> what the base returns.

    Raises:
        InputError: it cannot be done exactly, and why: a polarizer that is no channel-wise affine map (those of CNPD
            depend on the image); a constant part before zero padding; a layer that is neither `nn.Linear` nor an
            ungrouped `nn.Conv2d`, or has hooks, parametrizations or weights that it shares.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> config = FitConfig(epochs=1, warmup_epochs=0)                            # doctest: +SKIP
        >>> purified = purify(net, clean, method="npd", layer="3", config=config)    # doctest: +SKIP
        >>> merged = merge(purified)                                                 # doctest: +SKIP
        >>> torch.save(merged.state_dict(), "clean.pt")                              # doctest: +SKIP
    """
    layer = find_layer(purified.base, purified.layer)
    matrix, shift = _affine(purified)
    why = _obstacle(purified, layer, bool(shift.any()))
    if why:
        raise InputError(f"purified: cannot be merged into {purified.layer!r}: {why}")
    merged = _copied(purified.base)
    _fold(find_layer(merged, purified.layer), matrix, shift)
    difference, bound = _difference(purified, merged)
    if not difference <= bound:
        raise InputError(
            f"purified: cannot be merged into {purified.layer!r}: the logits would change by {difference:.2g}, as "
            "where something beside this layer reads its weights"
        )
    return merged


def _affine(purified: PolarizedModel) -> tuple[Tensor, Tensor]:
    """A (C, C) and b (C,) of the polarizer in float64; b is 0 where it is so in the polarizer's own precision."""
    polarizer = purified.polarizer
    if not polarizer.affine:
        conditional = isinstance(polarizer, ConditionalPolarizer)
        raise InputError(
            f"purified: cannot be merged into {purified.layer!r}: the polarizer ({polarizer.structure}) is not one "
            f"affine map over channels{', but another one for each class that is predicted' if conditional else ''}"
        )
    with torch.no_grad():  # on the CPU: not every device has float64
        matrix, shift = copy.deepcopy(polarizer).cpu().double().folded()
        return matrix, shift if polarizer.folded()[1].any() else torch.zeros_like(shift)


def _obstacle(purified: PolarizedModel, layer: nn.Module, shifts: bool) -> str:
    """Why the layer cannot take the polarizer up; empty where it can."""
    kind = type(layer).__name__
    if is_parametrized(layer):
        return "its weights are computed anew at each use (torch.nn.utils.parametrize)"
    if any(getattr(layer, hooks, None) for hooks in _HOOKS) or "forward" in vars(layer):
        return "it has hooks, or a forward of its own, which may do anything"
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"it is a {kind}, wanted an nn.Linear or nn.Conv2d, no subclass"
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    tensors = {id(layer.weight), id(layer.bias)} - {id(None)}
    if any(m is not layer and tensors & {id(p) for p in m._parameters.values()} for m in purified.base.modules()):
        return "it shares its weights with another layer"
    if isinstance(layer, nn.Linear):
        return "" if purified.polarizer.channel_dim == -1 else "the polarizer's channels are not its features"
    if purified.polarizer.channel_dim != 1:
        return "the polarizer's channels are not its channels"
    if layer.groups != 1:
        return f"it is a convolution in {layer.groups} groups, whose outputs do not see all channels"
    if shifts and _pads_zeros(layer):
        return (
            f"it is a convolution with zero padding ({layer.padding}), and the polarizer has a constant part, which "
            "would be missing at the border; purify with FitConfig(mergeable=True)"
        )
    return ""


def _pads_zeros(layer: nn.Conv2d) -> bool:
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return any(k > 1 for k in layer.kernel_size) if layer.padding == "same" else any(map(int, layer.padding))


def _copied(base: nn.Module) -> nn.Module:
    """A copy by way of a view, which copes with the tensors that `weight_norm` and its like leave in modules."""
    copied = copy.deepcopy(frozen_view(base))
    for own, theirs in zip(copied.parameters(), base.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)
    return copied


@torch.no_grad()
def _fold(layer: nn.Module, matrix: Tensor, shift: Tensor) -> None:
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    weight = layer.weight.cpu().double()
    layer.weight.copy_(torch.einsum("oi...,ij->oj...", weight, matrix))
    if not shift.any():
        return
    added = torch.einsum("oi...,i->o", weight, shift)
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(weight)), requires_grad=layer.weight.requires_grad)
    layer.bias.copy_(layer.bias.cpu().double() + added)


@torch.no_grad()
def _difference(purified: PolarizedModel, merged: nn.Module) -> tuple[float, float]:
    """The largest difference of the logits on random images, and what may be."""
    order, base = torch.Generator().manual_seed(0), purified.base
    images = torch.rand(4, *purified.image_shape, generator=order).to(device_of(base), dtype_of(base))
    wanted, found = purified(images), logits_of(merged(images))
    exact = wanted.dtype in (torch.float32, torch.float64)
    bound = (AGREEMENT if exact else 2e-2) * max(1.0, wanted.abs().max().item())
    return (found - wanted).abs().max().item(), bound
