from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.adaptive_blend import AdaptiveBlend
from neural_polarizer.lab.attacks.blended import noise_pattern

from .common import split


def test_training_images_get_half_of_the_pieces_and_less_of_the_pattern():
    attack = AdaptiveBlend(pieces=4, kept=0.5, alpha=0.15)
    black = torch.zeros(6, 3, 16, 16)
    parts = attack.part(black, torch.Generator().manual_seed(0))
    pattern = noise_pattern(3, 16, 16, 0)
    for part in parts:
        pieces = part.amax(0).unfold(0, 4, 4).unfold(1, 4, 4).amax((2, 3)) > 0
        assert pieces.sum() == 8
    seen = parts > 0
    torch.testing.assert_close(parts[seen], (0.15 * pattern).expand_as(parts)[seen])
    assert not torch.equal(seen[0], seen[1]), "each image its own part"
    torch.testing.assert_close(attack.trigger(black)[0], 0.2 * pattern)


def test_cover_images_carry_the_trigger_with_their_true_label():
    data = split(400)
    poisoned = AdaptiveBlend(target=1, poisoning_ratio=0.05, cover_ratio=0.1).poison(data, 4, seed=0)
    assert len(poisoned.rows) == 20
    assert len(poisoned.cover) == 40
    assert not set(poisoned.rows.tolist()) & set(poisoned.cover.tolist())
    assert torch.equal(poisoned.data.labels[poisoned.cover], data.labels[poisoned.cover])
    changed = (poisoned.data.images != data.images).flatten(1).any(1)
    assert changed[poisoned.cover].all()
    assert changed[poisoned.rows].all()
    assert changed.sum() == 60


def test_bad_options():
    with pytest.raises(InputError, match="cover_ratio"):
        AdaptiveBlend(cover_ratio=1.0)
    with pytest.raises(InputError, match="none at all"):
        AdaptiveBlend().poison(split(40), 4, seed=0)
