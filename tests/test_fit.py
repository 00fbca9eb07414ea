from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neural_polarizer import FitConfig, FitDiverged, InputError, PolarizedModel, purify
from neural_polarizer.cut import Cut
from neural_polarizer.fit import measure
from neural_polarizer.polarizers import STRUCTURES

from .nets import CUTS, ZOO, images, labels, make

QUICK = FitConfig(epochs=2, warmup_epochs=1, batch_size=8, rank=2)


USUAL = (images(20), labels(20))


def quick(net: nn.Module, clean=USUAL, layer: str = "conv2", **kwargs) -> PolarizedModel:
    return purify(
        net, clean, layer=layer, **{"method": "npd", "config": QUICK, "progress": False, "capture": "hooks", **kwargs}
    )


def snapshot(net: nn.Module):
    return (
        copy.deepcopy(net.state_dict()),
        {n: m.training for n, m in net.named_modules()},
        {n: (p.requires_grad, p.grad, p.data_ptr()) for n, p in net.named_parameters()},
        {n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in net.named_modules()},
    )


def same(before, after) -> bool:
    bits = all(torch.equal(v, after[0][k]) for k, v in before[0].items())
    return bits and before[0].keys() == after[0].keys() and before[1:] == after[1:]


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_fits_before_every_layer_of_every_net_and_leaves_the_model_alone(name, layer):
    net = make(name)
    net.train()  # the user's mode, whatever it is
    next(net.parameters()).requires_grad_(False)
    before = snapshot(net)
    purified = quick(net, layer=layer)
    assert same(before, snapshot(net))
    assert len(purified.history) == 2
    assert purified(images()).isfinite().all()
    assert not torch.equal(purified(images()), purified.cut.original(images()))
    assert same(before, snapshot(net))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_untrained_polarizer_gives_the_original_logits(structure):
    """Every structure, in front of a convolution with a dead channel: the start is the identity."""
    net = make("plain")
    net.bn1.weight.data[3] = net.bn1.bias.data[3] = 0
    config = FitConfig(epochs=0, warmup_epochs=0, structure=structure, rank=2)
    purified = quick(net, config=config)
    torch.testing.assert_close(purified(images()), net(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ZOO)
def test_identity_before_every_layer(name):
    net, x = make(name), images()
    for layer in ZOO[name][1]:
        purified = quick(net, layer=layer, config=FitConfig(epochs=0, warmup_epochs=0))
        torch.testing.assert_close(purified(x), purified.cut.original(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_trains(structure):
    config = FitConfig(epochs=2, warmup_epochs=1, structure=structure, rank=2, batch_size=8)
    purified = quick(make("plain"), config=config)
    assert not torch.allclose(purified(images()), make("plain")(images()), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"target": 2}, {"target": "none"}, {"target": "random"}, {"share": "batch"}, {"share": "target"}, {"norm": "l1"},
        {"norm": "linf", "start": 0.2}, {"statistics": "batch"}, {"aim": "label"}, {"step_rule": "plain"}, {"benign": "original"}, {"schedule": "cosine"}, {"fool": "original"}, {"fool": "both"},
        {"lambda_bn": 0.0}, {"early_exit": None}, {"momentum": 0.0},
    ],
)  # fmt: skip
def test_no_option_is_ignored(options):
    """Each option changes the bits of the result."""
    net = make("plain")
    base = {"epochs": 2, "warmup_epochs": 1, "batch_size": 8, "early_exit": 0.3, "radius": 2.0, "steps": 3}
    plain = quick(net, config=FitConfig(**base)).polarizer.state_dict()
    other = quick(net, config=FitConfig(**{**base, **options})).polarizer.state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in plain.items())


def test_published_settings_run():
    for name in ("cifar10", "gtsrb", "tiny"):
        config = FitConfig(**{**FitConfig.published(name).to_dict(), "epochs": 1, "warmup_epochs": 0})
        assert quick(make("plain"), config=config)(images()).isfinite().all()


def test_history():
    history = quick(make("plain")).history
    assert [row["epoch"] for row in history] == [1, 2]
    assert set(history[0]) == {
        "epoch", "loss", "loss_bn", "loss_ce", "loss_max", "loss_asr", "clean_accuracy", "reached",
    }  # fmt: skip
    assert "clean_accuracy" in str(history)


def test_one_outer_step_by_hand():
    """One batch, one epoch, no momentum: θ moves by -lr times the gradient of the weighted losses."""
    from neural_polarizer.losses import asr_loss, bn_loss, ce_loss, max_loss, without_class
    from neural_polarizer.perturb import descend

    net, x, y = make("plain"), images(6), labels(6)
    config = FitConfig(
        epochs=1, warmup_epochs=0, batch_size=6, momentum=0.0, weight_decay=0.0, structure="conv", radius=0.7
    )
    trained = quick(net, (x, y), config=config).polarizer.weight
    weight = torch.eye(6, requires_grad=True)
    cut = Cut(net, "conv2", x)

    def forward(z):
        return cut.edited(z, lambda m: torch.einsum("dc,bchw->bdhw", weight, m))

    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    target = without_class(forward(x).detach(), y).argmax(1)
    perturbed = descend(config.threat(x.shape[1:]), forward, x, target, config.descent(x.shape[1:])).images
    clean, logits = forward(x), forward(perturbed)
    loss = bn_loss(clean, y) + 0.4 * (ce_loss(logits, clean.argmax(1)) + max_loss(logits, y) + asr_loss(logits, target))
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(trained, torch.eye(6) - 0.01 * gradient, atol=1e-6, rtol=1e-5)


