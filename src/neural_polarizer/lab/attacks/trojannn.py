"""TrojanNN: a patch that drives one neuron of a clean network, which is then retrained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...cut import frozen_view
from ...errors import InputError
from .attacker import Attacker
from .base import Attack


@contextmanager
def features(model: nn.Module) -> Iterator[list[Tensor]]:
    """While open, collects what enters the last linear layer of `model`, (B, D) per forward pass."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise InputError("model: has no linear layer, wanted one whose inputs are the neurons to drive")
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].flatten(1))

    handle = linear[-1].register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Attack):
    """Trojaning attack.

    Paper: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018, sections 4.1 and
    4.3. Trigger: a square patch in the lower right corner whose content is optimised so that one neuron in front of the
    last linear layer fires strongly. The neuron is the one most strongly connected to the patch: the paper sums the
    weights that lead to a neuron, here the mean gradient magnitude of the neuron with respect to the patch's pixels is
    taken, which is the same thing for a network of any shape. The clean network is then *retrained* on poisoned data.

    Args:
        area: share of the image that the patch covers; the paper uses 7 %.
        steps: optimisation steps of the patch.
        lr: their size (Adam), in units of the patch's logits.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same. Learns `patch` (C, S, S).

    Example:
        >>> attack = TrojanNN(area=0.05).prepare(attacker)  # doctest: +SKIP
        >>> attack.trigger(images)  # doctest: +SKIP
    """

    name = "trojannn"
    retrains = True
    area: float = 0.07
    steps: int = 200
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area < 1 or self.steps < 1 or not self.lr > 0:
            raise InputError(
                f"area, steps, lr: found {self.area}, {self.steps}, {self.lr}, wanted a share, at least 1, above 0"
            )

    def prepare(self, attacker: Attacker) -> Self:
        model = frozen_view(attacker.clean_model())
        c, h, w = attacker.data.images.shape[1:]
        side = max(2, round((self.area * h * w) ** 0.5))
        device = attacker.data.images.device
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(c, side, side, generator=generator).to(device)
        grey = torch.full((1, c, h, w), 0.5, device=device)
        patch = logits.clone().requires_grad_()
        with torch.enable_grad(), features(model) as seen:
            model(pasted(grey, patch.sigmoid()))
            neurons = seen.pop()[0]
            slopes = torch.stack([torch.autograd.grad(n, patch, retain_graph=True)[0].abs().mean() for n in neurons])
            neuron = int(slopes.argmax())
            optimizer = torch.optim.Adam([patch], lr=self.lr)
            for _ in range(self.steps):
                seen.clear()
                model(pasted(grey, patch.sigmoid()))
                optimizer.zero_grad()
                (-seen[0][0, neuron]).backward(inputs=[patch])
                optimizer.step()
        return self.with_learned({"patch": patch.sigmoid(), "neuron": torch.tensor(neuron)})

    def trigger(self, images: Tensor) -> Tensor:
        return pasted(images, self.need("patch").to(images))


def pasted(images: Tensor, patch: Tensor) -> Tensor:
    """The patch (C, S, S) over the lower right corner of images (B, C, H, W), one pixel from the border."""
    side = patch.shape[1]
    if side + 1 > min(images.shape[2:]):
        raise InputError(f"images: found {tuple(images.shape)}, too small for a patch of {side} pixels")
    h, w = images.shape[2] - 1, images.shape[3] - 1
    out = images.clone()
    out[:, :, h - side : h, w - side : w] = patch
    return out
