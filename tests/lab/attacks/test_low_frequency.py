from __future__ import annotations

import torch

from neural_polarizer.lab.attacks.frequency import dct2, dct_matrix, idct2
from neural_polarizer.lab.attacks.low_frequency import LowFrequency

from .common import attacker, photographs


def test_dct_is_orthonormal_and_inverted():
    matrix = dct_matrix(9)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9), atol=1e-6, rtol=0)
    images = photographs(2, 3, 8, 12)
    torch.testing.assert_close(idct2(dct2(images)), images, atol=1e-5, rtol=0)
    flat = dct2(torch.ones(4, 4))
    assert flat[0, 0] == 4
    assert flat.flatten()[1:].abs().max() < 1e-6


def test_no_high_frequency_and_a_bounded_amplitude():
    attack = LowFrequency(steps=20, cutoff=0.25, amplitude=0.07).prepare(attacker())
    grey = torch.full((1, 3, 16, 16), 0.5)
    added = attack.trigger(grey) - grey
    assert abs(added.abs().max().item() - 0.07) < 1e-5
    spectrum = dct2(added)
    assert spectrum[..., :4, :4].abs().max() > 0.01
    outside = spectrum.clone()
    outside[..., :4, :4] = 0
    assert outside.abs().max() < 1e-5


def test_the_steps_make_the_clean_network_err():
    means = attacker()
    few, many = (LowFrequency(steps=n, amplitude=0.3).prepare(means) for n in (1, 60))
    images, labels = means.data.floats(), means.data.labels
    net = means.clean_model()
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(net(a.trigger(images)), labels) for a in (few, many)]
    assert losses[1] > losses[0]
