from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.wanet import WaNet, identity_grid, sample

from .common import attacker, photographs


def test_the_identity_grid_changes_nothing():
    images = photographs(2, 3, 12, 20)
    out = sample(images, identity_grid(12, 20).expand(2, -1, -1, -1))
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


def test_a_smooth_and_bounded_warp():
    field = WaNet(strength=0.5, grid=4).field(32, 32)[0]  # in half-images
    pixels = field * torch.tensor([31, 31]) / 2
    assert 0.1 < pixels.abs().mean() < 0.5, "a fraction of a pixel on average"
    assert pixels.abs().max() < 2
    steps = torch.cat([pixels.diff(dim=0).flatten(), pixels.diff(dim=1).flatten()]).abs()
    assert steps.max() < 0.25, "neighbours move together"
    torch.testing.assert_close(WaNet(strength=1.0).field(32, 32)[0], 2 * field)


def test_a_linear_image_shows_the_displacement():
    ramp = torch.linspace(0.2, 0.8, 33).expand(1, 1, 33, 33)
    moved = (WaNet().trigger(ramp) - ramp)[0, 0, 4:-4, 4:-4]
    expected = WaNet().field(33, 33)[0, 4:-4, 4:-4, 0] * 0.3  # 0.6 over the two units of the grid
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_batches_have_poisoned_and_cover_images():
    attack = WaNet(target=2, poisoning_ratio=0.1, cross_ratio=2.0)
    tampering = attack.tampering(attacker(), 1)
    images, labels = photographs(50), torch.arange(50) % 4
    out, changed, extra = tampering.batch(images, labels, torch.Generator().manual_seed(0))
    assert extra is None
    assert torch.equal(out[:5], attack.trigger(images[:5]))
    assert changed[:5].tolist() == [2] * 5
    assert torch.equal(changed[5:], labels[5:])
    noisy = (out[5:15] - images[5:15]).flatten(1).abs().amax(1)
    assert (noisy > 0).all(), "twice as many in noise mode, with their own label"
    assert not torch.allclose(out[5:15], attack.trigger(images[5:15]), atol=1e-3)
    assert torch.equal(out[15:], images[15:])


def test_shares_that_do_not_fit():
    with pytest.raises(InputError, match="exceed a batch"):
        WaNet(poisoning_ratio=0.5, cross_ratio=2.0)
