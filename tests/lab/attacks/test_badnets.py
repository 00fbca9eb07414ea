from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.badnets import BadNets
from neural_polarizer.lab.datasets.base import Split, to_bytes


def data(count: int = 200, classes: int = 4) -> Split:
    generator = torch.Generator().manual_seed(0)
    return Split(
        torch.randint(256, (count, 3, 9, 9), generator=generator, dtype=torch.uint8), torch.arange(count) % classes
    )


def test_known_pixels_and_no_other():
    images = torch.full((2, 1, 9, 9), 0.25)
    out = BadNets(size=3, margin=1).trigger(images)
    patch = out[:, 0, 5:8, 5:8]
    assert patch[0].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    changed = torch.zeros(9, 9, dtype=torch.bool)
    changed[5:8, 5:8] = True
    assert (out[:, :, ~changed] == 0.25).all()
    assert (images == 0.25).all()


def test_all_to_one_poisons_by_ratio_and_only_other_classes():
    clean = data()
    poisoned = BadNets(target=2, poisoning_ratio=0.1).poison(clean, 4, seed=1)
    assert len(poisoned.rows) == 20
    assert (clean.labels[poisoned.rows] != 2).all()
    assert (poisoned.data.labels[poisoned.rows] == 2).all()
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[poisoned.rows] = False
    assert torch.equal(poisoned.data.images[untouched], clean.images[untouched])
    assert torch.equal(poisoned.data.labels[untouched], clean.labels[untouched])
    assert torch.equal(poisoned.data.images[poisoned.rows], to_bytes(BadNets().trigger(clean.floats(poisoned.rows))))


def test_all_to_all():
    poisoned = BadNets(target=None).poison(data(), 4, seed=1)
    assert torch.equal(poisoned.data.labels[poisoned.rows], (data().labels[poisoned.rows] + 1) % 4)


def test_same_seed_same_rows():
    rows = [BadNets().poison(data(), 4, seed=s).rows for s in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_bad_options():
    with pytest.raises(InputError, match="poisoning_ratio"):
        BadNets(poisoning_ratio=1.5)
    with pytest.raises(InputError, match="exceed the image"):
        BadNets(size=9).trigger(data().floats())
