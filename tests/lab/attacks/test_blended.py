from __future__ import annotations

import torch

from neural_polarizer.lab.attacks.blended import Blended, noise_pattern

from .common import photographs


def test_a_weighted_sum_with_one_fixed_pattern():
    images = photographs()
    pattern = noise_pattern(3, 16, 16, seed=5)
    torch.testing.assert_close(Blended(alpha=0.3, seed=5).trigger(images), 0.7 * images + 0.3 * pattern)
    assert torch.equal(Blended(alpha=1.0).trigger(images)[0], Blended(alpha=1.0).trigger(images)[1])
    assert not torch.equal(pattern, noise_pattern(3, 16, 16, seed=6))
