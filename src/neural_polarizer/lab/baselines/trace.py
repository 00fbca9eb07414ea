"""What a network does with an image: its modules in the order in which they finish, with the shapes that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError


@dataclass(frozen=True)
class Step:
    """A module that ran: shapes of what it was given first and of what it returned."""

    name: str
    module: nn.Module
    given: tuple[int, ...]
    made: tuple[int, ...]
    leaf: bool


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> list[Step]:
    """The modules of a model in eval mode, in the order in which they finish on `images` (B, C, H, W)."""
    steps: list[Step] = []
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            leaf = next(module.children(), None) is None
            steps.append(Step(names[module], module, tuple(args[0].shape), tuple(output.shape), leaf))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return steps


def last_features(steps: list[Step], count: int = 3) -> list[str]:
    """The modules that make the last feature map of each of the last `count` sizes.

    Where all have one size, as the tokens of a ViT, evenly spaced modules, the last among them.
    """
    maps = [s for s in steps if len(s.made) == 4 and s.made[2] * s.made[3] > 1]
    # The blocks' outputs where there are blocks: their first layers may still see the size before.
    by_size = {s.made[2:]: s.name for s in [*(s for s in maps if s.leaf), *(s for s in maps if not s.leaf)]}
    if len(by_size) > 1:
        order = sorted(by_size, reverse=True)
        return [by_size[size] for size in order[-count:]]
    tokens = [s for s in steps if len(s.made) == 3 and s.made[1] > 1 and not s.leaf] or maps
    if not tokens:
        raise InputError("model: found no feature map or tokens, wanted a network that makes them")
    return [tokens[(i + 1) * len(tokens) // count - 1].name for i in range(count)]


def entrance(steps: list[Step]) -> Step:
    """The linear layer through which the last feature map, or what was pooled from it, enters the classifier."""
    features = [i for i, s in enumerate(steps) if isinstance(s.module, (nn.Conv2d, nn.Linear)) and len(s.made) > 2]
    for step in steps[(features[-1] if features else -1) + 1 :]:
        if isinstance(step.module, nn.Linear) and len(step.given) == 2:
            return step
    raise InputError("model: found no linear layer behind the last feature map, wanted one to prune in front of")
