from __future__ import annotations

import math

import torch

from neural_polarizer.lab.attacks.sig import SIG

from .common import photographs, split


def test_one_sinusoid_along_the_columns():
    grey = torch.full((1, 3, 12, 24), 0.5)
    wave = SIG(delta=0.1, frequency=6).trigger(grey) - grey
    expected = torch.tensor([0.1 * math.sin(2 * math.pi * 6 * j / 24) for j in range(24)])
    torch.testing.assert_close(wave[0, 0, 0], expected)
    assert torch.equal(wave, wave[:, :1, :1].expand_as(wave))
    energy = torch.fft.rfft(wave[0, 0, 0]).abs()
    assert energy.argmax() == 6
    narrow = SIG(frequency=6).trigger(torch.full((1, 1, 2, 12), 0.5))[0, 0, 0]
    assert narrow.std() > 0.05, "half a period per pixel would be nothing at all"
    assert SIG(delta=0.5).trigger(photographs()).amax() <= 1


def test_only_the_target_class_and_no_label():
    data = split(400)
    poisoned = SIG(target=2, poisoning_ratio=0.9, class_share=0.5).poison(data, 4, seed=0)
    assert len(poisoned.rows) == 50, "half of a class of 100"
    assert (data.labels[poisoned.rows] == 2).all()
    assert torch.equal(poisoned.data.labels, data.labels)
