"""The card beside a saved polarizer: what it says, what it cannot be made to say, and whose README it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from neural_polarizer import FitConfig, InputError, PolarizedModel, __version__, purify
from neural_polarizer.card import CARD_FILE, as_code
from neural_polarizer.saved import CONFIG_FILE

from .nets import images, labels, make


def fitted(layer: str = "conv2", **options) -> PolarizedModel:
    config = FitConfig(epochs=1, warmup_epochs=0, **options)
    return purify(
        make("plain"),
        (images(12), labels(12)),
        method="npd",
        layer=layer,
        config=config,
        progress=False,
        capture="hooks",
    )


def chosen() -> PolarizedModel:
    net = make("plain")
    net.fc.weight.data *= 30
    config = FitConfig.in_rounds(epochs=1, least_steps=0, views=0, mixture=())
    return purify(net, (images(20), labels(20)), layer="conv2", config=config, progress=False, capture="hooks")


def test_what_it_says(tmp_path):
    fitted().save_pretrained(tmp_path)
    text = (tmp_path / CARD_FILE).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "neural-polarizer",
        "pipeline_tag": "image-classification",
        "tags": ["neural-polarizer", "backdoor-defense"],
    }
    for said in (
        "- Method: `npd`", "- Before the layer: `conv2`", "- Structure: `full`, 6 channels, 48 parameters",
        "- Images: 3 x 8 x 8, in [0, 1]; 5 classes", "- Clean images: 12", "None are recorded: where layer, method and settings",
        f"neural-polarizer {__version__} and torch {torch.__version__}", "No proof that the classifier had a backdoor",
    ):  # fmt: skip
        assert said in body


def test_its_code_runs(tmp_path):
    purified = fitted()
    purified.save_pretrained(tmp_path)
    code = (tmp_path / CARD_FILE).read_text().split("```python\n")[1].split("```")[0]
    names = {"model": make("plain"), "images": images()}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)  # noqa: S102
    assert torch.equal(names["logits"], purified(images()))
    assert names["suspect"].shape == (6,)


def test_figures_of_a_choice_outlive_loading(tmp_path):
    purified = chosen()
    purified.save_pretrained(tmp_path / "a")
    first = (tmp_path / "a" / CARD_FILE).read_text()
    c = purified.choice
    assert f"On {c.held_back} clean images that no fit has seen, accuracy went from {c.accuracy_before:.1%}" in first
    assert f"Of {c.perturbed} perturbed images that fool the original classifier, {c.repaired:.1%}" in first
    assert ("this polarizer changes nothing" in first) != c.within_budget
    loaded = PolarizedModel.from_pretrained(purified.base, tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / CARD_FILE).read_text() == first
    assert (tmp_path / "b" / CONFIG_FILE).read_text() == (tmp_path / "a" / CONFIG_FILE).read_text()


@pytest.mark.parametrize(
    "hostile",
    ["`", "```", "a\n---\nlicense: mit\n", "x`<script>alert(1)</script>", "\u202egnp.exe", "[a](http://b)\r\n# Title", " ", "", "a" * 9999],
)  # fmt: skip
def test_a_name_stays_one_code_span(hostile, tmp_path):
    shown = as_code(hostile)
    assert "\n" not in shown
    assert "\r" not in shown
    assert shown.isprintable()
    assert len(shown) < 1000
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert shown.endswith(fence)
    assert fence not in shown[len(fence) : -len(fence)]
    purified = fitted()
    purified.method = purified.layer = hostile
    purified._save(tmp_path, "x/y")
    text = (tmp_path / CARD_FILE).read_text()
    assert yaml.safe_load(text.split("---\n", 2)[1])["library_name"] == "neural-polarizer"
    assert text.count("\n# ") == 1
    assert f"- Method: {shown}\n" in text


def test_a_readme_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / CARD_FILE).write_text("# Mine\n")
    fitted().save_pretrained(tmp_path)
    assert (tmp_path / CARD_FILE).read_text() == "# Mine\n"
    (tmp_path / CARD_FILE).unlink()
    fitted().save_pretrained(tmp_path)
    fitted(layer="fc").save_pretrained(tmp_path)
    assert "`fc`" in (tmp_path / CARD_FILE).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_images": "12"}, "clean_images"),
        ({"clean_images": -1}, "clean_images"),
        ({"judged": {"held_back": 1}}, "judged"),
        ({"judged": [1]}, "judged"),
        ({"judged": "nan"}, "judged"),
        ({"judged": "text"}, "judged"),
    ],
)
def test_hostile_figures_are_refused(changes, message, tmp_path):
    chosen().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    if isinstance(changes.get("judged"), str):
        changes = {"judged": {**config["judged"], "repaired": float("nan") if changes["judged"] == "nan" else "<b>"}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=message):
        PolarizedModel.from_pretrained(make("plain"), tmp_path)


def test_folders_from_before_there_were_cards(tmp_path):
    purified = fitted()
    purified.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("clean_images", "judged")})
    )
    loaded = PolarizedModel.from_pretrained(make("plain"), tmp_path)
    assert torch.equal(loaded(images()), purified(images()))
    loaded.save_pretrained(tmp_path)
    assert "- Clean images: not known" in (tmp_path / CARD_FILE).read_text()
