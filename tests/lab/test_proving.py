"""The attacks work: on digits, with the recipe and the settings of the docs' table."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from neural_polarizer import InputError
from neural_polarizer.lab.backdoor import Victim
from neural_polarizer.lab.datasets.digits import digits
from neural_polarizer.lab.proving import LABELS, Proof, recipe_for, run_attacks, table_of
from neural_polarizer.models.zoo import build_model


def victim() -> Victim:
    data = digits()
    recipe = recipe_for("digits", data.shift, data.mirror, build_model("small_resnet", classes=10))
    return Victim(data, "small_resnet", {}, recipe)


def check(proof: Proof):
    assert proof.acc >= proof.twin_acc - 0.02, proof.label
    bar = {"sig": 0.8, "lc": 0.8, "badnets_all": proof.acc - 0.05}.get(proof.label, 0.9)
    assert proof.asr >= bar, proof.label
    assert proof.twin_asr < 0.5, "the clean twin does not have the backdoor"


@pytest.mark.slow
def test_two_attacks_on_digits(tmp_path):
    proofs = run_attacks(tmp_path, victim(), ["badnets", "ftrojan"], target=8, progress=False)
    for proof in proofs:
        check(proof)
    assert [p.split for p in proofs] == ["development", "test"]
    record = json.loads((tmp_path / "attacks.json").read_text())
    assert [row["label"] for row in record["attacks"]] == ["badnets", "ftrojan"]
    assert len(table_of(proofs)) == 4
    with Image.open(tmp_path / "triggers.png") as picture:
        assert picture.width > 150
    again = run_attacks(tmp_path, victim(), ["ftrojan"], target=8, progress=False)
    assert again == proofs[1:], "what is there is read, not trained"


@pytest.mark.slow
def test_every_attack_on_digits(tmp_path):
    proofs = run_attacks(tmp_path, victim(), LABELS, target=8, progress=False)
    assert len(proofs) == 14
    for proof in proofs:
        check(proof)


def test_transformers_and_convnext_are_trained_with_adamw():
    for arch, wanted in (("transformers:vit", "adamw"), ("transformers:convnext", "adamw"), ("vgg19_bn", "sgd")):
        options = {"width": 8} if arch == "vgg19_bn" else {"width": 16, "depth": 1}
        recipe = recipe_for("cifar10", 2, True, build_model(arch, classes=3, **options))
        assert recipe.optimizer == wanted
        assert (recipe.shift, recipe.mirror) == (2, True)


def test_bad_requests(tmp_path):
    with pytest.raises(InputError, match="only: found 'wanet_al'"):
        run_attacks(tmp_path, victim(), ["wanet_al"], progress=False)
    with pytest.raises(InputError, match="only: found no attack"):
        run_attacks(tmp_path, victim(), [], progress=False)
    with pytest.raises(InputError, match="only: found .sig_all.|clean-label"):
        run_attacks(tmp_path, victim(), ["sig_all"], progress=False)
