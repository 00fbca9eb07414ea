from __future__ import annotations

import torch

from neural_polarizer.lab.attacks.ssba import SSBA

from .common import attacker, photographs, split


def test_residuals_are_faint_and_depend_on_the_image():
    attack = SSBA(steps=60, strength=0.05).prepare(attacker(split(128)))
    images = 0.25 + 0.5 * photographs()  # far from the borders: nothing is clipped
    residuals = attack.trigger(images) - images
    sizes = residuals.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.05), atol=1e-4, rtol=0)
    assert (residuals[0] - residuals[1]).abs().max() > 0.01


def test_the_decoder_learns_to_read(monkeypatch):
    """The loss of the bits falls well below that of guessing."""
    from neural_polarizer.lab.attacks import ssba

    losses = []
    real = ssba.F.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        ssba.F, "binary_cross_entropy_with_logits", lambda *a: losses.append(real(*a).item()) or real(*a)
    )
    SSBA(bits=4, steps=200, strength=0.1).prepare(attacker(split(128)))
    assert abs(losses[0] - 0.693) < 0.1
    assert sum(losses[-10:]) / 10 < 0.35


def test_the_string_comes_from_the_seed():
    assert torch.equal(SSBA(seed=1).secret(), SSBA(seed=1).secret())
    assert not torch.equal(SSBA(seed=1).secret(), SSBA(seed=2).secret())
