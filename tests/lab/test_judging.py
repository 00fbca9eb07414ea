"""One image judged: the same figures as `predict`, the place among clean images, the switches."""

from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError, PolarizedModel
from neural_polarizer.build import build_polarizer
from neural_polarizer.lab.attacks.badnets import BadNets
from neural_polarizer.lab.datasets.base import to_bytes
from neural_polarizer.lab.datasets.images import read_image, write_image
from neural_polarizer.lab.judging import Judge

from ..nets import SHAPE, images, make


def purified_model() -> PolarizedModel:
    """A network and a polarizer that is not the identity, so that the two answers differ."""
    net = make("plain")
    net.fc.weight.data *= 30
    polarizer = build_polarizer("full", channels=8, channel_dim=-1)
    for p in polarizer.parameters():
        p.data += 0.4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return PolarizedModel(net, polarizer, "fc", image_shape=SHAPE).eval()


@pytest.fixture
def file(tmp_path):
    write_image(tmp_path / "one.png", images(1)[0])
    return tmp_path / "one.png"


def test_what_is_said_is_what_predict_says(file):
    purified = purified_model()
    said = purified.predict(read_image(file)[None])
    found = Judge(purified, names=("ant", "bee", "cat", "dog", "eel")).judge(file)
    names = ["ant", "bee", "cat", "dog", "eel"]
    assert next(iter(found.original)) == names[int(said.original.argmax())]
    assert next(iter(found.purified)) == names[int(said.logits.argmax())]
    assert sum(found.purified.values()) == pytest.approx(1)
    assert found.score == pytest.approx(float(said.score[0]))
    assert found.suspect == bool(said.suspect[0])
    assert found.place is None


def test_the_place_is_the_share_of_clean_images_with_a_lower_score(file):
    purified = purified_model()
    clean = to_bytes(images(20, seed=3))
    found = Judge(purified, clean=clean).judge(file)
    scores = purified.predict(clean.float() / 255).score
    assert found.place == pytest.approx(float((scores < found.score).float().mean()))
    larger = torch.nn.functional.interpolate(clean.float(), scale_factor=2, mode="nearest").to(torch.uint8)
    assert len(Judge(purified, clean=larger).scores) == 20  # of any size


def test_switched_off_both_answers_are_the_original(file):
    judge = Judge(purified_model())
    off, on = judge.judge(file, polarized=False), judge.judge(file)
    assert off.purified == off.original == on.original
    assert on.purified != on.original
    assert off.score == 0
    assert not off.suspect


def test_the_trigger_is_the_attacks(file):
    attack = BadNets()
    judge = Judge(purified_model(), attack=attack)
    shown = judge.judge(file, triggered=True).shown
    assert torch.equal(to_bytes(shown), to_bytes(attack.trigger(read_image(file)[None])[0]))
    assert torch.equal(judge.judge(file).shown, read_image(file))


def test_what_cannot_be_judged_is_said(file, tmp_path):
    judge = Judge(purified_model())
    with pytest.raises(InputError, match="attack: found none"):
        judge.judge(file, triggered=True)
    with pytest.raises(InputError, match="attack: the trigger of badnets does not fit images of 3x8x8"):
        Judge(purified_model(), attack=BadNets(size=9))
    (tmp_path / "bad.png").write_bytes(b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(InputError, match="cannot be read as an image"):
        judge.judge(tmp_path / "bad.png")


def test_names_that_occur_twice_stay_apart(file):
    found = Judge(purified_model(), names=("a", "a", "a")).judge(file)
    assert set(found.original) == {"a", "a (1)", "a (2)", "3", "4"}
