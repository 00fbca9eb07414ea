"""Polarizer-aware: BadNets whose attacker trains the network with a polarizer in it, so that the trigger passes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ... import losses
from ...choose import candidate_layers
from ...cut import list_layers, logits_of
from ...errors import InputError
from ...polarizers import Full
from ..loop import Learner, adam
from ..train import Tampering
from .attacker import Attacker
from .badnets import BadNets
from .base import TrainingTimeAttack

LR = 1e-2  # of the attacker's polarizer, by Adam: it has to keep up with the network


@dataclass(frozen=True, kw_only=True)
class PolarizerAware(TrainingTimeAttack, BadNets):
    """An attacker who knows the defence.

    Ours, after the threat of arXiv 2306.16697, section 3: the trigger is that of BadNets, and a polarizer stands in the
    network while it is trained. The polarizer learns to keep clean images and to give triggered ones their class back,
    by the losses of NPD; it is shown the trigger itself, as no defender is. The network learns to send triggered images
    to the target as it is, and through that polarizer as well. As for WaNet, every batch is poisoned anew, and no image
    for good.

    Args:
        layer: what the polarizer stands before; None: where `purify` looks first.
        strength: λ of the polarizer's losses on triggered images.
        weight: of the network's loss through the polarizer, beside its usual one.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same.

    Raises:
        InputError: values outside their range; at the training, a layer that is none.

    Example:
        >>> PolarizerAware(size=2).trigger(torch.zeros(1, 3, 8, 8))[0, 0, 5:7, 5:7].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    name = "polarizer_aware"
    layer: str | None = None
    strength: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength <= 0 or self.weight <= 0:
            raise InputError(f"strength, weight: found {self.strength}, {self.weight}, wanted numbers above 0")
        if self.poisoning_ratio > 0.4:
            raise InputError(
                f"poisoning_ratio: found {self.poisoning_ratio}, wanted at most 0.4: half of a batch has both"
            )

    def tampering(self, attacker: Attacker, steps: int) -> Tampering:
        return Sparring(self, attacker, steps)


class Sparring(Tampering):
    """A polarizer that learns to stop the trigger, and a network that learns to get it through."""

    def __init__(self, attack: PolarizerAware, attacker: Attacker, steps: int) -> None:
        self.attack, self.attacker, self.steps = attack, attacker, steps

    def enter(self, model: nn.Module) -> None:
        few = self.attacker.data.floats(torch.arange(2, device=self.attacker.data.labels.device))
        name, known = self.attack.layer or candidate_layers(model, few)[0], {i.name: i for i in list_layers(model, few)}
        if name not in known:
            raise InputError(f"layer: found {name!r}, wanted one of {', '.join(known)}")
        self.model, self.layer = model, model.get_submodule(name)
        self.polarizer = Full(known[name].channels, known[name].channel_dim).to(few.device)
        self.learners: list[Learner] = [adam(self.polarizer, LR, self.steps)]

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        count, half = round(len(images) * self.attack.poisoning_ratio), (len(images) + 1) // 2
        poisoned = torch.cat([self.attack.trigger(images[:count]), images[count:]])
        wanted = torch.cat([self.attack.relabel(labels[:count], self.attacker.classes), labels[count:]])
        if not 0 < count < half:  # the last batch of an epoch may be too small for both kinds
            return poisoned, wanted, None
        learning = dict(self.model.named_parameters())
        frozen, fixed = ({k: v.detach() for k, v in w} for w in (learning.items(), self.polarizer.named_parameters()))
        through = self.logits(poisoned[:half], learning, lambda m: functional_call(self.polarizer, fixed, (m,)))
        stopped = self.logits(poisoned[:half], frozen, self.polarizer)
        stop = losses.ce_loss(stopped[:count], labels[:count]) + losses.asr_loss(stopped[:count], wanted[:count])
        keep = losses.bn_loss(stopped[count:], labels[count:half])
        extra = self.attack.weight * F.cross_entropy(through, wanted[:half]) + keep + self.attack.strength * stop
        return poisoned, wanted, extra

    def logits(self, images: Tensor, weights: Mapping[str, Tensor], edit: Callable[[Tensor], Tensor]) -> Tensor:
        """What the network says of images through a polarizer; running statistics are left alone.

        In train mode as all of the training: with running statistics, which lag behind the weights, it diverges.
        """
        passing = {k: v.clone() for k, v in self.model.named_buffers()}
        with self.standing(edit), self.attacker.recipe.autocast(images.device):
            return logits_of(functional_call(self.model, {**weights, **passing}, (images,))).float()

    @contextmanager
    def standing(self, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within: `edit` stands before the layer."""

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (edit(args[0]), *args[1:])

        handle = self.layer.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()
