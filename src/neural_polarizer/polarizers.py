"""The neural polarizers: linear maps over channels, the same at every position. They know nothing of models.

Source: NPD (arXiv 2306.16697), section 3.2. ``g(m) = BN(W m)``, `W` (C, C) without bias, starting as exactly the
identity. `m` is (B, C, H, W) with ``channel_dim=1``, or (B, H, W, C), (B, N, C), (B, C) with ``channel_dim=-1``.
A polarizer returns what it was given: same shape, same type.

Example:
    >>> polarizer = Full(channels=4)
    >>> m = torch.rand(2, 4, 8, 8)
    >>> bool((polarizer(m) == m).all())
    True
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError

VARIANCE_FLOOR = 0.01  # of the median channel's: a dead channel would get enormous gradients (ours)


def along(vector: Tensor, m: Tensor, channel_dim: int) -> Tensor:
    """View `vector` (..., C) so that it broadcasts along the channels of `m`; a leading (B, C) stays per sample."""
    positions = (1,) * (m.ndim - 2)
    lead, channels = vector.shape[:-1], vector.shape[-1:]
    if channel_dim == -1:
        return vector.view(*lead, *positions, *channels) if lead else vector
    return vector.view(*lead, *channels, *positions)


def mix(m: Tensor, weight: Tensor, bias: Tensor | None, channel_dim: int) -> Tensor:
    """W m + b over the channels of `m`, at every position: a 1x1 convolution. `weight` is (C_out, C_in)."""
    if channel_dim == -1 or m.ndim == 2:
        return F.linear(m, weight, bias)
    return F.conv2d(m, weight[:, :, None, None], bias)


def draw(rows: int, columns: int, seed: int) -> Tensor:
    """Normal numbers from their own generator; on the meta device, only the shape."""
    where = torch.get_default_device()
    if where.type == "meta":
        return torch.empty(rows, columns)
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), device="cpu").to(where)


def _floored(var: Tensor) -> Tensor:
    return torch.maximum(var, VARIANCE_FLOOR * var.detach().median())


class ChannelNorm(nn.Module):
    """BatchNorm over the channels of any layout, foldable, with its statistics said by name and not by mode.

    `statistics` is ``"running"`` (the map is affine, and `.train()` does not change that) or ``"batch"``, which
    also moves the running statistics; only `fit` switches it. γ and β are `weight` and `bias`.

    Attributes:
        shifts: whether there is a constant part. Without it μ and β are 0 and stay it, so that BN(0) is exactly 0,
            and the variance alone normalises; see `Polarizer.hold_linear`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, copies: int | None = None, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.statistics, self.shifts = "running", True
        shape = (channels,) if copies is None else (copies, channels)  # copies of the affine part, not of statistics
        self.weight = nn.Parameter((torch.ones(shape) + eps).sqrt())
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def start_at(self, mean: Tensor, var: Tensor) -> None:
        """Take statistics (C,) and become exactly the identity: γ = sqrt(σ² + ε), β = μ."""
        self.running_mean.copy_(mean if self.shifts else torch.zeros_like(mean))
        self.running_var.copy_(_floored(var))
        self.weight.copy_((self.running_var + self.eps).sqrt())
        self.bias.copy_(self.running_mean)

    def rows(self, copies: Tensor) -> ChannelNorm:
        """Some copies of the affine part as parameters of their own, over the same statistics."""
        part = ChannelNorm(self.weight.shape[-1], copies=len(copies), eps=self.eps, momentum=self.momentum)
        part.weight.data, part.bias.data = self.weight.detach()[copies], self.bias.detach()[copies]
        part.running_mean, part.running_var = self.running_mean, self.running_var
        return part

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,), or (K, C) for copies, with running statistics."""
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return scale, self.bias - scale * self.running_mean if self.shifts else torch.zeros_like(self.bias)

    def batch_affine(self, z: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
        """Scale and shift as `affine`, but from the batch `z`, whose statistics the running ones are moved towards."""
        dims = [d for d in range(z.ndim) if d != channel_dim % z.ndim]
        count = z.numel() // z.shape[channel_dim]
        if count < 2:  # one vector has no variance: a last batch of one image keeps the running statistics
            return self.affine()
        mean, var = z.mean(dims), _floored(z.var(dims, unbiased=False))
        with torch.no_grad():
            if self.shifts:
                self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight / (var + self.eps).sqrt()
        return scale, self.bias - scale * mean if self.shifts else torch.zeros_like(self.bias)


class Polarizer(nn.Module):
    """What all polarizers share. A subclass fills `forward` and, where it has statistics, `start`."""

    structure: ClassVar[str]
    affine: ClassVar[bool] = True  # with running statistics, a channel-wise affine map that `folded` returns

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__()
        if channels < 1 or channel_dim not in (1, -1):
            raise InputError(f"channels={channels}, channel_dim={channel_dim}: wanted channels >= 1 and dim 1 or -1")
        self.channels, self.channel_dim = channels, channel_dim

    def options(self) -> dict[str, Any]:
        """What `build_polarizer` needs beside structure, channels and channel_dim to make this one again."""
        return {}

    def start(self, mean: Tensor, var: Tensor) -> None:
        """Take the statistics (C,) of the clean activations and become exactly the identity."""

    def forward(self, m: Tensor) -> Tensor:
        raise NotImplementedError

    def folded(self) -> tuple[Tensor, Tensor]:
        """`W` (C, C) and `b` (C,) with g(m) = W m + b, where `affine`."""
        zero = torch.zeros(1, self.channels, *[1] * (0 if self.channel_dim == -1 else 2)).to(next(self.parameters()))
        eye = torch.eye(self.channels).to(zero).reshape(-1, *zero.shape[1:])
        shift = self(zero)
        return (self(eye) - shift).flatten(1).T, shift.flatten()

    def hold_linear(self) -> None:
        """From the start on, no constant part, in no step of a fit: g(0) is exactly 0 (`FitConfig.mergeable`)."""
        for norm in self._norms():
            norm.shifts = False

    def _norms(self) -> list[ChannelNorm]:
        return [m for m in self.modules() if isinstance(m, ChannelNorm)]

    @contextmanager
    def batch_statistics(self, enabled: bool = True) -> Iterator[None]:
        """Within: the BatchNorm normalises with the batch's own statistics (warm-up; `statistics="batch"`)."""
        for norm in self._norms():
            norm.statistics = "batch" if enabled else "running"
        try:
            yield
        finally:
            for norm in self._norms():
                norm.statistics = "running"


