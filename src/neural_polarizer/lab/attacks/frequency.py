"""The orthonormal discrete cosine transform (DCT-II), as a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """M (N, N) with `M @ signal` the DCT of the signal and `M.T @ coefficients` back; row k is frequency k.

    Example:
        >>> m = dct_matrix(8)
        >>> torch.allclose(m @ m.T, torch.eye(8), atol=1e-6)
        True
    """
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def dct2(images: Tensor) -> Tensor:
    """Coefficients (..., H, W) of images (..., H, W), row frequency before column frequency."""
    rows, columns = dct_matrix(images.shape[-2]).to(images), dct_matrix(images.shape[-1]).to(images)
    return rows @ images @ columns.T


def idct2(coefficients: Tensor) -> Tensor:
    """Images (..., H, W) of coefficients (..., H, W)."""
    rows, columns = (
        dct_matrix(coefficients.shape[-2]).to(coefficients),
        dct_matrix(coefficients.shape[-1]).to(coefficients),
    )
    return rows.T @ coefficients @ columns
