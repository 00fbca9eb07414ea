"""The inner problem: perturbations of clean images that send the model to a wrong class.

``δ = argmin CE(f_θ(x + δ), T)  subject to ‖δ‖_p ≤ ρ and x + δ in [0, 1]``   (NPD, arXiv 2306.16697, eq. 4)

A *threat model* (`threats`) says what a perturbation is: its parameters for some units, how they act on images, its
ball and projection. A unit is one image, the whole batch, or all images that share a target (`share`). The descent is
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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spread import parts_of, spread
from .threats import (
    NORMS,
    PROJECTIONS,
    SHARES,
    Additive,
    Flow,
    Share,
    Sparse,
    ThreatModel,
    project_l1,
    project_l2,
    project_linf,
)

__all__ = [
    "NORMS",
    "PROJECTIONS",
    "SHARES",
    "STEP_RULES",
    "Additive",
    "Descent",
    "Flow",
    "Perturbed",
    "Share",
    "Sparse",
    "ThreatModel",
    "descend",
    "learn_patterns",
    "project_l1",
    "project_l2",
    "project_linf",
]

STEP_RULES = ("sign", "plain", "normalized")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How the inner problem is descended.

    Args:
        steps: gradient steps.
        step: their size, times the direction of `rule`.
        rule: ``"sign"`` of the gradient, the ``"plain"`` gradient, or the gradient ``"normalized"`` per unit to
            L2 length 1. The gradient is that of the unit's mean loss.
        early_exit: stop once this share of the batch reaches its target (None: never).
        micro_batch: images in a pass at a time (None: the whole batch); their gradients are added up.
    """

    steps: int = 2
    step: float = 0.1
    rule: Literal["sign", "plain", "normalized"] = "sign"
    early_exit: float | None = None
    micro_batch: int | None = None

    def direction(self, gradient: Tensor) -> Tensor:
        if self.rule == "sign":
            return gradient.sign()
        if self.rule == "plain":
            return gradient
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        return gradient / norm.view(-1, *[1] * (gradient.ndim - 1))


class Perturbed(NamedTuple):
    """Perturbed images (B, C, H, W) without gradient, the parameters (U, ...), and each image's unit (B,).

    `seen`: the last forward pass was of these very images, since its success ended the descent.
    """

    images: Tensor
    parameters: Tensor
    units: Tensor
    seen: bool = False


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
    go_on: tuple[Tensor, Tensor] | None = None,
    at: Callable[[slice], Callable[[Tensor], Tensor | Sequence[Tensor]]] | None = None,
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
        go_on: go on from these parameters (U, ...), with these units (B,) of the images; of several processes
            (`spread`) each gives its own images, and all come to the same parameters.
        at: `forward` for a part of the batch, where it depends on which images it is given.
    """
    units, count = _units(threat.share, targets) if go_on is None else (go_on[1], len(go_on[0]))
    aligned = images if threat.share == "sample" else None
    shared = go_on is not None and spread().world > 1  # these images are a share of those that the units serve
    counts = torch.bincount(units, minlength=count)
    counts = spread().total(counts) if shared else counts
    weight = 1 / counts.to(images.dtype)[units]  # mean within each unit
    parameters = threat.begin(count, images) if go_on is None else go_on[0]
    done, seen = torch.zeros((), dtype=torch.bool, device=images.device), False
    parts = parts_of(len(images), how.micro_batch or len(images))
    at_once = images.device.type == "cpu"  # elsewhere nobody waits for the device to say whether it is done

    def look(part: slice) -> list[Tensor]:
        # index_select and not [units]: the backward of the latter adds in whatever order the threads come.
        told = (forward if at is None else at(part))(threat.act(parameters.index_select(0, units[part]), images[part]))
        return [told] if isinstance(told, Tensor) else list(told)

    def slope(views: list[Tensor], part: slice) -> Tensor:
        loss = sum((_cross_entropy(z, targets[part]) for z in views), torch.zeros_like(weight[part]))
        return torch.autograd.grad((loss * weight[part]).sum() / len(views), parameters)[0]

    with torch.enable_grad():
        for step in range(how.steps):
            parameters, gradients, told = parameters.detach().requires_grad_(), list[Tensor](), list[Tensor]()
            leave = how.early_exit if step else None
            hope, first = False, list[Tensor]()  # the descent seems to end here: gradients only if it does not
            for part in parts:
                with torch.set_grad_enabled(not hope):
                    views = look(part)
                if leave is not None:
                    now = torch.stack([z.argmax(1) for z in views])
                    told.append(((now == targets[part]) != away).all(0))
                    if at_once and part is parts[0]:
                        hope, first = bool(told[0].double().mean() >= leave), views
                if not hope:
                    gradients.append(slope(views, part))
            if leave is not None:
                done = done | (_mean_over_all(torch.cat(told)) >= leave)
                if at_once and done:
                    seen = True
                    break
            for part in parts[len(gradients) :]:
                gradients.append(slope(look(part) if part.start else first, part))
            gradient = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)
            gradient = spread().total(gradient) if shared else gradient
            with torch.no_grad():
                sign = 1.0 if away else -1.0
                moved = threat.project(parameters + sign * how.step * how.direction(gradient), aligned)
                parameters = torch.where(done, parameters, moved)
    parameters = parameters.detach()
    with torch.no_grad():
        return Perturbed(threat.act(parameters.index_select(0, units), images), parameters, units, seen)


def _mean_over_all(reached: Tensor) -> Tensor:
    """The mean of (B,) over the images of all processes."""
    both = torch.stack([reached.double().sum(), reached.new_tensor(len(reached), dtype=torch.float64)])
    total, images = spread().total(both)
    return total / images


def learn_patterns(
    threat: ThreatModel,
    forward: Callable[[Tensor, Tensor], Tensor | Sequence[Tensor]],
    images: Tensor,
    labels: Tensor,
    classes: Tensor,
    how: Descent,
    *,
    batch_size: int,
    order: torch.Generator,
    begin: Tensor | None = None,
) -> Tensor:
    """One universal perturbation per target class, descended over batches of all images.

    Every step takes the next batch in a random order, gives each of its images a random class that is not its own, and
    so moves the patterns of all classes at once.

    Args:
        forward: images (B, C, H, W), targets (B,) -> logits (B, K), or a sequence of them.
        images, labels: (N, C, H, W) in [0, 1], (N,).
        classes: (U,) distinct classes to have a pattern each.
        how: `steps` batches; `early_exit` does not apply.
        order: the CPU generator to draw from.
        begin: parameters (U, ...) to begin with.

    Returns:
        Parameters (U, ...) in the order of `classes`.
    """
    parameters = threat.begin(len(classes), images) if begin is None else begin
    batches: list[Tensor] = []
    for _ in range(how.steps):
        if not batches:
            batches = list(torch.randperm(len(images), generator=order).to(images.device).split(batch_size))
        rows = batches.pop(0)
        units = torch.randint(len(classes), (len(rows),), generator=order).to(images.device)
        units = torch.where(classes[units] == labels[rows], (units + 1) % len(classes), units)
        own = spread().part(len(rows)).rows
        rows, units = rows[own], units[own]
        targets = classes[units]

        def at(part: slice, targets: Tensor = targets) -> Callable[[Tensor], Tensor | Sequence[Tensor]]:
            return lambda x: forward(x, targets[part])

        one = replace(how, steps=1, early_exit=None)
        go_on = parameters, units
        parameters = descend(threat, at(slice(None)), images[rows], targets, one, go_on=go_on, at=at).parameters
    return parameters
