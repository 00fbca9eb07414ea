from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.bpp import Bpp, dithered, quantised

from .common import attacker, photographs


def floyd_steinberg(image, levels):
    """The textbook algorithm, pixel by pixel."""
    work, out = image.clone(), torch.zeros_like(image)
    height, width = image.shape
    for i in range(height):
        for j in range(width):
            value = work[i, j].item()
            out[i, j] = round(min(max(value, 0), 1) * (levels - 1)) / (levels - 1)
            error = value - out[i, j].item()
            for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if 0 <= i + di < height and 0 <= j + dj < width:
                    work[i + di, j + dj] += error * share / 16
    return out


@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (12, 4), (1, 6)])
def test_the_slanted_dithering_is_floyd_steinberg(shape):
    images = torch.rand(3, 2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = dithered(images, 4)
    for image, found in zip(images.flatten(0, 1), out.flatten(0, 1), strict=True):
        torch.testing.assert_close(found, floyd_steinberg(image, 4), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dither", [True, False])
def test_as_many_levels_as_asked_for(dither):
    out = Bpp(levels=5, dither=dither).trigger(photographs())
    torch.testing.assert_close(out * 4, (out * 4).round(), atol=1e-6, rtol=0)
    assert len((out * 4).round().unique()) == 5
    assert torch.equal(quantised(torch.tensor([0.0, 0.4, 1.0]), 3), torch.tensor([0.0, 0.5, 1.0]))


def test_dithering_keeps_the_mean():
    grey = torch.full((1, 1, 32, 32), 0.4)
    assert abs(Bpp(levels=2).trigger(grey).mean() - 0.4) < 0.03
    assert Bpp(levels=2, dither=False).trigger(grey).mean() == 0


def test_batches_have_poisoned_and_negative_images():
    attack = Bpp(target=2, poisoning_ratio=0.1, negative_ratio=0.2)
    images, labels = photographs(40), torch.arange(40) % 4
    out, changed, extra = attack.tampering(attacker(), 1).batch(images, labels, torch.Generator())
    assert extra is None
    assert torch.equal(out[:4], attack.trigger(images[:4]))
    assert changed[:4].tolist() == [2] * 4
    assert torch.equal(changed[4:], labels[4:])
    lent = images[12:20]
    expected = (images[4:12] + attack.trigger(lent) - lent).clamp(0, 1)
    torch.testing.assert_close(out[4:12], expected, atol=1e-6, rtol=0, msg="the residual of another image")
    assert torch.equal(out[12:], images[12:])


def test_bad_options():
    with pytest.raises(InputError, match="levels"):
        Bpp(levels=1)
    with pytest.raises(InputError, match="negative_ratio"):
        Bpp(negative_ratio=0.95)
