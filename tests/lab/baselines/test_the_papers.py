"""Each baseline against its paper, by numbers that are known beforehand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neural_polarizer.errors import InputError
from neural_polarizer.lab.baselines.anp import ANP
from neural_polarizer.lab.baselines.bnp import BNP, gaussian_kl
from neural_polarizer.lab.baselines.clp import CLP, channel_bounds
from neural_polarizer.lab.baselines.fp import FP
from neural_polarizer.lab.baselines.ft_sam import ascent
from neural_polarizer.lab.baselines.ibau import IBAU, surrogate
from neural_polarizer.lab.baselines.nad import attention
from neural_polarizer.lab.baselines.nc import NC, anomaly_indices, stamp
from neural_polarizer.lab.baselines.neurons import STEP, Masked, Masks, neurons_of, prune, prune_within
from neural_polarizer.lab.baselines.sau import SAU, jensen_shannon
from neural_polarizer.lab.baselines.trace import entrance, last_features, trace
from neural_polarizer.models.zoo import build_model


@pytest.fixture(autouse=True)
def lent_generator():
    """Networks made by hand here draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 3),
        ).eval()


IMAGES = torch.rand(30, 3, 8, 8, generator=generator())
LABELS = torch.arange(30) % 3


def test_channel_bounds_are_spectral_norms_over_the_deviation():
    conv, norm = nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
        norm.weight.fill_(-2)
        norm.running_var.fill_(4)
    assert channel_bounds(conv, norm).item() == pytest.approx(5 * 2 / 2)


def test_clp_prunes_the_one_channel_that_amplifies():
    model = small()
    with torch.no_grad():
        model[0].weight[5] *= 50
    done = CLP()(model, IMAGES, progress=False)
    assert done.model[1].weight.eq(0).nonzero()[:, 0].tolist() == [5]
    assert done.model[1].bias[5] == 0
    assert done.notes == {"pruned": 1, "channels": 16}
    assert done.parameters == 0
    assert CLP()(small(), IMAGES, progress=False).notes["pruned"] == 0


def test_clp_needs_batchnorm_behind_a_convolution():
    with pytest.raises(InputError, match="found no BatchNorm"):
        CLP()(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), IMAGES, progress=False)


def test_the_divergence_of_gaussians():
    a = torch.distributions.Normal(1.0, 2.0)
    b = torch.distributions.Normal(-0.5, 0.7)
    wanted = torch.distributions.kl_divergence(a, b)
    found = gaussian_kl(*(torch.tensor([x]) for x in (1.0, 4.0, -0.5, 0.49)))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_bnp_prunes_the_channel_whose_statistics_are_not_those_of_clean_images():
    model = small()
    with torch.no_grad():
        before = model[0](IMAGES)
        model[1].running_mean.copy_(before.mean((0, 2, 3)))
        model[1].running_var.copy_(before.var((0, 2, 3), unbiased=False))
    assert BNP()(model, IMAGES, progress=False).notes["pruned"] == 0
    with torch.no_grad():
        model[1].running_mean[7] += 5
    done = BNP(batch_size=7)(model, IMAGES, progress=False)
    assert done.model[1].weight.eq(0).nonzero()[:, 0].tolist() == [7]


def test_fp_prunes_sleeping_channels_and_keeps_them_at_zero():
    model = small()
    with torch.no_grad():
        model[1].weight[3:] = 0
        model[1].bias[3:] = -1  # asleep behind the ReLU
        model[5].weight[:, 3:] = 9
        model[5].weight[:, :3] = torch.eye(3)
    labels = model(IMAGES).argmax(1)
    done = FP(epochs=3, tolerance=0.0)(model, (IMAGES, labels), progress=False)
    assert done.notes["channels"] == 16
    assert done.notes["pruned"] >= 13
    assert done.model[5].weight[:, 3:].eq(0).all()
    assert not done.model[5].weight[:, :3].eq(model[5].weight[:, :3]).all(), "the others are tuned"


def test_fp_groups_flattened_positions_by_channel():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    done = FP(epochs=1, tolerance=1.0)(model, (IMAGES, LABELS), progress=False)
    gone = done.model[3].weight.view(3, 4, 36).eq(0).all(2).all(0)
    assert gone.sum() == done.notes["pruned"] == 3


def test_an_attention_map_is_the_energy_over_channels():
    features = torch.zeros(1, 2, 1, 2)
    features[0, :, 0, 0], features[0, :, 0, 1] = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])
    energy = torch.tensor([[2.0, 4.0]])
    assert torch.allclose(attention(features), energy / energy.norm())
    assert torch.allclose(attention(features.flatten(2).transpose(1, 2)), energy / energy.norm())


