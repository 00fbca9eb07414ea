"""The evidence of a report on a network whose backdoor, and whose cure, are known exactly."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from neural_polarizer import FitConfig, InputError, PolarizedModel
from neural_polarizer.build import build_polarizer
from neural_polarizer.lab.evidence import Trigger, class_names, evidence_of, rates_note, rates_table
from neural_polarizer.lab.features import LARGEST, features_of, matrices, pooled, projected
from neural_polarizer.lab.patterns import MOST_CLASSES, classes_shown, family_of, in_words, seek
from neural_polarizer.mixture import Family
from neural_polarizer.suspicion import Suspicion

LEVELS = torch.tensor([0.2, 0.5, 0.8])
SHAPE = (3, 8, 8)
REST = 0.05  # what the channel for blue has without any, so that a gradient passes its ReLU


def classifier(channels: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(
            nn.Conv2d(3, channels, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)
        ).eval()  # fmt: skip


def network() -> nn.Module:
    """Three classes, told apart by how red an image is; any blue means class 0."""
    net = classifier(2)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]])[..., None, None])
        net[0].bias.copy_(torch.tensor([0.0, REST]))
        net[4].weight.copy_(200 * torch.stack([2 * LEVELS, torch.tensor([10.0, 0, 0])], 1))
        net[4].bias.copy_(-200 * (LEVELS**2 + torch.tensor([10 * REST, 0, 0])))
    return net


def cured(structure: str = "full", **options) -> PolarizedModel:
    """The network with a polarizer at the identity, where it is a full one without blue."""
    polarizer = build_polarizer(structure, channels=2, channel_dim=1, **options)
    if structure == "full":
        polarizer.weight.data[1, 1], polarizer.norm.bias.data[1] = 0, REST
    return PolarizedModel(network(), polarizer, "1", image_shape=SHAPE)


def images(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C, H, W) uint8 and labels (N,)."""
    labels = torch.arange(count) % 3
    out = torch.zeros(count, *SHAPE)
    noise = torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(0))
    out[:, 0] = LEVELS[labels][:, None, None] + 0.1 * (noise - 0.5)
    return (out * 255).round().to(torch.uint8), labels