def normed(m: Tensor, weight: Tensor, norm: ChannelNorm, channel_dim: int) -> Tensor:
    """BN(W m), as one affine map where the statistics are the running ones."""
    if norm.statistics == "running":
        scale, shift = norm.affine()
        return mix(m, scale[:, None] * weight, shift, channel_dim)
    z = mix(m, weight, None, channel_dim)
    scale, shift = norm.batch_affine(z, channel_dim)
    return z * along(scale, z, channel_dim) + along(shift, z, channel_dim)


class Full(Polarizer):
    """g(m) = BN(W m), the paper's layer. C² + 2C parameters."""

    structure = "full"

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim)
        self.weight = nn.Parameter(torch.eye(channels))
        self.norm = ChannelNorm(channels)

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.norm.start_at(mean, var)

    def forward(self, m: Tensor) -> Tensor:
        return normed(m, self.weight, self.norm, self.channel_dim)


class Diagonal(Polarizer):
    """One scale and one shift per channel. 2C parameters."""

    structure = "diagonal"

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim)
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self._shifts = True

    def hold_linear(self) -> None:
        self._shifts = False

    def forward(self, m: Tensor) -> Tensor:
        scaled = m * along(self.scale, m, self.channel_dim)
        return scaled + along(self.shift, m, self.channel_dim) if self._shifts else scaled


