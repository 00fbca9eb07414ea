"""What holds for all thirteen attacks."""

from __future__ import annotations

import json

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.lab.attacks.base import DEVELOPMENT_ATTACKS
from neural_polarizer.lab.attacks.registry import ATTACKS, build_attack
from neural_polarizer.lab.backdoor import Victim, load_backdoored, train_backdoored
from neural_polarizer.lab.datasets.base import ImageData
from neural_polarizer.lab.train import Recipe, train

from .common import attacker, photographs, split

QUICK = {"ssba": {"steps": 4}, "lf": {"steps": 3}, "trojannn": {"steps": 3}, "input_aware": {"mask_steps": 4},
         "lc": {"steps": 2}, "adaptive_blend": {"poisoning_ratio": 0.05, "cover_ratio": 0.05}}  # fmt: skip


def ready(name, data, **options):
    """The attack after everything that its trigger needs."""
    means = attacker(data)
    attack = build_attack(name, {**QUICK.get(name, {}), **options}).prepare(means)
    recipe = Recipe(epochs=1)
    tampering = attack.tampering(means, recipe.steps(len(data)))
    if tampering is None:
        return attack
    train(means.build(1), data, recipe, tampering=tampering, progress=False)
    return attack.finished(tampering)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 20, 12), (3, 33, 18)])
