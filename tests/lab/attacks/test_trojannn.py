from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.trojannn import TrojanNN, features

from .common import attacker, photographs


def test_the_patch_drives_its_neuron():
    means = attacker()
    net = means.clean_model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    values = []
    for steps in (1, 60):
        attack = TrojanNN(steps=steps, area=0.2).prepare(means)
        with torch.no_grad(), features(net) as seen:
            net(attack.trigger(torch.full((1, 3, 16, 16), 0.5)))
        values.append(seen[0][0, int(attack.need("neuron"))].item())
    assert values[1] > 1.2 * values[0]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_patch_of_the_stated_area_in_the_corner():
    attack = TrojanNN(steps=1, area=0.0625).prepare(attacker())
    changed = (attack.trigger(photographs()) - photographs()).abs().amax((0, 1)) > 0
    assert changed[11:15, 11:15].all()
    assert changed.sum() == 16
    with pytest.raises(InputError, match="too small"):
        attack.trigger(photographs(1, 3, 4, 4))


def test_it_retrains_a_clean_network():
    assert TrojanNN.retrains
    recipe = attacker().recipe.retraining()
    assert recipe.epochs == 1
    assert recipe.lr < attacker().recipe.lr
