"""Threat models: what an attacker may do to an image, as parameters that a gradient can descend.

A threat model says where its parameters begin, how they act on images, and how they are projected back into their ball.
A unit of parameters serves one image, the whole batch, or all images that share a target (`share`).

Sources: additive balls, NPD (arXiv 2306.16697), eq. 4; flow fields, Xiao et al., "Spatially transformed adversarial
examples" (arXiv 1801.02612); hard thresholding onto few pixels or one window, Blumensath and Davies (arXiv 0805.0510).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Share = Literal["sample", "batch", "target"]
SHARES = ("sample", "batch", "target")
NORMS = ("l2", "linf", "l1")


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


def project_pixels(delta: Tensor, count: int) -> Tensor:
    """The nearest point with at most `count` pixels that are not 0, for every row of (U, C, H, W)."""
    energy = delta.square().sum(1).flatten(1)  # (U, H * W)
    chosen = energy.topk(min(count, energy.shape[1]), dim=1).indices
    mask = torch.zeros_like(energy).scatter_(1, chosen, 1.0)
    return delta * mask.view(-1, 1, *delta.shape[2:])


def project_window(delta: Tensor, side: int) -> Tensor:
    """The nearest point that is 0 outside one square window of `side` pixels, for every row of (U, C, H, W)."""
    height, width = delta.shape[2:]
    size = (min(side, height), min(side, width))
    energy = F.avg_pool2d(delta.square().sum(1, keepdim=True), size, stride=1)  # one entry per place of the window
    best = energy.flatten(1).argmax(1)
    top, left = best // energy.shape[3], best % energy.shape[3]
    rows = torch.arange(height, device=delta.device) - top[:, None]
    columns = torch.arange(width, device=delta.device) - left[:, None]
    inside = ((rows >= 0) & (rows < size[0]))[:, :, None] & ((columns >= 0) & (columns < size[1]))[:, None]
    return delta * inside[:, None]


class ThreatModel(ABC):
    """What an attacker may do to an image. `share` says how many images one unit of parameters serves."""

    share: Share

    @abstractmethod
    def begin(self, units: int, images: Tensor) -> Tensor:
        """Parameters (units, ...) to start from, for images (B, C, H, W)."""

    def candidates(self, images: Tensor) -> Tensor | None:
        """Parameters (S, ...) to try as they are, where a gradient finds only what is near; None: nothing to try."""
        return None

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
        return _into_box(PROJECTIONS[self.norm](parameters, self.radius), images)


def _into_box(delta: Tensor, images: Tensor | None) -> Tensor:
    """Where the images are known, δ such that x + δ is in [0, 1]: every entry only shrinks, so a ball is kept."""
    return delta if images is None else (images + delta).clamp(0, 1) - images


@dataclass(frozen=True, kw_only=True)
class Sparse(ThreatModel):
    """x + δ, clamped to [0, 1], where δ is 0 but for a few pixels; those may take any value.

    Args:
        size: how many pixels may change, or, where `window`, the side of the square that may.
        window: the pixels are those of one square, which is wherever δ is largest: a patch.
        share: one δ per ``"sample"``, per ``"batch"``, or per ``"target"`` class.

    Shapes:
        parameters (U, C, H, W), in [-1, 1].
    """

    size: int = 16
    window: bool = False
    share: Share = "sample"

    def begin(self, units: int, images: Tensor) -> Tensor:
        return images.new_zeros(units, *images.shape[1:])

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        return (images + parameters).clamp(0, 1)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        project = project_window if self.window else project_pixels
        return _into_box(project(parameters, self.size).clamp(-1, 1), images)


@dataclass(frozen=True, kw_only=True)
class Smooth(ThreatModel):
    """x + δ, clamped to [0, 1], with ‖δ‖₂ ≤ radius and no high frequencies: waves, gradients, colour casts.

    Less of such a δ is seen than of noise of the same length, so attackers can afford more of it.

    Args:
        radius: ρ, in pixel units of images in [0, 1].
        grid: cosines (DCT-II) per side that δ consists of: up to grid / 2 waves across the image.
        share: one δ per ``"sample"``, per ``"batch"``, or per ``"target"`` class.

    Shapes:
        parameters (U, C, grid, grid), or smaller where the image is: the coefficients of δ. What descends are they,
        not pixels: most of a gradient in pixels is of high frequency, and a step that loses it hardly moves.
    """

    radius: float = 5.0
    grid: int = 16
    share: Share = "sample"

    def begin(self, units: int, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        return images.new_zeros(units, channels, min(self.grid, height), min(self.grid, width))

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        sides = zip(parameters.shape[2:], images.shape[2:], strict=True)
        down, across = (cosines(grid, size).to(parameters) for grid, size in sides)
        return (images + down.T @ parameters @ across).clamp(0, 1)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        return project_l2(parameters, self.radius)


def cosines(grid: int, size: int) -> Tensor:
    """The first `grid` of the `size` orthonormal cosines (DCT-II), as rows (grid, size)."""
    rows, places = torch.arange(grid, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi / size * rows[:, None] * (places + 0.5))
    return waves / waves.norm(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Wave(ThreatModel):
    """x + δ, clamped to [0, 1], with ‖δ‖₂ ≤ radius: waves of one frequency (u, v), of any phase and colour.

    Args:
        radius: ρ, in pixel units of images in [0, 1].
        grid: twice the most waves across the image.
        share: one δ per ``"sample"``, per ``"batch"``, or per ``"target"`` class.

    Shapes:
        parameters (U, C, grid + 1, grid + 1), or smaller where the image is: coefficients of δ in `waves`, 0 but for
        those of one frequency.
    """

    radius: float = 6.0
    grid: int = 16
    share: Share = "sample"

    def begin(self, units: int, images: Tensor) -> Tensor:
        channels, *sides = images.shape[1:]
        across = [len(waves(self.grid, side)) for side in sides]
        return images.new_zeros(units, channels, across[0], across[1])

    def candidates(self, images: Tensor) -> Tensor:
        """Grey waves of every frequency and direction, as cosine and as sine: of one, no gradient leads to another."""
        found = []
        for a, b in product(*(self._cosine_and_sine(images, side) for side in images.shape[2:])):
            (cos_a, sin_a), (cos_b, sin_b) = a, b
            signs = (1, -1) if sin_a.any() and sin_b.any() else (1,)
            found += [torch.outer(cos_a, cos_b) - sign * torch.outer(sin_a, sin_b) for sign in signs]  # cos(a ± b)
            found += [torch.outer(sin_a, cos_b) + sign * torch.outer(cos_a, sin_b) for sign in signs]  # sin(a ± b)
        grey = torch.stack(found[2:])[:, None].expand(-1, images.shape[1], -1, -1)  # the first two do not wave
        return project_l2(grey * self.radius, self.radius)

    def _cosine_and_sine(self, images: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
        """Of every frequency along a side, which rows of `waves` are they; the constant is the cosine of none."""
        rows = torch.eye(len(waves(self.grid, side)), dtype=images.dtype, device=images.device)
        return [(rows[0], 0 * rows[0]), *zip(rows[1::2], rows[2::2], strict=True)]

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        down, across = (waves(self.grid, size).to(parameters) for size in images.shape[2:])
        return (images + down.T @ parameters @ across).clamp(0, 1)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        energy = parameters.square().sum(1)
        down, across = (_same_wave(size).to(energy) for size in energy.shape[1:])
        together = down @ energy @ across.T  # of every frequency
        best = together.flatten(1).argmax(1)
        inside = down[best // together.shape[2], :, None] * across[best % together.shape[2], None]
        return project_l2(parameters * inside[:, None], self.radius)


def _same_wave(size: int) -> Tensor:
    """(frequencies, size): which of `size` rows of `waves` are of a frequency."""
    return (torch.arange(size // 2 + 1)[:, None] == (torch.arange(size) + 1) // 2).double()


def waves(grid: int, size: int) -> Tensor:
    """Constant, cosine and sine of once, twice, ... across, orthonormal rows (2 f + 1, size)."""
    places, rows = torch.arange(size, dtype=torch.float64), [torch.ones(size, dtype=torch.float64)]
    for times in range(1, min(grid // 2, (size - 1) // 2) + 1):
        angle = 2 * torch.pi * times * places / size
        rows += [angle.cos(), angle.sin()]
    every = torch.stack(rows)
    return every / every.norm(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Quantised(ThreatModel):
    """The image in few tones: x + an offset per channel, rounded to `levels` values from 0 to 1.

    Args:
        levels: values that a channel may have.
        share: one set of offsets per ``"sample"``, per ``"batch"``, or per ``"target"`` class.

    Shapes:
        parameters (U, C, 1, 1), each at most half a tone. Rounding passes gradients on as they are.
    """

    levels: int = 4
    share: Share = "sample"

    def begin(self, units: int, images: Tensor) -> Tensor:
        return images.new_zeros(units, images.shape[1], 1, 1)

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        tones = (images + parameters).clamp(0, 1) * (self.levels - 1)
        return (tones + (tones.round() - tones).detach()) / (self.levels - 1)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        return parameters.clamp(-0.5 / (self.levels - 1), 0.5 / (self.levels - 1))


@dataclass(frozen=True, kw_only=True)
class Flow(ThreatModel):
    """The image read at displaced positions: bilinear, its border repeated.

    Args:
        reach: the largest displacement along each axis, in pixels.
        grid: displacements per side of the coarse grid, enlarged bicubically to the image (corners on corners).
        share: one field per ``"sample"``, per ``"batch"``, or per ``"target"`` class.

    Shapes:
        parameters (U, 2, grid, grid), float32 or wider: downwards, then to the right, in pixels.

    Example:
        >>> image, field = torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)
        >>> field[:, 1] = 1.0                                         # read one pixel further right
        >>> moved = Flow(reach=1.5).act(field, image)
        >>> bool(torch.allclose(moved[..., :-1], image[..., 1:], atol=1e-5))
        True
    """

    reach: float = 1.5
    grid: int = 4
    share: Share = "sample"

    def begin(self, units: int, images: Tensor) -> Tensor:
        dtype = torch.promote_types(images.dtype, torch.float32)  # half precision has no room for positions
        return torch.zeros(units, 2, self.grid, self.grid, dtype=dtype, device=images.device)

    def act(self, parameters: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # Bicubic enlargement overshoots its grid: the bound is on what every pixel does.
        field = self._enlarge(parameters, height, width).clamp(-self.reach, self.reach)
        rows = torch.arange(height, device=images.device, dtype=field.dtype)[:, None]
        columns = torch.arange(width, device=images.device, dtype=field.dtype)
        y = (2 * (rows + field[:, 0]) + 1) / height - 1
        x = (2 * (columns + field[:, 1]) + 1) / width - 1
        source = images.to(field.dtype)
        moved = F.grid_sample(source, torch.stack([x, y], -1), padding_mode="border", align_corners=False)
        return moved.clamp(0, 1).to(images.dtype)

    def project(self, parameters: Tensor, images: Tensor | None) -> Tensor:
        return parameters.clamp(-self.reach, self.reach)

    def _enlarge(self, parameters: Tensor, height: int, width: int) -> Tensor:
        """(U, 2, grid, grid) -> (U, 2, height, width), as two matrix products: their gradient has a fixed order."""
        down, across = (bicubic(self.grid, size).to(parameters) for size in (height, width))
        return down @ parameters @ across.T


def bicubic(grid: int, size: int) -> Tensor:
    """The matrix (size, grid) that enlarges `grid` values to `size` bicubically, corners on corners."""
    eye = torch.eye(grid, dtype=torch.float64)[None, :, :, None]
    return F.interpolate(eye, (size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T
