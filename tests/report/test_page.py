from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

from neural_polarizer.history import History
from neural_polarizer.report.charts import curves_svg
from neural_polarizer.report.figures import Confusion, Count, Detection, Layer, Sample
from neural_polarizer.report.page import cells, render, write_report
from neural_polarizer.report.pictures import around_grey, heat_data_uri, png_data_uri

from .evidence import BAD_NAME, ROW, evidence, report


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("classes", [5, 30])
@pytest.mark.parametrize("other", ["triggered", "perturbed"])
def test_self_contained_and_accessible(classes, other):
    text = render(report(evidence=evidence(classes, other=other)))
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "link") or attributes.get("href") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
            if tag == "a":
                assert value is None or value[1:] in ids
        if tag == "img":
            assert len(attributes["alt"]) > 10
        if attributes.get("role") == "img":
            assert len(attributes["aria-label"]) > 10
    assert sum(tag == "svg" for tag, _ in page.tags) == sum(a.get("role") == "img" for _, a in page.tags) == 7
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_texts_of_others_are_escaped():
    text = render(report())
    assert "A &lt;title&gt; &amp; more" in text
    assert "&lt;i&gt;nothing" in text
    assert BAD_NAME not in text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;$\\frac{1}{&#34;&amp;&#39;" in text


def test_says_what_it_was_given():
    text = render(report())
    for words in (
        "98 %", "97 %", "ASR fell", "prefers-color-scheme: dark", "@media print", "99%", "76%", "which stands out",
        "93.8% (85.0–97.5) of the other classes' images end in it before", "0.250 away from the identity",
        "AUROC 0.", "88.7%", "a/very/long/path", "triggered images, after",
    ):  # fmt: skip
        assert words in text, words
    assert "No class stands out" in render(report(evidence=evidence(patterns=[])))
    assert "taken for" in render(report(evidence=evidence(labelled=False)))


def test_many_classes_are_pictures_with_the_mistakes_in_words():
    text = render(report(evidence=evidence(30)))
    assert "most frequent mistakes: 1 as 0 (4)" in text
    assert 'class="counts"' not in text
    assert 'class="counts"' in render(report())


def test_without_evidence_curves_or_trials():
    text = render(report(evidence=None, histories={"npd": History()}, tried=()))
    assert "<svg" not in text
    assert "<img" not in text
    assert "ASR fell" in text
    assert 'href="#images"' not in text


def test_the_identity_is_called_so():
    still = Layer(
        distance=(0.0,), difference=torch.zeros(4, 4), changed_clean=0.0, changed_other=0.0,
        shift_before=torch.ones(4), shift_after=torch.ones(4),
    )  # fmt: skip
    text = render(report(evidence=evidence(layer=still)))
    assert "It is the identity" in text
    assert "100% passes" in text


def test_photographs_stay_below_five_megabytes():
    assert len(render(report(evidence=evidence(12, side=224)))) < 5_000_000


def test_pixels_survive():
    picture = opened(png_data_uri(corner(4), side=16))
    assert picture.size == (16, 16)
    assert picture.getpixel((9, 5)) == (255, 255, 255)
    assert picture.getpixel((5, 9)) == (0, 0, 0)
    assert opened(png_data_uri(torch.rand(3, 500, 400, generator=torch.Generator()))).size == (128, 160)


def corner(side: int) -> torch.Tensor:
    image = torch.zeros(1, side, side)
    image[0, 1, 2] = 1
    return image


def opened(uri: str):
    import base64
    import io

    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_heat_is_transparent_at_zero_and_blue_at_the_largest():
    picture = opened(heat_data_uri(torch.tensor([[0.0, 4.0], [1.0, 0.0]]), side=2))
    assert picture.getpixel((0, 0))[3] == 0
    assert picture.getpixel((1, 0))[3] == 255
    assert 0 < picture.getpixel((0, 1))[3] < 255
    opened(heat_data_uri(torch.zeros(3, 3)))  # nothing to divide by


def test_a_difference_is_around_grey():
    picture = around_grey(torch.tensor([[[0.0, 0.2], [-0.1, 0.0]]]))
    assert picture.flatten().tolist() == pytest.approx([0.5, 1.0, 0.25, 0.5])


def test_curves_are_the_same_each_time():
    history = History([{"epoch": 1, **ROW}])
    first, second = (curves_svg(history, {"loss": "l"}) for _ in range(2))
    assert first == second
    assert "currentColor" in first


@pytest.mark.parametrize("missing", ["truth", "image", "after_confidence"])
def test_a_sample_needs_everything(missing):
    values = {
        "caption": "c", "image": torch.zeros(3, 2, 2), "truth": "1", "before": "1", "after": "1",
        "before_confidence": 1.0, "after_confidence": 1.0,
    }  # fmt: skip
    values.pop(missing)
    with pytest.raises(TypeError):
        Sample(**values)


def test_counts_know_their_interval():
    assert str(Count(39, 40)) == "97.5% (87.1–99.6)"
    assert str(Count(0, 0)) == "no image"
    assert Count(0, 0).to_dict() == {"share": 0.0, "hits": 0, "images": 0, "interval": None}


def test_confusion_counts_rows_of_the_truth():
    counts = Confusion.count(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    confusion = Confusion(caption="x", before=counts, after=torch.eye(3).long())
    assert confusion.mistakes(after=False) == [(0, 1, 1), (2, 1, 1)]
    assert confusion.mistakes(after=True) == []
    assert cells(confusion, False)[0] == [(1, 0.5), (1, 0.5), (0, 0.0)]


def test_the_roc_goes_from_nothing_to_everything():
    found = Detection(clean=torch.tensor([0.1, 0.2]), other=torch.tensor([0.2, 0.9]))
    assert found.auroc == 0.875
    false, true = found.curve()
    assert false == [0, 0, 0.5, 1]
    assert true == [0, 0.5, 1, 1]


def test_written_whole(tmp_path):
    write_report(tmp_path / "r.html", report())
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")
