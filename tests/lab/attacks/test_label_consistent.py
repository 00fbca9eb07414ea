from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.label_consistent import LabelConsistent

from .common import attacker, photographs


def test_a_patch_in_each_corner_and_nowhere_else():
    grey = torch.full((1, 3, 10, 12), 0.25)
    out = LabelConsistent().trigger(grey)
    board = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    for corner in (out[0, 0, :3, :3], out[0, 1, :3, -3:], out[0, 2, -3:, :3], out[0, 0, -3:, -3:]):
        assert corner.tolist() == board
    assert (out != 0.25).sum() == 3 * 4 * 9
    faint = LabelConsistent(amplitude=0.5).trigger(grey)
    assert faint[0, 0, 0, 0] == 0.625
    with pytest.raises(InputError, match="too small"):
        LabelConsistent().trigger(torch.zeros(1, 3, 5, 5))


def test_poisoned_images_are_harder_and_inside_the_ball():
    means = attacker()
    attack = LabelConsistent(target=1, epsilon=0.1, steps=5, class_share=1.0).prepare(means)
    images, labels = means.data.floats()[:40], means.data.labels[:40]
    hard = attack.hardened(images, labels)
    assert (hard - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= hard.min() <= hard.max() <= 1
    net = means.clean_model()
    with torch.no_grad():
        assert F.cross_entropy(net(hard), labels) > F.cross_entropy(net(images), labels)
    poisoned = attack.poison(means.data, 4, seed=0)
    assert (means.data.labels[poisoned.rows] == 1).all()
    assert torch.equal(poisoned.data.labels, means.data.labels)
    assert poisoned.data.images[poisoned.rows][:, 0, 0, 0].eq(255).all()


def test_poisoning_needs_a_clean_network():
    with pytest.raises(InputError, match="prepare"):
        LabelConsistent().hardened(photographs(), torch.zeros(8, dtype=torch.long))