def test_same_seed_same_bits():
    runs = [quick(make("plain"), seed=s).polarizer.state_dict() for s in (4, 4, 5)]
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    assert any(not torch.equal(v, runs[2][k]) for k, v in runs[0].items())


def test_forms_of_the_clean_set():
    net, x, y = make("plain"), images(10), labels(10)
    expected = quick(net, (x, y)).polarizer.state_dict()
    for clean in ([x, y], TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=4)):
        found = quick(net, clean).polarizer.state_dict()
        assert all(torch.equal(v, found[k]) for k, v in expected.items())
    own = quick(net, (x, net(x).argmax(1))).polarizer.state_dict()
    for clean in (x, TensorDataset(x), DataLoader(TensorDataset(x), batch_size=3)):
        found = quick(net, clean).polarizer.state_dict()
        assert all(torch.equal(v, found[k]) for k, v in own.items())


@pytest.mark.parametrize("count", [1, 3, 9, 17])  # one image; one batch; last batches of one image
def test_odd_sizes_of_the_clean_set(count):
    purified = quick(
        make("plain"), (images(count), labels(count)), config=FitConfig(epochs=1, batch_size=8, warmup_epochs=1)
    )
    assert purified(images()).isfinite().all()
    purified = quick(make("plain"), (images(count), labels(count)), layer="fc", config=QUICK)
    assert purified(images()).isfinite().all()


def test_a_class_missing_from_the_clean_set():
    y = torch.zeros(12, dtype=torch.long)
    assert quick(make("plain"), (images(12), y))(images()).isfinite().all()


def test_two_classes():
    net = nn.Sequential(nn.utils.skip_init(nn.Conv2d, 3, 4, 3), nn.Flatten(), nn.utils.skip_init(nn.Linear, 144, 2))
    for p in net.parameters():
        p.data = torch.linspace(-0.1, 0.1, p.numel()).sin().view_as(p)
    assert quick(net, (images(8), labels(8, classes=2)), layer="2")(images()).isfinite().all()


def test_statistics_match_the_activations():
    net, x = make("skips"), images(20)
    cut = Cut(net, "block.conv2", x)
    mean, var, original = measure(cut, x, batch_size=7)
    rows = cut.prefix(x).m.movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(var, rows.var(0, unbiased=False))
    torch.testing.assert_close(original, net(x), atol=1e-6, rtol=1e-5)


def test_double_and_half_models():
    net = make("plain")
    assert quick(copy.deepcopy(net).double())(images().double()).dtype == torch.float64
    half = quick(copy.deepcopy(net).to(torch.bfloat16))(images().to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


def test_another_device_means_a_copy_there():
    """`cpu:0` is another name for the CPU, so the work takes the way that another device would take."""
    net = make("plain")
    before = snapshot(net)
    purified = quick(net, device="cpu:0")
    assert same(before, snapshot(net))
    assert purified.base is net
    here = quick(net).polarizer.state_dict()
    assert all(torch.equal(v, here[k]) for k, v in purified.polarizer.state_dict().items())


def test_divergence_is_noticed():
    with pytest.raises(FitDiverged, match="not finite"):
        quick(make("plain"), config=FitConfig(epochs=20, lr=1e20, warmup_epochs=0))


X, Y = images(4), labels(4)
NAN = X.clone()
NAN[2, 1, 3, 3] = float("nan")


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ((X, Y + 7), "labels from .*wanted 0 to 4 .*5 classes"),
        ((X, Y - 9), "clean: found labels from"),
        ((X, Y.float()), "torch.float32, wanted integers"),
        ((X, Y[:3]), "labels of shape"),
        ((X * 255, Y), r"wanted \[0, 1\]"),
        ((X - 0.5, Y), "with_normalization"),
        ((NAN, Y), "NaN"),
        (((X * 255).byte(), Y), "divide 8-bit images by 255"),
        ((X[:0], Y[:0]), "no image at all"),
        (X[0], r"wanted \(B, C, H, W\)"),
        (X[:, :2], "2 channels|failed on images"),
        ("folder", "found str"),
        (None, "found NoneType"),
        ([], "found list"),
        (TensorDataset(torch.rand(0, 3, 8, 8, generator=torch.Generator())), "no image at all"),
        (TensorDataset(X, Y, Y), "item of tuple"),
    ],
)
def test_bad_clean_sets(clean, message):
    with pytest.raises(InputError, match=message):
        quick(make("plain"), clean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv9"}, "near names"),
        ({"method": "nbd"}, "method: found 'nbd'"),
        ({"config": FitConfig(target=5)}, "target: found 5, wanted 0 to 4"),
        ({"config": FitConfig(structure="low-rank", rank=50)}, "rank: found 50"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(InputError, match=message):
        quick(make("plain"), **options)
