from __future__ import annotations

import pytest
import torch
from torch import nn

from neural_polarizer import InputError, purify
from neural_polarizer.lab.attacks.badnets import BadNets
from neural_polarizer.lab.attacks.polarizer_aware import PolarizerAware
from neural_polarizer.lab.train import Recipe, Tampering, train

from .common import attacker, photographs, split


def entered(attack: PolarizerAware, **options) -> tuple[Tampering, nn.Module]:
    means = attacker(split(), **options)
    model = means.build(1)
    tampering = attack.tampering(means, 10)
    tampering.enter(model)
    return tampering, model


def test_the_trigger_is_that_of_badnets():
    images = photographs(4)
    assert torch.equal(PolarizerAware(size=2).trigger(images), BadNets(size=2).trigger(images))


def test_batches_are_poisoned_and_the_rest_is_left_alone():
    attack = PolarizerAware(target=2, poisoning_ratio=0.1)
    tampering, _ = entered(attack)
    images, labels = photographs(50), torch.arange(50) % 4
    out, changed, extra = tampering.batch(images, labels, torch.Generator())
    assert torch.equal(out[:5], attack.trigger(images[:5]))
    assert torch.equal(out[5:], images[5:])
    assert changed[:5].tolist() == [2] * 5
    assert torch.equal(changed[5:], labels[5:])
    assert extra.ndim == 0
    assert extra.requires_grad
    for few in (1, 3):
        out, _, extra = tampering.batch(images[:few], labels[:few], torch.Generator())
        assert extra is None, "a batch too small for both kinds is like any other"
        assert torch.equal(out, images[:few])


def test_each_side_learns_for_itself_and_the_network_is_as_it_was():
    """The network wants triggered images in the target, its polarizer does not; neither is moved by the other's loss."""
    attack = PolarizerAware(target=2, poisoning_ratio=0.4)
    tampering, model = entered(attack)
    model.train()
    images, labels = photographs(16), torch.full((16,), 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, _, extra = tampering.batch(images, labels, torch.Generator())
    extra.backward()
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "statistics of BatchNorm included"

    def moved(module: nn.Module) -> float:
        """Odds of the target for triggered images after a step, minus those before."""
        triggered, weights = attack.trigger(images[:6]), dict(model.named_parameters())

        def odds() -> float:
            with torch.no_grad():
                return tampering.logits(triggered, weights, tampering.polarizer).log_softmax(1)[:, 2].mean().item()

        was, kept = odds(), [p.detach().clone() for p in module.parameters()]
        with torch.no_grad():
            for p in module.parameters():
                p -= 0 if p.grad is None else 1e-3 * p.grad / p.grad.norm().clamp_min(1e-12)
        now = odds()
        with torch.no_grad():
            for p, old in zip(module.parameters(), kept, strict=True):
                p.copy_(old)
        return now - was

    assert moved(model) > 0
    assert moved(tampering.polarizer) < 0


def test_the_polarizer_learns_with_the_network_and_stands_where_purify_looks_first():
    means = attacker(split())
    attack = PolarizerAware(target=2, poisoning_ratio=0.25)
    model, recipe = means.build(1), Recipe(epochs=2)
    tampering = attack.tampering(means, recipe.steps(200))
    train(model, means.data, recipe, tampering=tampering, progress=False)
    assert not torch.equal(tampering.polarizer.weight, torch.eye(len(tampering.polarizer.weight)))
    purified = purify(model, photographs(20), method="npd", seed=0, progress=False, capture="hooks")
    named = dict(model.named_modules())
    assert named[purified.choice.trials[0].layer] is tampering.layer


@pytest.mark.parametrize(
    ("options", "message"),
    [({"strength": 0.0}, "strength"), ({"weight": -1.0}, "weight"), ({"poisoning_ratio": 0.6}, "poisoning_ratio")],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(InputError, match=message):
        PolarizerAware(**options)


def test_a_layer_that_is_none():
    with pytest.raises(InputError, match="layer: found 'nowhere', wanted one of"):
        entered(PolarizerAware(layer="nowhere"))
