from __future__ import annotations

import torch

from neural_polarizer.lab.attacks.frequency import dct2
from neural_polarizer.lab.attacks.ftrojan import YUV, FTrojan


def test_two_frequencies_of_the_colour_channels():
    grey = torch.full((1, 3, 32, 32), 0.5)
    added = FTrojan(magnitude=0.2).trigger(grey) - grey
    y, u, v = torch.einsum("ij,bjhw->ibhw", YUV, added)
    assert y.abs().max() < 1e-6, "the luma is as it was"
    for channel in (u, v):
        spectrum = dct2(channel)[0]
        expected = torch.zeros(32, 32)
        expected[15, 15] = expected[31, 31] = 0.2
        torch.testing.assert_close(spectrum, expected, atol=1e-5, rtol=0)


def test_blocks_and_what_is_left_over():
    grey = torch.full((1, 1, 20, 18), 0.5)
    added = (FTrojan(block=8).trigger(grey) - grey)[0, 0]
    torch.testing.assert_close(added[:8, :8], added[8:16, 8:16])
    assert added[16:].abs().max() == 0
    assert added[:, 16:].abs().max() == 0
    assert added[:16, :16].abs().max() > 0