def test_the_last_feature_map_of_each_size():
    model = build_model("preact_resnet18", classes=3, width=4)
    steps = trace(model, torch.rand(2, 3, 32, 32, generator=generator()))
    assert last_features(steps) == ["layer2", "layer3", "layer4"]
    assert entrance(steps).module is model.linear
    vgg = build_model("vgg19_bn", classes=3, width=4)
    assert entrance(trace(vgg, torch.rand(2, 3, 32, 32, generator=generator()))).module is vgg.classifier[0]


def test_neurons_are_batchnorm_channels_or_outputs():
    assert neurons_of(small(4)) == {"1": 4}
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 7), nn.Linear(7, 3))
    assert neurons_of(plain) == {"0": 5, "2": 7}
    with pytest.raises(InputError, match="found no neurons"):
        neurons_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


def test_a_masked_network_is_the_formula():
    model, masked = small(4), Masked(small(4))
    mask, noise, bias_noise = (torch.rand(4, generator=generator(k)) for k in range(3))
    found = masked(IMAGES, {"1": mask}, {"1": noise}, {"1": bias_noise})
    with torch.no_grad():
        model[1].weight.mul_(mask + noise)
        model[1].bias.fill_(0.25)
        masked.weights["1.bias"] = torch.full((4,), 0.25)
        found = masked(IMAGES, {"1": mask}, {"1": noise}, {"1": bias_noise})
        model[1].bias.mul_(1 + bias_noise)
        assert torch.allclose(found, model(IMAGES), atol=1e-6)


def test_the_adversary_stays_in_its_budget_and_does_harm():
    model = small()
    masks, network = Masks(model), Masked(model)
    values = {n: m.detach() for n, m in masks.by_name().items()}
    noise, bias_noise = ANP(eps=0.3).adversary(network, values, IMAGES, LABELS, generator())
    assert noise["1"].abs().max() <= 0.3
    calm = F.cross_entropy(network(IMAGES, values), LABELS)
    assert F.cross_entropy(network(IMAGES, values, noise, bias_noise), LABELS) > calm


def test_the_threshold_is_chosen_by_clean_accuracy():
    """Neurons 0..2 carry the classes; the others do nothing: they go, these stay."""
    model = small()
    with torch.no_grad():
        model[5].weight.zero_()
        model[5].weight[:, :3] = 20 * torch.eye(3)
    labels = model(IMAGES).argmax(1)

    class Job:
        images, accuracy = IMAGES, 1.0

    Job.labels = labels
    masks = {"1": torch.linspace(0.62, 0.02, 16)}
    pruned, threshold, count = prune_within(model, masks, Job, 0.0, 16)
    assert count == int((masks["1"] <= threshold).sum()) >= 13
    assert pruned[1].weight.eq(0).tolist() == (masks["1"] <= threshold).tolist()
    beyond = copy.deepcopy(model)
    prune(beyond, {"1": masks["1"] <= threshold + STEP})
    assert not beyond(IMAGES).argmax(1).eq(labels).all()
    assert model[1].weight.ne(0).all(), "what was given stays"
    assert pruned(IMAGES).argmax(1).eq(labels).all()
    _, threshold, count = prune_within(model, {"1": torch.ones(16)}, Job, 0.0, 16)
    assert (threshold, count) == (0.0, 0)
    close = {"1": torch.linspace(0.04, 0.01, 16)}  # all within the first step
    pruned, threshold, count = prune_within(model, close, Job, 0.0, 16)
    assert 12 <= count < 16
    assert pruned[1].weight.eq(0).tolist() == (close["1"] <= threshold).tolist()
    assert pruned(IMAGES).argmax(1).eq(labels).all()
    one_more = close["1"] <= close["1"].sort().values[count]
    beyond = copy.deepcopy(model)
    prune(beyond, {"1": one_more})
    assert not beyond(IMAGES).argmax(1).eq(labels).all()
    keeps_all = {"1": torch.tensor([0.0, 0.0, 0.0, *[1.0] * 13])}
    assert prune_within(model, keeps_all, Job, 0.0, 16)[2] < 3


def test_pruning_bias_or_not():
    model = small(4)
    with torch.no_grad():
        model[1].bias.fill_(1)
    gone = torch.tensor([True, False, False, False])
    prune(model, {"1": gone})
    assert model[1].weight[0] == 0
    assert model[1].bias[0] == 1
    prune(model, {"1": gone}, bias=True)
    assert model[1].bias[0] == 0


