"""Class-conditional polarizers: g(m, c), c being the class that the original model predicts.

Source: CNPD (arXiv 2502.18520), section 3. On a poisoned image `c` is the attacker's target, so g only has to know
how images that were pushed into class c look. All start as the identity. `condition` is (B,), integers in 0..K-1;
BatchNorm statistics are shared by the classes, its affine part is where the structure says.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import InputError
from .polarizers import ChannelNorm, Polarizer, along, draw, mix, normed

CHUNK_BYTES = 64 << 20  # of gathered weights at a time, where the classes of a batch are many


class ConditionalPolarizer(Polarizer):
    """What the three share: the number of classes, and a forward that takes the condition."""

    affine: ClassVar[bool] = False  # affine for each class, but not one affine map
    classes: int

    def __init__(self, channels: int, channel_dim: int, classes: int) -> None:
        super().__init__(channels, channel_dim)
        if classes < 2:
            raise InputError(f"classes: found {classes}, wanted at least 2")
        self.classes = classes

    def forward(self, m: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None or condition.shape != m.shape[:1]:
            found = None if condition is None else tuple(condition.shape)
            raise InputError(f"condition: found {found}, wanted one class for each of the {len(m)} images")
        return self.given(m, condition)

    def given(self, m: Tensor, condition: Tensor) -> Tensor:
        raise NotImplementedError


class Replicated(ConditionalPolarizer):
    """r-CNPD: one `W_c` and one affine part per class. K(C² + 2C) parameters.

    The batch is sorted by class and multiplied group by group, or, where the classes are many, in chunks of gathered
    matrices; never a B x C x C tensor, save in an exported graph. In training, `rows` hands out the copies that a step
    touches.
    """

    structure = "replicated"

    def __init__(self, channels: int, channel_dim: int = 1, *, classes: int) -> None:
        super().__init__(channels, channel_dim, classes)
        self.weight = nn.Parameter(torch.eye(channels).repeat(classes, 1, 1))
        self.norm = ChannelNorm(channels, copies=classes)

    def options(self) -> dict[str, Any]:
        return {"classes": self.classes}

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.norm.start_at(mean, var)

    def given(self, m: Tensor, condition: Tensor) -> Tensor:
        if self.norm.statistics == "running":
            scale, shift = self.norm.affine()  # (K, C)
            if torch.compiler.is_compiling():  # one graph for any condition, at the price of B x C x C numbers
                return mix_gathered(m, self.weight, scale, shift, condition, self.channel_dim)
            return mix_by_class(m, self.weight, scale, shift, condition, self.channel_dim)
        z = mix_by_class(m, self.weight, None, None, condition, self.channel_dim)
        scale, shift = self.norm.batch_affine(z, self.channel_dim)
        return z * along(scale.index_select(0, condition), z, self.channel_dim) + along(
            shift.index_select(0, condition), z, self.channel_dim
        )

    def rows(self, classes: Tensor) -> Replicated:
        """The copies of some classes (R,) as a polarizer of their own, statistics shared with this one."""
        part = Replicated.__new__(Replicated)
        nn.Module.__init__(part)
        part.channels, part.channel_dim, part.classes = self.channels, self.channel_dim, len(classes)
        part.weight = nn.Parameter(self.weight.detach()[classes])
        part.norm = self.norm.rows(classes)
        return part


def mix_by_class(
    m: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, condition: Tensor, channel_dim: int
) -> Tensor:
    """scale_c * (W_c m) + shift_c with the matrices (K, C, C), scales and shifts (K, C) of each image's class."""
    channels, count = weight.shape[-1], len(m)
    order = condition.argsort(stable=True)
    present, sizes = condition[order].unique_consecutive(return_counts=True)
    ordered = m.index_select(0, order)  # here and below not [order], whose backward is not the same bits each time
    out: list[Tensor] = []
    if 4 * len(present) <= max(count, 8):
        for c, group in zip(present.tolist(), ordered.split(sizes.tolist()), strict=True):
            matrix = weight[c] if scale is None else scale[c][:, None] * weight[c]
            out.append(mix(group, matrix, None if shift is None else shift[c], channel_dim))
    else:
        chunk = max(1, CHUNK_BYTES // (channels * channels * weight.element_size()))
        for group, classes in zip(ordered.split(chunk), condition[order].split(chunk), strict=True):
            out.append(mix_gathered(group, weight, scale, shift, classes, channel_dim))
    return torch.cat(out).index_select(0, order.argsort())


def mix_gathered(
    m: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, condition: Tensor, channel_dim: int
) -> Tensor:
    """The same as `mix_by_class` with a matrix (C, C) gathered for every image: nothing in it hangs on the values."""
    rows = m.movedim(channel_dim, -1)
    # (B, positions, C) whatever the layout, one matrix product per image
    product = rows.reshape(m.shape[0], -1, weight.shape[-1]) @ weight.index_select(0, condition).mT
    if scale is not None and shift is not None:
        product = product * scale.index_select(0, condition)[:, None] + shift.index_select(0, condition)[:, None]
    return product.reshape(rows.shape).movedim(-1, channel_dim)


class Embedded(ConditionalPolarizer):
    """e-CNPD: a learned embedding of c as `dim` constant channels beside m. C² + dC + Kd + 2C parameters.

    The 1x1 convolution maps C + d channels to C; the added columns start at 0. Since the added channels are constant,
    they amount to a bias per class, and are computed as one.
    """

    structure = "embedded"

    def __init__(self, channels: int, channel_dim: int = 1, *, classes: int, dim: int = 16, seed: int = 0) -> None:
        super().__init__(channels, channel_dim, classes)
        self.dim = dim
        self.weight = nn.Parameter(torch.eye(channels, channels + dim))
        self.embedding = nn.Parameter(draw(classes, dim, seed))
        self.norm = ChannelNorm(channels)

    def options(self) -> dict[str, Any]:
        return {"classes": self.classes, "dim": self.dim}

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.norm.start_at(mean, var)

    def given(self, m: Tensor, condition: Tensor) -> Tensor:
        own, added = self.weight.split((self.channels, self.dim), dim=1)
        bias = self.embedding.index_select(0, condition) @ added.T  # (B, C)
        if self.norm.statistics == "running":
            scale, shift = self.norm.affine()
            out = mix(m, scale[:, None] * own, shift, self.channel_dim)
            return out + along(scale * bias, m, self.channel_dim)
        z = mix(m, own, None, self.channel_dim) + along(bias, m, self.channel_dim)
        scale, shift = self.norm.batch_affine(z, self.channel_dim)
        return z * along(scale, z, self.channel_dim) + along(shift, z, self.channel_dim)


class Attentive(ConditionalPolarizer):
    """a-CNPD: the class attends to the channels. C² + 2dC + d² + Kd + 2C parameters.

    ``q = Q e_c``, ``key_i = a_i pool(m)_i + b_i``, ``s = C softmax_i(q · key_i / √d)``, ``g = BN(W (s * m))``; Q starts
    at 0, so s = 1. It depends on m through the attention: not affine, cannot be merged. (This reading is ours.)
    """

    structure = "attentive"

    def __init__(self, channels: int, channel_dim: int = 1, *, classes: int, dim: int = 16, seed: int = 0) -> None:
        super().__init__(channels, channel_dim, classes)
        self.dim = dim
        self.weight = nn.Parameter(torch.eye(channels))
        self.embedding = nn.Parameter(draw(classes, dim, seed))
        self.query = nn.Parameter(torch.zeros(dim, dim))
        self.key_scale = nn.Parameter(draw(channels, dim, seed + 1))
        self.key_shift = nn.Parameter(draw(channels, dim, seed + 2))
        self.norm = ChannelNorm(channels)

    def options(self) -> dict[str, Any]:
        return {"classes": self.classes, "dim": self.dim}

    def start(self, mean: Tensor, var: Tensor) -> None:
        self.norm.start_at(mean, var)

    def attention(self, m: Tensor, condition: Tensor) -> Tensor:
        """s (B, C), positive, with mean 1 over the channels."""
        rows = m.movedim(self.channel_dim, -1)
        pooled = rows.reshape(m.shape[0], -1, self.channels).mean(1)  # (B, C)
        query = self.embedding.index_select(0, condition) @ self.query.T / math.sqrt(self.dim)  # (B, d)
        score = pooled * (query @ self.key_scale.T) + query @ self.key_shift.T
        return self.channels * score.softmax(1)

    def given(self, m: Tensor, condition: Tensor) -> Tensor:
        scaled = m * along(self.attention(m, condition), m, self.channel_dim)
        return normed(scaled, self.weight, self.norm, self.channel_dim)


CONDITIONAL: dict[str, type[ConditionalPolarizer]] = {
    kind.structure: kind for kind in (Replicated, Embedded, Attentive)
}
