"""Class-conditional polarizers from `purify` to `detect`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neural_polarizer import FitConfig, InputError, PolarizedModel, fit, purify
from neural_polarizer.conditional import Embedded

from .nets import ZOO, images, labels, make
from .test_fit import QUICK, quick, same, snapshot

METHODS = ("npd", "r-cnpd", "e-cnpd", "a-cnpd")
CNPD = METHODS[1:]


@pytest.mark.parametrize("method", CNPD)
@pytest.mark.parametrize(
    ("name", "layer"), [("skips", "block.conv1"), ("tokens", "norm"), ("channels-last", "mlp"), ("plain", "fc")]
)
def test_fits_and_leaves_the_model_alone(method, name, layer):
    net = make(name).train()
    before = snapshot(net)
    purified = quick(net, layer=layer, method=method)
    assert same(before, snapshot(net))
    assert purified(images()).isfinite().all()
    assert "mismatch" in purified.history[0]
    with purified.disabled():
        torch.testing.assert_close(purified(images()), purified.cut.original(images()), atol=0, rtol=0)


@pytest.mark.parametrize("method", CNPD)
def test_starts_as_the_identity_before_every_layer(method):
    for name in ZOO:
        net = make(name)
        for layer in ZOO[name][1]:
            purified = quick(net, layer=layer, method=method, config=FitConfig(epochs=0, warmup_epochs=0))
            torch.testing.assert_close(purified(images()), purified.cut.original(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", CNPD)
@pytest.mark.parametrize(
    "options",
    [
        {"target": "runner-up"}, {"target": 2}, {"condition": "reached"}, {"conditioning": "none"}, {"conditioning": "label"},
        {"conditioning": "random"}, {"statistics": "batch"}, {"share": "target"}, {"schedule": "cosine"}, {"aim": "label"},
    ],
)  # fmt: skip
def test_no_option_is_ignored(method, options):
    base = {"epochs": 2, "warmup_epochs": 1, "batch_size": 8, "early_exit": None, "radius": 2.0, "steps": 2}
    plain = quick(make("skips"), layer="block.conv1", method=method, config=FitConfig(**base)).polarizer.state_dict()
    config = FitConfig(**{**base, **options})
    other = quick(make("skips"), layer="block.conv1", method=method, config=config).polarizer.state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in plain.items())


def test_embedding_size_is_used():
    for method in ("e-cnpd", "a-cnpd"):
        polarizer = quick(make("plain"), method=method, config=FitConfig(epochs=0, embedding=5)).polarizer
        assert polarizer.dim == 5


def many_classes(classes: int) -> nn.Module:
    net = make("plain")
    net.fc = nn.utils.skip_init(nn.Linear, 8, classes)
    net.fc.weight.data = torch.randn(classes, 8, generator=torch.Generator().manual_seed(0))
    net.fc.bias.data = torch.zeros(classes)
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(method, classes):
    purified = quick(many_classes(classes), (images(10), labels(10, classes=classes)), method=method)
    assert purified(images()).shape == (6, classes)
    assert purified(images()).isfinite().all()


def test_copies_that_no_image_needs_stay_the_identity():
    config = FitConfig(epochs=1, warmup_epochs=0, batch_size=5)
    weight = quick(many_classes(1000), (images(10), labels(10)), method="r-cnpd", config=config).polarizer.weight
    moved = (weight != torch.eye(6)).flatten(1).any(1).sum()
    assert 1 <= moved <= 20


def test_conditions_in_training_are_prediction_and_target(monkeypatch):
    """Clean images carry the original prediction, perturbed ones their target."""
    seen, targets = [], []
    given, drawn = Embedded.given, fit.wrong_targets
    monkeypatch.setattr(Embedded, "given", lambda self, m, c: (seen.append(c.clone()), given(self, m, c))[1])
    monkeypatch.setattr(fit, "wrong_targets", lambda *a: (targets.append(drawn(*a)), targets[-1])[1])
    net, x, y = make("plain"), images(6), labels(6)
    quick(net, (x, y), method="e-cnpd", config=FitConfig(epochs=1, warmup_epochs=0, batch_size=6, early_exit=None))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert len(seen) == 4  # clean; two inner steps; the outer pass
    assert torch.equal(seen[0], net(x[order]).argmax(1))
    assert all(torch.equal(c, targets[0]) for c in seen[1:])
    assert (targets[0] != y[order]).all()


@pytest.mark.parametrize("condition", ["target", "reached"])
@pytest.mark.parametrize("conditioning", ["none", "label"])
def test_the_ablation_conditions_every_pass(monkeypatch, condition, conditioning):
    """Whatever perturbed images reach: under the ablation all images carry one class, or their label."""
    seen = []
    given = Embedded.given
    monkeypatch.setattr(Embedded, "given", lambda self, m, c: (seen.append(c.clone()), given(self, m, c))[1])
    config = FitConfig(
        epochs=1,
        warmup_epochs=1,
        batch_size=6,
        steps=2,
        early_exit=None,
        condition=condition,
        conditioning=conditioning,
    )
    y = labels(6)
    quick(make("plain"), (images(6), y), method="e-cnpd", config=config)
    assert len(seen) == 5
    for c in seen:
        assert torch.equal(c.sort().values, torch.zeros_like(y) if conditioning == "none" else y.sort().values)


def test_targets_cover_every_wrong_class_evenly():
    y = torch.arange(5).repeat(2000)
    drawn = fit.wrong_targets("random", None, y, 5, torch.Generator().manual_seed(0))
    table = torch.bincount(y * 5 + drawn, minlength=25).view(5, 5)
    assert (table.diagonal() == 0).all()
    off = table[~torch.eye(5, dtype=torch.bool)]
    assert off.min() > 400
    assert off.max() < 600


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method):
    runs = [quick(make("plain"), seed=s, method=method).polarizer.state_dict() for s in (4, 4, 5)]
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    assert any(not torch.equal(v, runs[2][k]) for k, v in runs[0].items())


@pytest.mark.parametrize("method", METHODS)
def test_saved_loaded_copied_and_counted(method, tmp_path, capsys):
    purified = quick(make("plain"), method=method, config=FitConfig(epochs=1, batch_size=8, embedding=3))
    purified.save_pretrained(tmp_path)
    loaded = PolarizedModel.from_pretrained(make("plain"), tmp_path, capture="hooks")
    assert loaded.method == method
    assert torch.equal(loaded(images()), purified(images()))
    assert torch.equal(copy.deepcopy(purified)(images()), purified(images()))
    purified.print_trainable_parameters()
    c, k, d = 6, 5, 3
    count = {
        "npd": c * c + 2 * c,
        "r-cnpd": k * (c * c + 2 * c),
        "e-cnpd": c * c + d * c + k * d + 2 * c,
        "a-cnpd": c * c + 2 * d * c + d * d + k * d + 2 * c,
    }[method]
    assert f"trainable params: {count} " in capsys.readouterr().out


def shaken(method: str) -> PolarizedModel:
    purified = quick(
        make("plain"), method=method, capture="graph", config=FitConfig(epochs=1, batch_size=8, embedding=3)
    )
    generator = torch.Generator().manual_seed(0)
    for p in purified.polarizer.parameters():
        p.data += torch.randn(p.shape, generator=generator)
    return purified


@pytest.mark.parametrize("method", METHODS)
def test_predict_and_detect(method):
    purified, net, x = shaken(method), make("plain"), images(40)
    said = purified.predict(x)
    assert torch.equal(said.logits, purified(x))
    torch.testing.assert_close(said.original, net(x), atol=1e-6, rtol=1e-5)
    before, after = said.original.softmax(1), said.logits.softmax(1)
    rows, c = torch.arange(40), net(x).argmax(1)
    assert torch.equal(said.suspect, after.argmax(1) != c)
    torch.testing.assert_close(said.score, before[rows, c] - after[rows, c])
    for loader in (x, DataLoader(TensorDataset(x, labels(40)), batch_size=7), x.split(9)):
        found = purified.detect(loader)
        torch.testing.assert_close(found.score, said.score, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.suspect, said.suspect)
    with purified.disabled():
        assert not purified.predict(x).suspect.any()
        assert purified.predict(x).score.abs().max() == 0
    for bad, message in (([], "no batch"), ([x * 300], "wanted"), (["a.png"], "found str")):
        with pytest.raises(InputError, match=message):
            purified.detect(bad)


@pytest.mark.parametrize("method", CNPD)
def test_the_condition_is_the_original_prediction(method):
    purified, net, x = shaken(method), make("plain"), images()
    c = net(x).argmax(1)
    torch.testing.assert_close(purified(x), purified(x, c), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(purified(x), purified(x, (c + 1) % 5), atol=1e-4)


@pytest.mark.parametrize("method", CNPD)
@pytest.mark.parametrize(
    ("clean", "options", "message"),
    [
        ((images(4), labels(4) + 7), {}, "clean: found labels"),
        ((images(4), labels(4).float()), {}, "wanted integers"),
        ((images(4) * 255, labels(4)), {}, r"wanted \[0, 1\]"),
        ((images(4)[:0], labels(4)[:0]), {}, "no image at all"),
        (images(4)[:, :2], {}, "failed on images"),
        (images(4), {"layer": "conv9"}, "near names"),
        (images(4), {"config": FitConfig(target="none")}, "target: found 'none' for"),
        (images(4), {"config": FitConfig(target=5)}, "target: found 5, wanted 0 to 4"),
        (images(4), {"capture": "magic"}, "capture: found 'magic'"),
        (images(4), {"device": "cuda:99"}, "device: found 'cuda:99'"),
    ],
)
def test_bad_input(method, clean, options, message):
    with pytest.raises(InputError, match=message):
        quick(make("plain"), clean, method=method, **options)


@pytest.mark.parametrize("method", CNPD)
def test_a_polarizer_for_other_classes_or_layers_is_refused(method, tmp_path):
    quick(make("plain"), method=method, config=QUICK).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="5 classes, the model has 7"):
        PolarizedModel.from_pretrained(many_classes(7), tmp_path, capture="hooks")
    with pytest.raises(InputError, match="does not fit this model"):
        PolarizedModel.from_pretrained(make("skips"), tmp_path, capture="hooks")


def test_works_on_a_hugging_face_model():
    from .hf import hugging_face

    x = images(8, shape=(3, 32, 32))
    purified = purify(
        hugging_face("vit"), (x, labels(8)), method="a-cnpd", layer="vit.layernorm", config=QUICK, progress=False
    )
    assert purified.cut.kind == "graph"
    assert purified.predict(x).score.shape == (8,)


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_with_two_threads_at_a_size_where_they_work(method):
    """Universal perturbations and class conditions add up over the batch: in the same order each time."""
    from neural_polarizer.lab.datasets.digits import digits
    from neural_polarizer.models.small_resnet import SmallResNet

    clean = digits(size=32).train.take(torch.arange(143))
    config = FitConfig(epochs=2, warmup_epochs=1, batch_size=143, share="target", target="random", steps=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [
            purify(SmallResNet(classes=10, stride=2), (clean.floats(), clean.labels), method=method, layer="layer3",
                   config=config, progress=False, capture="hooks").polarizer.state_dict()
            for _ in range(3)
        ]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(v, other[k]) for k, v in runs[0].items())