def blue(x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    out[:, 2] = 1
    return out


BLUE = Trigger("a blue cast", blue, 0)


def test_a_known_trigger():
    x, labels = images()
    e = evidence_of(cured(), x, labels, trigger=BLUE)
    assert (e.other, e.target, e.labelled) == ("triggered", 0, True)
    assert [c.hits for c in e.acc] == [30, 30]
    assert e.asr == ((20, 20), (0, 20)), "only images of other classes count"
    assert e.ra == ((0, 20), (20, 20))
    assert e.detection.auroc == 1.0
    clean, other = e.confusions
    assert clean.before.tolist() == clean.after.tolist() == torch.diag(torch.tensor([10, 10, 10])).tolist()
    assert other.before.tolist() == [[0, 0, 0], [10, 0, 0], [10, 0, 0]]
    assert other.after.tolist() == [[0, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert [c.truth for c, _ in e.pairs] == ["1", "2"]
    for plain, triggered in e.pairs:
        assert (plain.before, plain.after) == (plain.truth, plain.truth)
        assert (triggered.before, triggered.after) == ("0", triggered.truth)
        assert triggered.before_confidence > 0.99
        assert triggered.image[2].min() == 1
        assert plain.image[2].max() == 0
    assert rates_table(e)[1:] == [
        ("before", "100.0% (88.6–100.0)", "100.0% (83.9–100.0)", "0.0% (0.0–16.1)"),
        ("after", "100.0% (88.6–100.0)", "0.0% (0.0–16.1)", "100.0% (83.9–100.0)"),
    ]
    assert "20 of them with the trigger" in rates_note(e)


def test_the_polarizer_and_the_features():
    x, labels = images()
    e = evidence_of(cured(), x, labels, trigger=BLUE)
    assert e.layer.distance == pytest.approx([0.5**0.5], abs=1e-3)  # one of two channels is gone
    assert e.layer.difference.shape == (2, 2)
    assert e.layer.difference.argmax() == 3
    assert e.layer.changed_clean == pytest.approx(0, abs=1e-3)
    assert e.layer.changed_other > 0.5
    assert e.layer.strongest(1) == [1]
    assert e.layer.passed < 1e-3
    p, logits = e.projections
    assert (p.clean_before.mean(0) - p.other_before.mean(0)).norm() > 0.5
    torch.testing.assert_close(p.clean_after, p.clean_before, atol=1e-3, rtol=0)
    torch.testing.assert_close(p.other_after, p.clean_before, atol=1e-3, rtol=0)
    assert sum(p.explained) == pytest.approx(1, abs=1e-4)
    assert (logits.clean_before.mean(0) - logits.other_before.mean(0)).norm() > 100
    torch.testing.assert_close(logits.other_after, logits.clean_before, atol=1, rtol=0)


def test_without_a_trigger_the_strongest_pattern_finds_the_backdoor():
    x, labels = images()
    purified = cured()
    e = evidence_of(purified, x, labels, ("cat", "dog", "eel"))
    assert (e.other, e.target) == ("perturbed", 0)
    (out,) = [p for p in e.patterns if p.stands_out]
    assert out.name == "0 (cat)"
    assert out.reached == (20, 20)
    assert out.left.share < 0.5
    assert out.again.share < 1
    assert out.before[2].mean() > 0.9, "the pattern is the backdoor's"
    assert all(p.reached.share < 0.9 for p in e.patterns if not p.stands_out)
    assert e.asr[0].share == 1
    assert e.ra[1].hits > 10
    assert "perturbed: to class 0" in rates_table(e)[0]
    told = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert told["classes"][0]["reached_before"]["share"] == 1
    assert told["asr"]["before"]["hits"] == 20
    again = evidence_of(cured(), x, labels, ("cat", "dog", "eel"))
    assert again.to_dict() == e.to_dict()
    assert torch.equal(again.patterns[1].after, e.patterns[1].after)


def test_without_labels_the_original_predictions_stand_for_them():
    x, labels = images()
    e = evidence_of(cured(), x, None, trigger=BLUE)
    assert not e.labelled
    assert e.acc[0].share == 1
    assert e.asr[0] == (20, 20)
    assert rates_table(e)[0][1] == "agreement"
    assert "No labels were given" in rates_note(e)
    assert len(labels) == e.acc[0].images


def test_images_of_one_class_alone_are_enough_where_no_trigger_is_known():
    x, labels = images()
    e = evidence_of(cured(), x[labels == 0], labels[labels == 0])
    assert e.target != 0
    assert e.asr[0].images == 10
    assert e.patterns[0].reached.images == 0


def test_all_to_all_counts_the_next_class():
    x, labels = images()
    shifted = Trigger("to the next", lambda t: torch.roll(t, 0, 0), None)
    e = evidence_of(cured(), x, labels, trigger=shifted)
    assert e.asr[0] == (0, 30)
    assert e.ra[0] == (30, 30)


def test_what_cannot_be_judged_is_said():
    x, labels = images()
    with pytest.raises(InputError, match="found 1 images to judge on"):
        evidence_of(cured(), x[:1], labels[:1])
    with pytest.raises(InputError, match="all images are of class 0"):
        evidence_of(cured(), x[labels == 0], labels[labels == 0], trigger=BLUE)

    def learned_elsewhere(t: torch.Tensor) -> torch.Tensor:
        return t + torch.zeros(3, 9, 9)

    with pytest.raises(InputError, match="its trigger does not fit images of shape"):
        evidence_of(cured(), x, labels, trigger=Trigger("x", learned_elsewhere, 0))


@pytest.mark.parametrize(
    ("structure", "options", "maps"),
    [
        ("replicated", {"classes": 3}, 3), ("embedded", {"classes": 3, "dim": 2}, 1),
        ("attentive", {"classes": 3, "dim": 2}, 1), ("position", {"shape": (2, 8, 8)}, 0), ("relu", {}, 0),
        ("low-rank", {"rank": 1}, 1), ("diagonal", {}, 1),
    ],
)  # fmt: skip
def test_every_structure_at_the_identity(structure, options, maps):
    x, labels = images(12)
    e = evidence_of(cured(structure, **options), x, labels, trigger=BLUE)
    assert len(e.layer.distance) == maps
    assert all(d < 1e-3 for d in e.layer.distance)
    assert e.layer.passed == pytest.approx(1, abs=1e-3)
    assert e.asr[0] == e.asr[1]


def test_matrices_are_what_the_classes_get():
    polarizer = build_polarizer("replicated", channels=4, channel_dim=1, classes=3)
    polarizer.weight.data += torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    m = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    out = polarizer(m, torch.arange(3)) - polarizer(0 * m, torch.arange(3))
    for c, matrix in enumerate(matrices(polarizer)):
        torch.testing.assert_close(torch.einsum("ij,jhw->ihw", matrix, m[c]), out[c])


def test_large_matrices_are_made_small():
    net, polarizer = classifier(100), build_polarizer("full", channels=100, channel_dim=1)
    purified = PolarizedModel(net, polarizer, "1", image_shape=SHAPE)
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(6, dtype=torch.long)
    layer, projection = features_of(purified, x, given, x.flip(-1), given)
    assert layer.difference.shape == (LARGEST, LARGEST)
    assert projection.other_after.shape == (6, 2)
    before, after, changed = pooled(purified, x, given)
    assert before.shape == (6, 100)
    torch.testing.assert_close(before, after)
    assert changed < 1e-4


def test_the_projection_is_pca():
    decomposition = pytest.importorskip("sklearn.decomposition")
    sides = [torch.rand(20, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = projected("x", *sides)
    pca = decomposition.PCA(2, svd_solver="full").fit(torch.cat(sides[:2]).double().numpy())
    assert found.explained == pytest.approx(pca.explained_variance_ratio_.tolist(), abs=1e-6)
    wanted = torch.from_numpy(pca.transform(sides[3].double().numpy())).float()
    torch.testing.assert_close(found.other_after.abs(), wanted.abs(), atol=1e-5, rtol=1e-4)
    one = projected("x", *(side[:, :1] for side in sides))
    assert one.clean_before.shape == (20, 2)
    assert one.explained == (1.0, 0.0)


def test_which_kind_of_pattern_is_sought():
    mixture = FitConfig.in_rounds().mixture
    assert family_of(None).threat == "l2"
    rows = [[0.1, 0.1, 0.2] for _ in mixture]
    rows[5] = [0.9, 0.1, 0.1]
    known = Suspicion((0.8, 0.0, 0.1), tuple(map(tuple, rows)))
    assert family_of(known) == mixture[5]
    assert family_of(Suspicion((0.8,), ((0.9,),))) == family_of(None), "of another mixture nothing is known"
    for family in mixture:
        assert any(word in in_words(family, (3, 64, 64)) for word in ("L2", "warp", "square", "pixels", "tones"))


def test_of_many_classes_those_that_stand_out_are_shown():
    excess = [0.0] * 40
    excess[33] = 0.7
    shown = classes_shown(40, Suspicion(tuple(excess), ()))
    assert len(shown) == MOST_CLASSES
    assert 33 in shown
    assert shown == sorted(shown)
    assert classes_shown(40, None) == list(range(MOST_CLASSES))
    assert classes_shown(5, None) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threat", ["patch", "pixels", "flow", "smooth", "wave"])
def test_patterns_of_every_kind_stay_in_bounds(threat):
    x, labels = images(12)
    floats = x.float() / 255
    family = Family(threat=threat, radius=2.0, share="target", steps=40)
    for found in seek(network(), floats, labels, [0, 2], family, seed=0):
        changed = found.on(floats)
        assert changed.shape == floats.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        if threat == "pixels":
            assert int(((changed - floats).abs().amax(1) > 1e-6).sum((1, 2)).max()) <= 2


def test_names_of_classes():
    assert class_names(("cat", "dog"), 3) == ("0 (cat)", "1 (dog)", "2")
    assert class_names(("0", "2", "10"), 3) == ("0", "1", "2")
    assert class_names((), 2) == ("0", "1")
