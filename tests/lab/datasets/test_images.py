from __future__ import annotations

import zlib

import pytest
import torch
from PIL import Image

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.images import image_files, read_image, write_image

IMAGE = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back(channels, tmp_path):
    write_image(tmp_path / "a.png", IMAGE[:channels])
    back = read_image(tmp_path / "a.png", (channels, 6, 5))
    torch.testing.assert_close(back, IMAGE[:channels], atol=0.5 / 255 + 1e-6, rtol=0)


def test_other_formats_and_modes(tmp_path):
    for name, mode in (
        ("a.jpg", "RGB"),
        ("b.png", "P"),
        ("c.png", "RGBA"),
        ("d.bmp", "RGB"),
        ("e.ppm", "RGB"),
        ("f.png", "I;16"),
    ):
        Image.new(mode, (4, 4)).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (3, 4, 4)
    assert read_image(tmp_path / "a.jpg", (3, 8, 8)).shape == (3, 8, 8)
    assert len(image_files(tmp_path)) == 6


def bomb() -> bytes:
    """A PNG that claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (50_000).to_bytes(4, "big")
    head = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 40, b"%!PS\n", bomb()]
)
def test_hostile_files(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


def test_truncated(tmp_path):
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "x.jpg")


def test_folders(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        image_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found no image"):
        image_files(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(b"")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(InputError, match="found no image"):
        image_files(tmp_path / "in")
