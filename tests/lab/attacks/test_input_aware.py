from __future__ import annotations

import torch

from neural_polarizer.lab.attacks.input_aware import InputAware, apart, hardened

from .common import attacker, photographs, split


def prepared(**options):
    means = attacker(split(128))
    attack = InputAware(**{"mask_steps": 60, "density": 0.1, "target": 1, **options}).prepare(means)
    return means, attack


def test_masks_become_sparse():
    images = photographs(32)
    densities = [
        hardened(prepared(mask_steps=steps)[1].network("mask", 3, "cpu")(images)).mean().item() for steps in (2, 150)
    ]
    assert densities[1] < 0.25 < densities[0]


def test_batches_have_own_and_crossed_triggers_with_gradients():
    means, attack = prepared()
    tampering = attack.tampering(means, 10)
    images, labels = photographs(40), torch.arange(40) % 4
    out, changed, extra = tampering.batch(images, labels, torch.Generator().manual_seed(0))
    assert changed[:4].tolist() == [1] * 4
    assert torch.equal(changed[4:], labels[4:])
    assert ((out[:8] - images[:8]).flatten(1).abs().amax(1) > 0).all()
    assert torch.equal(out[8:], images[8:])
    (out.sum() + extra).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tampering.pattern.parameters())
    assert all(p.grad is None for p in tampering.mask.parameters()), "the mask is trained before, then fixed"


def test_small_batches():
    means, attack = prepared()
    tampering = attack.tampering(means, 10)
    for count in (1, 2, 6, 9):
        out, labels, _ = tampering.batch(photographs(count), torch.zeros(count, dtype=torch.long), torch.Generator())
        assert len(out) == len(labels) == count


def test_diversity_is_distance_over_distance():
    images, maps = photographs(4), photographs(4, seed=9)
    assert apart(images, 2 * maps) < apart(images, maps)
    assert apart(images, torch.zeros_like(maps)).isfinite()
