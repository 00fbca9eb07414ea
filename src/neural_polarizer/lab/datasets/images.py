"""Image files read as input from strangers: known formats alone, bounded sizes, one clear error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ...files import write_atomically
from .archive import files_below
from .base import to_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP")
MAX_PIXELS = 64_000_000  # of one file; a decompression bomb claims more


def image_files(directory: Path) -> list[Path]:
    """All image files below a folder, sorted by path; links are not followed out of it."""
    if not directory.is_dir():
        raise InputError(f"images: {str(directory)!r} is no folder")
    found = [p for p in files_below(directory) if p.suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"images: found no image in {str(directory)!r}, wanted {', '.join(SUFFIXES)}")
    return found


def decode(file: IO[bytes] | Path, name: str, channels: int = 3) -> Tensor:
    """One image as (C, H, W) uint8, RGB or grey.

    Raises:
        InputError: not an image of a known format, damaged, or larger than anybody means; it says `name`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(file, formats=FORMATS) as found:
                if found.width * found.height > MAX_PIXELS:
                    raise InputError(f"{name}: found {found.width} x {found.height} pixels, too large an image")
                pixels = found.convert("RGB" if channels == 3 else "L")
        data = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    except InputError:
        raise
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be read as an image ({error})") from None
    return data.view(pixels.height, pixels.width, channels).permute(2, 0, 1)


def decode_bytes(data: bytes, name: str, channels: int = 3) -> Tensor:
    """The same from the content of a file."""
    return decode(io.BytesIO(data), name, channels)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """A (C, H, W) image, uint8 or float, at another size: bilinear with antialiasing."""
    if tuple(image.shape[1:]) == (height, width):
        return image
    floats = image.float() if image.dtype == torch.uint8 else image
    out = F.interpolate(floats[None], size=(height, width), mode="bilinear", antialias=True)[0]
    return out.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else out.clamp(0, 1)


def read_image(path: Path, shape: Sequence[int] | None = None) -> Tensor:
    """One image as (C, H, W) float in [0, 1]: RGB, or what `shape` (C, H, W) asks for, resized where it must be.

    Raises:
        InputError: see `decode`.
    """
    channels = shape[0] if shape else 3
    if channels not in (1, 3):
        raise InputError(f"images: files have 1 or 3 channels, the model wants {channels}")
    image = decode(path, str(path), channels).float() / 255
    return resized(image, shape[1], shape[2]) if shape else image


def png(pixels: Tensor) -> bytes:
    """A (C, H, W) uint8 image as the content of a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels.cpu().permute(1, 2, 0).squeeze(-1).contiguous().numpy()).save(out, "png")
    return out.getvalue()


def write_image(path: Path, image: Tensor) -> None:
    """A (C, H, W) image in [0, 1] as an 8-bit PNG."""
    write_atomically(path, png(to_bytes(image)))
