from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.datasets.digits import digits


@pytest.mark.parametrize("size", [16, 32])
def test_digits(size):
    data = digits(size=size)
    assert data.train.images.shape == (1438, 3, size, size)
    assert len(data.test) == 359
    assert len(data.train) + len(data.test) == 1797
    for split in (data.train, data.test):
        assert split.images.dtype == torch.uint8
        assert split.floats().max() == 1
        assert split.labels.unique().tolist() == list(range(10))
    assert data.classes[3] == "3"


def test_the_split_depends_on_the_seed_alone():
    assert torch.equal(digits(seed=1).test.images, digits(seed=1).test.images)
    assert not torch.equal(digits(seed=1).test.images, digits(seed=2).test.images)


def test_hold_back_is_balanced_and_disjoint():
    data = digits()
    clean, rest = (data.train.take(rows) for rows in data.hold_back(143, seed=3))
    assert (len(clean), len(rest)) == (143, 1438 - 143)
    counts = torch.bincount(clean.labels)
    assert counts.max() - counts.min() <= 1
    every = torch.cat([clean.images, rest.images]).flatten(1).double().sum(0)
    torch.testing.assert_close(every, data.train.images.flatten(1).double().sum(0))


def test_sizes():
    with pytest.raises(InputError, match="size: found 5"):
        digits(size=5)