class PerPosition(Polarizer):
    """One scale and one shift per channel and position; `shape` is m's without the batch. 2·C·H·W parameters."""

    structure = "position"
    affine = False  # linear, but not the same at every position

    def __init__(self, channels: int, channel_dim: int = 1, *, shape: Sequence[int]) -> None:
        super().__init__(channels, channel_dim)
        self.shape = tuple(shape)
        self.scale = nn.Parameter(torch.ones(self.shape))
        self.shift = nn.Parameter(torch.zeros(self.shape))

    def options(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    def forward(self, m: Tensor) -> Tensor:
        return m * self.scale + self.shift


class LowRank(Polarizer):
    """g(m) = BN(m + U Vᵀ m); U starts at 0 and V does not, so that both can learn. 2Cr + 2C parameters."""

    structure = "low-rank"

    def __init__(self, channels: int, channel_dim: int = 1, *, rank: int = 8, seed: int = 0) -> None:
        super().__init__(channels, channel_dim)
        if not 1 <= rank <= channels:
            raise InputError(f"rank: found {rank}, wanted 1 to the {channels} channels of the layer")
        self.rank = rank
        start = draw(channels, rank, seed)
        self.u = nn.Parameter(torch.zeros(channels, rank))
        self.v = nn.Parameter(start / math.sqrt(channels))
        self.norm = ChannelNorm(channels)

    def options(self) -> dict[str, Any]:
        return {"rank": self.rank}

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.norm.start_at(mean, var)

    def forward(self, m: Tensor) -> Tensor:
        identity = torch.eye(self.channels, dtype=m.dtype, device=m.device)
        return normed(m, identity + self.u @ self.v.T, self.norm, self.channel_dim)


class Conv(Polarizer):
    """g(m) = W m: the 1x1 convolution without BatchNorm. C² parameters."""

    structure = "conv"

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim)
        self.weight = nn.Parameter(torch.eye(channels))

    def forward(self, m: Tensor) -> Tensor:
        return mix(m, self.weight, None, self.channel_dim)


class Stacked(Polarizer):
    """Two full layers, one behind the other. 2(C² + 2C) parameters."""

    structure = "stacked"

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim)
        self.first, self.second = Full(channels, channel_dim), Full(channels, channel_dim)

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.first.start(mean, var)
        self.second.start(mean, var)

    def forward(self, m: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(m))
        return out


class Residual(Polarizer):
    """g(m) = m + BN(W m), W starting at 0. C² + 2C parameters."""

    structure = "residual"

    def __init__(self, channels: int, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim)
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.norm = ChannelNorm(channels)  # stays at mean 0, variance 1: what it sees at the start is all 0

    def forward(self, m: Tensor) -> Tensor:
        return m + normed(m, self.weight, self.norm, self.channel_dim)


class TwoLayerReLU(Polarizer):
    """g(m) = m + B relu(A m + a) + b, B starting at 0: not linear, for the ablation. 2Ch + h + C parameters."""

    structure = "relu"
    affine = False

    def __init__(self, channels: int, channel_dim: int = 1, *, hidden: int | None = None, seed: int = 0) -> None:
        super().__init__(channels, channel_dim)
        self.hidden = hidden or max(4, channels // 4)
        start = draw(self.hidden, channels, seed)
        self.enter = nn.Parameter(start / math.sqrt(channels))
        self.enter_bias = nn.Parameter(torch.zeros(self.hidden))
        self.leave = nn.Parameter(torch.zeros(channels, self.hidden))
        self.leave_bias = nn.Parameter(torch.zeros(channels))

    def options(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def forward(self, m: Tensor) -> Tensor:
        hidden = mix(m, self.enter, self.enter_bias, self.channel_dim).relu()
        return m + mix(hidden, self.leave, self.leave_bias, self.channel_dim)


STRUCTURES: dict[str, type[Polarizer]] = {
    kind.structure: kind for kind in (Full, Diagonal, PerPosition, LowRank, Conv, Stacked, Residual, TwoLayerReLU)
}
