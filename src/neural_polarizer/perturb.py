"""The inner problem: perturbations of clean images that send the model to a wrong class.

``δ = argmin CE(f_θ(x + δ), T)  subject to ‖δ‖_p ≤ ρ and x + δ in [0, 1]``   (NPD, arXiv 2306.16697, eq. 4)

A *threat model* says what a perturbation is: its parameters for some units, how they act on images, its ball and
projection. A unit is one image, the whole batch, or all images that share a target (`share`). The descent is
written once, over any threat model.

Example:
    >>> threat = Additive(norm="l2", radius=1.0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> images = torch.rand(4, 3, 2, 2)
    >>> out = descend(threat, model, images, torch.tensor([0, 1, 2, 0]), Descent(steps=3, step=0.1))
    >>> bool((out.images - images).flatten(1).norm(dim=1).max() <= 1.0 + 1e-5)
    True
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Share = Literal["sample", "batch", "target"]
SHARES = ("sample", "batch", "target")
NORMS = ("l2", "linf", "l1")
STEP_RULES = ("sign", "plain", "normalized")


def project_l2(delta: Tensor, radius: float) -> Tensor:
    """The nearest point of the L2 ball, for every row of (U, ...)."""
    norm = delta.flatten(1).norm(dim=1).clamp_min(1e-30)
    return delta * (radius / norm).clamp(max=1).view(-1, *[1] * (delta.ndim - 1))


def project_linf(delta: Tensor, radius: float) -> Tensor:
    """The nearest point of the L∞ ball."""
    return delta.clamp(-radius, radius)


def project_l1(delta: Tensor, radius: float) -> Tensor:
    """The nearest point of the L1 ball: soft thresholding, its threshold from the sorted magnitudes.

    Source: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.
    """
    rows = delta.flatten(1)
    size = rows.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    kept = (ordered * rank > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, kept - 1) / kept).clamp_min(0)  # 0 for a row that is inside already
    return (rows.sign() * (size - threshold).clamp_min(0)).view_as(delta)


PROJECTIONS = {"l2": project_l2, "linf": project_linf, "l1": project_l1}


class ThreatModel(ABC):
    """What an attacker may do to an image. `share` says how many images one unit of parameters serves."""

    share: Share

    @abstractmethod
    def begin(self, units: int, images: Tensor) -> Tensor:
        """Parameters (units, ...) to start from, for images (B, C, H, W)."""

    @abstractmethod
    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images under parameters (B, ...), one row per image; stays in [0, 1]; differentiable."""

    @abstractmethod
    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        """Back into the ball. `images` are given where one unit serves one image, else None."""


@dataclass(frozen=True, kw_only=True)
class Additive(ThreatModel):
    """x + δ with ‖δ‖_p ≤ radius, in pixel units of images in [0, 1].

    Args:
        norm: ``"l2"``, ``"linf"`` or ``"l1"``.
        radius: ρ.
        share: one δ per ``"sample"``, per ``"batch"``, or per ``"target"`` class.
        start: the value that every entry of δ has at first (projected into the ball).
    """

    norm: Literal["l2", "linf", "l1"] = "l2"
    radius: float = 3.0
    share: Share = "sample"
    start: float = 0.0

    def begin(self, units: int, images: Tensor) -> Tensor:
        delta = torch.full((units, *images.shape[1:]), self.start, dtype=images.dtype, device=images.device)
        return self.project(delta, images if self.share == "sample" else None) if self.start else delta

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        return (images + parameters).clamp(0, 1)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        delta = PROJECTIONS[self.norm](parameters, self.radius)
        # Towards the box every entry only shrinks, so the result is still in the ball.
        return delta if images is None else (images + delta).clamp(0, 1) - images


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How the inner problem is descended.

    Args:
        steps: gradient steps.
        step: their size, times the direction of `rule`.
        rule: ``"sign"`` of the gradient, the ``"plain"`` gradient, or the gradient ``"normalized"`` per unit to
            L2 length 1. The gradient is that of the unit's mean loss.
        early_exit: stop once this share of the batch reaches its target (None: never).
    """

    steps: int = 2
    step: float = 0.1
    rule: Literal["sign", "plain", "normalized"] = "sign"
    early_exit: float | None = None

    def direction(self, gradient: Tensor) -> Tensor:
        if self.rule == "sign":
            return gradient.sign()
        if self.rule == "plain":
            return gradient
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        return gradient / norm.view(-1, *[1] * (gradient.ndim - 1))


class Perturbed(NamedTuple):
    """Perturbed images (B, C, H, W) without gradient, the parameters (U, ...), and each image's unit (B,)."""

    images: Tensor
    parameters: Tensor
    units: Tensor


def _units(share: Share, targets: Tensor) -> tuple[Tensor, int]:
    """The unit of each image, and how many there are."""
    if share == "sample":
        return torch.arange(len(targets), device=targets.device), len(targets)
    if share == "batch":
        return torch.zeros_like(targets), 1
    classes, units = targets.unique(return_inverse=True)
    return units, len(classes)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="none")


def descend(
    threat: ThreatModel,
    forward: Callable[[Tensor], Tensor | Sequence[Tensor]] | nn.Module,
    images: Tensor,
    targets: Tensor,
    how: Descent,
    *,
    away: bool = False,
) -> Perturbed:
    """Solve the inner problem for one batch by projected gradient descent.

    Args:
        threat: what a perturbation is.
        forward: images (B, C, H, W) -> logits (B, K), or a sequence of them, all of which are to be fooled (the
            losses are averaged). Parameters that want gradients get none here.
        images: clean images in [0, 1].
        targets: class indices (B,) to send the images to.
        how: steps, step size, rule, early exit.
        away: untargeted: `targets` are the classes to drive the images *from*.
    """
    units, count = _units(threat.share, targets)
    aligned = images if threat.share == "sample" else None
    weight = 1 / torch.bincount(units, minlength=count).to(images.dtype)[units]  # mean within each unit
    parameters = threat.begin(count, images)
    done = torch.zeros((), dtype=torch.bool, device=images.device)
    with torch.enable_grad():
        for step in range(how.steps):
            parameters = parameters.detach().requires_grad_()
            # index_select and not [units]: the backward of the latter adds in whatever order the threads come.
            told = forward(threat.act(parameters.index_select(0, units), images))
            views = [told] if isinstance(told, Tensor) else list(told)
            if how.early_exit is not None and step:
                reached = torch.stack([(z.argmax(1) == targets) != away for z in views]).all(0)
                done = done | (reached.double().mean() >= how.early_exit)
                if images.device.type == "cpu" and done:  # elsewhere a mask, so that nobody waits for the device
                    break
            loss = sum((_cross_entropy(z, targets) for z in views), torch.zeros_like(weight))
            (gradient,) = torch.autograd.grad((loss * weight).sum() / len(views), parameters)
            with torch.no_grad():
                sign = 1.0 if away else -1.0
                moved = threat.project(parameters + sign * how.step * how.direction(gradient), aligned)
                parameters = torch.where(done, parameters, moved)
    parameters = parameters.detach()
    with torch.no_grad():
        return Perturbed(threat.act(parameters.index_select(0, units), images), parameters, units)