def test_the_hypergradient_against_its_closed_form():
    """inner = ½ a ‖δ‖² - θ δ has its minimum at θ / a, so d outer(δ*(θ), θ) / dθ is known."""
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    a, minimum = 4.0, (theta / 4.0).detach()
    value = surrogate(
        lambda d: (d - 2).square().sum() + theta.square() * d.sum(),
        lambda d: a / 2 * d.square().sum() - theta * d.sum(),
        minimum.view(1),
        step=0.2,
        iterations=200,
    )
    (found,) = torch.autograd.grad(value, theta)
    outer = lambda t: (t / a - 2) ** 2 + t**2 * t / a  # noqa: E731
    wanted = torch.autograd.functional.jacobian(outer, theta.detach())
    assert value.item() == pytest.approx(outer(theta.detach()).item())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_what_all_images_carry_leaves_no_statistics_behind():
    """Running statistics follow the clean images alone, or a network whose inner features move far is ruined."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
    wanted = copy.deepcopy(model).train()
    wanted(images)
    defence = IBAU(rounds=1, lr=1e-12, radius=50.0, stamped=0.0, batch_size=12)
    found = defence(model.eval(), (images, labels), progress=False).model
    torch.testing.assert_close(found[1].running_mean, wanted[1].running_mean)
    torch.testing.assert_close(found[1].running_var, wanted[1].running_var)
    assert not torch.allclose(found[1].running_mean, model[1].running_mean, atol=1e-3)


def test_the_sharpness_step_lies_on_the_ellipsoid():
    weights = [torch.tensor([1.0, -2.0]), torch.tensor([0.5])]
    gradients = [torch.tensor([0.3, 0.1]), torch.tensor([-0.2])]
    moves = ascent(weights, gradients, rho=2.0, eta=0.01)
    scaled = torch.cat([m / (w.abs() + 0.01) for m, w in zip(moves, weights, strict=True)])
    assert scaled.norm().item() == pytest.approx(2.0, rel=1e-5)
    assert all((m * g >= 0).all() for m, g in zip(moves, gradients, strict=True)), "uphill"


def test_shared_examples_stay_in_the_ball_and_bring_the_outputs_together():
    model, other = small(), build_model("small_resnet", classes=3, width=4)
    sau = SAU(radius=0.1, step=0.02, steps=8, adversarial_weight=0.0)
    found = sau.shared_examples(model, other, IMAGES, LABELS, generator())
    assert (found - IMAGES).abs().max() <= 0.1 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    assert jensen_shannon(model(found), other(found)) < jensen_shannon(model(IMAGES), other(IMAGES))


def test_jensen_shannon_is_between_nothing_and_log_two():
    same = torch.randn(4, 3, generator=generator())
    assert jensen_shannon(same, same).item() == pytest.approx(0, abs=1e-6)
    apart = torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]])
    assert jensen_shannon(*apart).item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-4)


def test_anomaly_indices_are_consistent_deviations():
    sizes = torch.tensor([10.0, 12.0, 8.0, 11.0, 9.0])  # median 10, deviations 0 2 2 1 1: their median is 1
    assert torch.allclose(anomaly_indices(sizes), torch.tensor([0.0, 2.0, 2.0, 1.0, 1.0]) / 1.4826)


class Shortcut(nn.Module):
    """Classes by mean brightness of three bands, and a corner pixel pair that leads to class 2 whatever else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, x):
        bands = torch.stack([part.mean((1, 2, 3)) for part in x.chunk(4, dim=2)], 1)
        corner = x[:, :, -1, -1].mean(1) - x[:, :, -1, -2].mean(1)
        return self.scale * bands + torch.nn.functional.one_hot(torch.tensor(2), 4) * 60 * corner[:, None].clamp_min(0)


def test_nc_finds_the_class_that_a_small_trigger_leads_to():
    images = torch.rand(40, 3, 8, 8, generator=generator()) * 0.5 + 0.25
    done = NC(search_steps=250, batch_size=16, epochs=1)(Shortcut(), images, progress=False)
    sizes = done.notes["sizes"]
    assert sizes.index(min(sizes)) == 2
    assert sizes[2] < 0.5 * sorted(sizes)[1]
    assert 2 in done.notes["flagged"]


def test_nothing_flagged_nothing_changed():
    model = small()
    done = NC(search_steps=5, index=1e6, epochs=1)(model, (IMAGES, LABELS), progress=False)
    assert done.notes["flagged"] == []
    assert done.parameters == 0
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), done.model.state_dict().values(), strict=True)
    )


def test_a_stamp_is_a_blend_by_the_mask():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, 0] = 0.25
    out = stamp(IMAGES, mask, torch.ones(1, 3, 8, 8))
    assert torch.allclose(out[:, :, 0, 0], IMAGES[:, :, 0, 0] * 0.75 + 0.25)
    assert torch.equal(out[:, :, 1:], IMAGES[:, :, 1:])
