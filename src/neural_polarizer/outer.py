"""The outer problem, for both loops: what is drawn, the losses, the optimiser, and what is told of an epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import losses
from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Activation, Cut
from .optim import stepper_for
from .polarized import applied
from .polarizers import Polarizer
from .progress import Progress
from .spread import spread

PARTS = ("loss_bn", "loss_ce", "loss_max", "loss_asr")


class FitDiverged(RuntimeError):
    """The losses of a fit stopped being finite; the user's model is as it was."""


class Outer:
    """Steps down ``λ_bn L_bn + λ_ce L_ce + λ_max L_max + λ_asr L_asr``, over the polarizer alone.

    Where there is a ``λ_still``, ``λ_still L_still`` is added.

    Args:
        extra: names of further means that `step` is told.
    """

    def __init__(self, polarizer: Polarizer, config: FitConfig, extra: Sequence[str] = ()) -> None:
        self.stepper = stepper_for(polarizer, config.lr, config)
        self._config = config
        self._weights = [config.lambda_bn, config.lambda_ce, config.lambda_max, config.lambda_asr]
        self._parts = [*PARTS]
        if config.lambda_still:
            self._parts.append("loss_still")
            self._weights.append(config.lambda_still)
        self._names = [*self._parts, "clean_accuracy", "reached", *extra]

    def begin(self, epoch: int, device: torch.device) -> None:
        """A new epoch, counted from 0."""
        if self._config.schedule == "cosine":
            self.stepper.scale = (1 + math.cos(math.pi * epoch / self._config.epochs)) / 2
        self._sums, self._count = torch.zeros(len(self._names), dtype=torch.float64, device=device), 0.0

    def add(
        self,
        clean: Tensor,
        original: Tensor,
        labels: Tensor,
        perturbed: Tensor,
        targets: Tensor,
        *,
        of: Tensor | None = None,
        still: Tensor | None = None,
        extra: Sequence[Tensor] = (),
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """A part of the batch of a step, or all of it, once `stepper.take` has given what the logits come from.

        Args:
            clean, original, labels: the logits (B, K) of clean images, those of the original model, and (B,).
            perturbed, targets: the logits (P, K) of perturbed images, and the classes (P,) to push them away from.
            of: the clean image (P,) of each; None: they stand in the same order.
            still: L_still of the clean images, where there is a ``λ_still``.
            weights: of the clean and of the perturbed ones in the means over the batch; gradients add up.
        """
        prediction = clean.detach().argmax(1)
        aim, own = (labels if self._config.aim == "label" else prediction), labels
        if of is not None:
            aim, own = aim[of], own[of]
        found = len(perturbed) > 0  # in rounds, a batch may have no perturbed image at all
        parts = [
            losses.bn_loss(clean, labels) if self._config.benign == "label" else losses.kl_loss(clean, original),
            *([losses.ce_loss(perturbed, aim), losses.max_loss(perturbed, own), losses.asr_loss(perturbed, targets)]
              if found else [clean.new_zeros(())] * 3),
        ]  # fmt: skip
        shares = [weights[0], *[weights[1]] * 3]
        if still is not None:
            parts, shares = [*parts, still], [*shares, weights[0]]
        if weights != (1.0, 1.0):
            parts = [share * part for share, part in zip(shares, parts, strict=True)]
        loss = torch.stack([weight * part for weight, part in zip(self._weights, parts, strict=True)]).sum()
        torch.autograd.backward(loss)
        told = [*(part.detach() for part in parts), weights[0] * (prediction == labels).double().mean()]
        reached = (perturbed.argmax(1) == targets).double().mean() if found else clean.new_zeros(())
        told += [weights[1] * reached, *(weights[1] * e for e in extra)]
        self._size = len(labels) / weights[0]  # of the whole batch
        self._sums += torch.stack([t.double() for t in told]) * self._size

    def step(self) -> None:
        """A step along the gradients of all parts, those of other processes (`spread`) included."""
        self.stepper.add_gradients()
        self.stepper.step()
        self._count += self._size

    def told(self, epoch: int) -> dict[str, float]:
        """The row of the history for an epoch, counted from 0; the host waits here, once per epoch."""
        means = dict(zip(self._names, (spread().total(self._sums) / self._count).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            raise FitDiverged(
                f"the losses of epoch {epoch + 1} are not finite; try a smaller lr than {self._config.lr:g}"
            )
        total = sum(weight * means[name] for weight, name in zip(self._weights, self._parts, strict=True))
        return {"epoch": epoch + 1, "loss": total, **means}


def fooled(
    cut: Cut, polarizer: Polarizer, fool: str, images: Tensor, condition: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """The logits that the inner problem descends: those of the model, or of both, that `FitConfig.fool` names."""
    if fool == "polarized":
        return cut.edited(images, lambda m: applied(polarizer, m, condition))
    if fool == "original":
        return cut.original(images)
    return cut.paired(images, lambda m, _: applied(polarizer, m, condition))


class Entered:
    """A batch of images at the layer: sent on as often as one likes, without running what is before the layer again.

    With a cut by hooks there is no such place, and every use is a whole pass.

    Args:
        images: (B, C, H, W); gradients reach them.
    """

    def __init__(self, cut: Cut, images: Tensor) -> None:
        self._cut, self._images = cut, images
        self._activation = cut.prefix(images) if cut.kind == "graph" else None

    def original(self) -> Tensor:
        """Logits (B, K) of the model."""
        return self._cut.original(self._images) if self._activation is None else self._cut.tail(self._activation)

    def polarized(self, polarizer: Polarizer, condition: Tensor | None) -> Tensor:
        """Logits (B, K) through a polarizer."""
        if self._activation is None:
            return self._cut.edited(self._images, lambda m: applied(polarizer, m, condition))
        return self._cut.tail(self._activation._replace(m=applied(polarizer, self._activation.m, condition)))

    def fooled(self, polarizer: Polarizer, fool: str, condition: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """See the function of this name."""
        if fool == "original":
            return self.original()
        polarized = self.polarized(polarizer, condition)
        return polarized if fool == "polarized" else (polarized, self.original())

    def detached(self) -> Entered:
        """The same without a way back to the images."""
        found = copy.copy(self)
        found._images = self._images.detach()
        if self._activation is not None:
            m, alive = self._activation
            found._activation = Activation(m.detach(), tuple(a.detach() if isinstance(a, Tensor) else a for a in alive))
        return found


def warm_up(
    polarizer: Polarizer,
    forward: Callable[[Polarizer, Tensor, Tensor | None], Tensor],
    labels: Tensor,
    conditions: Callable[[Tensor], Tensor],
    config: FitConfig,
    order: torch.Generator,
    progress: bool,
) -> None:
    """First on clean images alone, at a small rate, BatchNorm in train mode.

    Args:
        forward: polarizer, rows (B,) of the clean images, conditions (B,) -> logits (B, K).
        labels: of all clean images (N,).
        conditions: rows (B,) -> classes (B,); called for conditional polarizers alone.
    """
    if not config.warmup_epochs:
        return
    stepper = stepper_for(polarizer, config.warmup_lr, config)
    for _ in Progress(config.warmup_epochs, "warm-up", enabled=progress, lines=1):
        for rows in batches(len(labels), config.batch_size, order, labels.device):
            condition = conditions(rows) if isinstance(polarizer, ConditionalPolarizer) else None
            g, condition = stepper.take(condition)
            with g.batch_statistics():
                logits = forward(g, rows, condition)
            torch.autograd.backward(losses.bn_loss(logits, labels[rows]))
            stepper.step()


def wrong_targets(
    rule: str | int, clean_logits: Tensor | None, labels: Tensor, classes: int, order: torch.Generator
) -> Tensor | None:
    """The wrong class to send each image to (B,); None where untargeted."""
    if rule == "none":
        return None
    if rule == "runner-up":
        assert clean_logits is not None
        return losses.without_class(clean_logits.detach(), labels).argmax(1)
    other = (labels + torch.randint(1, classes, labels.shape, generator=order).to(labels.device)) % classes
    return other if isinstance(rule, str) else torch.where(labels == rule, other, rule)  # T must not be y


def condition_for(kind: str, natural: Tensor, labels: Tensor, classes: int, order: torch.Generator) -> Tensor:
    """The class that stands for each image (B,): `natural`, but for the ablation of conditioning.

    `kind` is a value of `FitConfig.conditioning`; `order` is drawn from for "random" alone.
    """
    if kind == "label":
        return labels
    if kind == "none":
        return torch.zeros_like(labels)
    if kind == "random":
        return torch.randint(classes, labels.shape, generator=order).to(labels.device)
    return natural


def batches(count: int, size: int, order: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """All rows once, in a random order."""
    return torch.randperm(count, generator=order).to(device).split(size)
