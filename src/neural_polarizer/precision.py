"""Passes whose gradients need a direction and no more, in bfloat16 where the processor is made for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def native_bfloat16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 are the device's own, and so at least twice as fast as float32."""
    if device.type == "cpu":
        asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(ask is not None and ask() for ask in asked)
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def quick(forward: Callable[[Tensor], Tensor], images: Tensor) -> torch.autocast:
    """The context to search perturbations in: bfloat16, or nothing where that is slow or the model cannot be run so.

    A step of the inner problem only needs the direction of a gradient, and what it finds is checked at full width.

    Args:
        forward: images (B, C, H, W) -> logits (B, K).
        images: of which two are tried.

    Example:
        >>> quick(lambda x: x.flatten(1), torch.rand(2, 3, 8, 8, dtype=torch.float64))._enabled
        False
    """
    kind = images.device.type
    wanted = images.dtype == torch.float32 and native_bfloat16(images.device)
    if wanted:
        try:
            with torch.autocast(kind, torch.bfloat16), torch.enable_grad():
                few = images[:2].clone().requires_grad_()
                torch.autograd.grad(forward(few).float().sum(), few)
        except RuntimeError:  # an operation between two dtypes that the model does by hand
            wanted = False
    return torch.autocast(kind, torch.bfloat16, enabled=wanted)