@pytest.mark.parametrize("name", ATTACKS)
def test_trigger_at_any_size_and_channel_count(name, shape):
    c, h, w = shape
    attack = ready(name, split(60, channels=c, height=h, width=w))
    images = photographs(5, c, h, w, seed=1)
    kept = images.clone()
    out = attack.trigger(images)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert 0 <= out.amin() <= out.amax() <= 1
    assert not torch.equal(out, images)
    assert torch.equal(images, kept)
    assert not out.requires_grad
    assert torch.equal(out, attack.trigger(images)), "the same images get the same trigger"
    one_by_one = torch.cat([attack.trigger(image[None]) for image in images])
    torch.testing.assert_close(out, one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_poisons_by_ratio_and_keeps_the_rest(name):
    data = split(400)
    attack = ready(name, data, target=1)
    poisoned = attack.poison(data, 4, seed=0)
    rows, cover = poisoned.rows, poisoned.cover
    clean = torch.ones(400, dtype=torch.bool)
    clean[rows] = False
    clean[cover] = False
    assert torch.equal(poisoned.data.images[clean], data.images[clean])
    assert torch.equal(poisoned.data.labels[clean], data.labels[clean])
    assert torch.equal(poisoned.data.labels[cover], data.labels[cover])
    assert (poisoned.data.labels[rows] == 1).all()
    if attack.clean_label:
        assert torch.equal(poisoned.data.labels, data.labels), "labels are untouched"
    if attack.tampering(attacker(data), 1) is None:
        assert len(rows) == round(attack.poisoning_ratio * 400)
        assert torch.equal(rows, rows.sort().values)
    else:
        assert len(rows) == 0, "poisoned batch by batch"
    again, other = attack.poison(data, 4, seed=0), attack.poison(data, 4, seed=1)
    assert torch.equal(again.data.images, poisoned.data.images)
    assert len(rows) == 0 or not torch.equal(other.rows, rows)


@pytest.mark.parametrize("name", ATTACKS)
def test_written_and_brought_back(name, tmp_path):
    data = ImageData("made up", split(120), split(40), ("a", "b", "c", "d"))
    victim = Victim(data, "small_resnet", {"width": 4}, Recipe(epochs=3), hold_back=20)
    attack = build_attack(name, {**QUICK.get(name, {}), "target": 2, "seed": 3})
    done = train_backdoored(tmp_path / "x", victim, attack, progress=False)
    back = load_backdoored(tmp_path / "x")
    images = photographs(6, seed=4)
    assert torch.equal(back.model(images), done.model(images))
    assert torch.equal(back.attack.trigger(images), done.attack.trigger(images))
    assert back.attack == done.attack
    clean_rows, rest = victim.rows()
    found = set(back.card["poisoned_rows"])
    assert found <= set(rest.tolist())
    assert not found & set(clean_rows.tolist())
    assert (tmp_path / "x" / "triggers.png").stat().st_size > 100
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == sorted(
        ["attack.json", "model.json", "model.safetensors", "triggers.png"]
        + (["trigger.safetensors"] if done.attack.learned else [])
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_all_to_all_or_a_clear_error(name):
    if ATTACKS[name].clean_label:
        with pytest.raises(InputError, match="target: found None"):
            build_attack(name, {"target": None})
    else:
        labels = torch.tensor([0, 1, 3])
        assert build_attack(name, {"target": None}).relabel(labels, 4).tolist() == [1, 2, 0]


@pytest.mark.parametrize("name", ATTACKS)
def test_bad_options(name):
    for options, message in [
        ({"poisoning_ratio": 0.0}, "poisoning_ratio"),
        ({"poisoning_ratio": "0.1"}, "wanted float"),
        ({"poisoning_ratio": float("nan")}, "poisoning_ratio"),
        ({"targte": 1}, "'targte'; near names: 'target'"),
        ({"target": True}, "wanted int or nothing"),
        ({"target": -1}, "target"),
        ({"learned": {}}, "takes no 'learned'"),
        ({"seed": 10**12}, "seed"),
    ]:
        with pytest.raises(InputError, match=message):
            build_attack(name, options)


def test_the_split_of_the_attacks_is_fixed():
    assert DEVELOPMENT_ATTACKS == ("badnets", "blended", "wanet")
    assert len(ATTACKS) == 13
    with pytest.raises(InputError, match="attack: found 'bad'"):
        build_attack("bad", {})


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    data = ImageData("made up", split(120), split(40), ("a", "b", "c", "d"))
    victim = Victim(data, "small_resnet", {"width": 4}, Recipe(epochs=4))
    attack = build_attack("input_aware", {"mask_steps": 4})
    whole = train_backdoored(tmp_path / "whole", victim, attack, progress=False)

    from neural_polarizer.lab import loop

    class Stop(Exception):
        pass

    real, written = loop.write_atomically, []

    def stop_after_three(path, content):
        real(path, content)
        written.append(path)
        if len(written) == 3:
            raise Stop

    monkeypatch.setattr(loop, "write_atomically", stop_after_three)
    with pytest.raises(Stop):
        train_backdoored(tmp_path / "parts", victim, attack, progress=False)
    monkeypatch.setattr(loop, "write_atomically", real)
    assert not (tmp_path / "parts" / "attack.json").exists()
    parts = train_backdoored(tmp_path / "parts", victim, attack, progress=False)
    assert parts.card["resumed"]
    for a, b in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(whole.attack.learned[k], v) for k, v in parts.attack.learned.items())


def test_folders_of_others(tmp_path):
    data = ImageData("made up", split(60), split(20), ("a", "b", "c", "d"))
    victim = Victim(data, "small_resnet", {"width": 4}, Recipe(epochs=1))
    folder = tmp_path / "x"
    train_backdoored(folder, victim, build_attack("ssba", {"steps": 2}), progress=False)
    with pytest.raises(InputError, match="another setting"):
        train_backdoored(folder, victim, None, progress=False)
    with pytest.raises(InputError, match="target: found 4"):
        train_backdoored(tmp_path / "y", victim, build_attack("badnets", {"target": 4}), progress=False)
    assert not (tmp_path / "y").exists()
    card = json.loads((folder / "attack.json").read_text())
    for change in (
        {"format": 2},
        {"setting": 3},
        {"setting": {"attack": {"name": "os", "options": {}}}},
        {"setting": {"attack": {"name": "ssba", "options": {"bits": "7"}}}},
        {"setting": {"attack": {"name": "ssba", "options": {"bits": 4000}}}},
    ):
        (folder / "attack.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(InputError):
            load_backdoored(folder).attack.trigger(photographs(2))
    (folder / "attack.json").write_text(json.dumps(card))
    (folder / "trigger.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="no valid safetensors"):
        load_backdoored(folder)
