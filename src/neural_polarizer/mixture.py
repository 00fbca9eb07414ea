"""Mixtures: several families of perturbations, each a threat model with its descent, as plain values.

A polarizer only learns to stop what the inner problem can make: L2 balls leave a warp, flow fields leave a patch. Sizes
are given for images of 32x32 and keep their share of other sizes, but for patches and pixels: those of a trigger are
as many on a smaller image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from .checks import check_choice, check_number
from .errors import InputError
from .perturb import NORMS, SHARES, STEP_RULES, Descent
from .threats import Additive, Flow, Quantised, Share, Smooth, Sparse, ThreatModel, Wave

SPARSE = ("patch", "pixels")
FAINT = {"patch": 3, "pixels": 0, "wave": 0}  # larger ones reach a class of a clean network, too: docs/results.md
TELLING = {"patch": 0.5, "pixels": 0.5, "wave": 0.45}  # how much a lead of those says
GRIDDED = ("flow", "smooth", "wave")
THREATS = (*NORMS, "smooth", "wave", "flow", *SPARSE, "quantised")
MAX_FAMILIES = 16  # mixtures are read from strangers' files
SIDE = 32  # of the images for which sizes are given


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of perturbation, and how it is found.

    Args:
        threat: a ball "l2", "linf" or "l1"; a "smooth" pattern; a "wave" of one frequency; a "flow" field; a "patch"
            (one square anywhere); a few "pixels"; or the image "quantised".
        radius: of a ball, a smooth pattern or a wave (L2), on 3x32x32; of a flow field the largest displacement in
            pixels; of a patch its side; of pixels their number; of what is quantised, the tones that are left. On other
            sizes it stays the same share of the image, except that patches and pixels do not become fewer on smaller
            ones, and tones are as many on all.
        share: one per "sample", per "batch", or universal, per "target" class.
        steps: gradient steps; for share "target" each is on another batch, and none leaves a wave as `scan` found it.
        focus: for share "target": the classes that it reaches most, so many of them, get a pattern each that as many
            steps on batches of its own have found. Where a backdoor is, such a pattern comes close to its trigger.
        step: their length in radii; of a patch and of pixels, in lengths of one that turns from black to white; of what
            is quantised, in half tones.
        rule: see `Descent`.
        grid: displacements per side of a flow field, cosines per side of a smooth pattern, or twice the most waves
            across the image.

    Raises:
        InputError: a value of the wrong kind or outside its range.

    Example:
        >>> Family(threat="flow", radius=1.5, share="target", rule="sign").threat_model((3, 64, 64))
        Flow(reach=3.0, grid=4, share='target')
    """

    threat: Literal["l2", "linf", "l1", "smooth", "wave", "flow", "patch", "pixels", "quantised"] = "l2"
    radius: float = 1.0
    share: Share = "sample"
    steps: int = 3
    focus: int = 0
    step: float = 0.5
    rule: Literal["sign", "plain", "normalized"] = "normalized"
    grid: int = 4

    def __post_init__(self) -> None:
        for name, choices in (("threat", THREATS), ("share", SHARES), ("rule", STEP_RULES)):
            check_choice(name, getattr(self, name), choices)
        for name in ("radius", "step"):
            check_number(name, getattr(self, name), above=0, most=1e6)
        if self.threat == "quantised":
            check_number("radius", self.radius, least=2)
        scanned = self.threat == "wave" and self.share == "target"
        check_number("steps", self.steps, least=0 if scanned else 1, most=10_000, whole=True)
        check_number("focus", self.focus, least=0, most=1000, whole=True)
        if self.focus and self.share != "target":
            raise InputError(f"focus: found {self.focus} for share {self.share!r}, wanted it for 'target' alone")
        check_number("grid", self.grid, least=2, most=64, whole=True)
        if self.threat not in GRIDDED and self.grid != type(self).grid:
            raise InputError(f"grid: found {self.grid} for {self.threat!r}, wanted it for {', '.join(GRIDDED)} alone")

    @property
    def telling(self) -> float:
        """How much it tells, from 0 to 1, that it alone reaches a class, as `suspicion` has it.

        All, where it is faint; a large sparse one comes close to features that a class has in a clean network, too,
        and a wave to its texture.
        """
        return 1.0 if self.radius <= FAINT.get(self.threat, math.inf) else TELLING[self.threat]

    def size_for(self, shape: Sequence[int]) -> float:
        """The radius for images of `shape` (C, H, W)."""
        channels, area = shape[0], math.prod(shape[1:]) / SIDE**2
        values = area * channels / 3
        return self.radius * {
            "l2": math.sqrt(values), "linf": 1.0, "l1": values, "smooth": math.sqrt(values), "wave": math.sqrt(values),
            "flow": math.sqrt(area), "patch": max(1.0, math.sqrt(area)), "pixels": max(1.0, area), "quantised": 1.0,
        }[self.threat]  # fmt: skip

    def threat_model(self, shape: Sequence[int]) -> ThreatModel:
        """The threat model for images of `shape` (C, H, W)."""
        size = self.size_for(shape)
        if self.threat == "flow":
            return Flow(reach=size, grid=self.grid, share=self.share)
        if self.threat == "smooth":
            return Smooth(radius=size, grid=self.grid, share=self.share)
        if self.threat == "wave":
            return Wave(radius=size, grid=self.grid, share=self.share)
        if self.threat == "patch" or self.threat == "pixels":
            return Sparse(size=max(1, round(size)), window=self.threat == "patch", share=self.share)
        if self.threat == "quantised":
            return Quantised(levels=round(size), share=self.share)
        return Additive(norm=self.threat, radius=size, share=self.share)

    def descent(self, shape: Sequence[int]) -> Descent:
        """The descent for images of `shape` (C, H, W)."""
        size = self.size_for(shape)
        length = {
            "patch": math.sqrt(shape[0]) * size, "pixels": math.sqrt(shape[0] * size),
            "quantised": math.sqrt(shape[0]) * 0.5 / max(1.0, size - 1),
        }.get(self.threat, size)  # fmt: skip
        return Descent(steps=self.steps, step=self.step * length, rule=self.rule)


def read_mixture(values: object) -> tuple[Family, ...]:
    """Families from a list of them or of their plain values.

    Raises:
        InputError: no list, too long a one, or something else in it.
    """
    if not isinstance(values, (list, tuple)) or len(values) > MAX_FAMILIES:
        raise InputError(f"mixture: found {values!r:.80}, wanted a list of at most {MAX_FAMILIES} families")
    return tuple(_family(value) for value in values)


def _family(value: Any) -> Family:
    if isinstance(value, Family):
        return value
    known = {field.name for field in fields(Family)}
    if not isinstance(value, Mapping) or not known.issuperset(value):
        raise InputError(f"mixture: found {value!r:.80}, wanted an object with some of {sorted(known)}")
    try:
        return Family(**value)
    except InputError as error:
        raise InputError(f"mixture: {error}") from None
