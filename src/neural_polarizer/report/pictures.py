"""Small pictures as data URIs."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

LARGEST = 160  # pixels per side on a page: what is larger is made smaller, or a page of photographs has many megabytes
BLUE = (0.18, 0.49, 0.85)  # seen on white and on black


def _data_uri(picture: object) -> str:
    out = io.BytesIO()
    picture.save(out, "png", optimize=True)  # type: ignore[attr-defined]
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def png_data_uri(image: Tensor, side: int = 96) -> str:
    """A (C, H, W) image in [0, 1] as a data URI.

    A small one is enlarged to `side` without smoothing, so that pixels stay pixels; one above `LARGEST` is made
    smaller.
    """
    from PIL import Image

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    longest = max(picture.size)
    if longest < side:
        picture = picture.resize(_scaled(picture.size, side / longest), Image.Resampling.NEAREST)
    elif longest > LARGEST:
        picture = picture.resize(_scaled(picture.size, LARGEST / longest), Image.Resampling.LANCZOS)
    return _data_uri(picture)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    width, height = (max(1, round(factor * s)) for s in size)
    return width, height


def heat_data_uri(values: Tensor, side: int = 240) -> str:
    """A matrix (R, C) of numbers from 0 up as a picture: the larger, the bluer, and 0 is transparent."""
    from PIL import Image

    share = values.double() / values.max().double().clamp_min(1e-12)
    colour = torch.tensor(BLUE, dtype=torch.float64).expand(*share.shape, 3)
    pixels = (torch.cat([colour, share.sqrt()[..., None]], 2) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.numpy(), "RGBA")
    factor = max(1, side // max(picture.size))
    return _data_uri(picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST))


def around_grey(difference: Tensor) -> Tensor:
    """A difference (C, H, W) of two images as a picture: 0 is grey, the largest value is black or white."""
    return (0.5 + 0.5 * difference / difference.abs().max().clamp_min(1e-6)).clamp(0, 1)
