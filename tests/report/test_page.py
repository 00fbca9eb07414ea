from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

from neural_polarizer.history import History
from neural_polarizer.report.page import Report, Sample, curves_svg, png_data_uri, render, write_report

ROW = {
    "loss": 1.0,
    "loss_bn": 0.5,
    "loss_ce": 1.0,
    "loss_max": 0.3,
    "loss_asr": 0.2,
    "clean_accuracy": 0.9,
    "reached": 0.5,
}


def sample(caption: str, after: str) -> Sample:
    return Sample(
        caption=caption, image=torch.rand(3, 16, 16, generator=torch.Generator()), truth="3", before="0", after=after
    )


def report(**changes) -> Report:
    return Report(
        **{
            "title": "A <title> & more",
            "verdict": "ASR fell from 99 % to 1 %",
            "good": True,
            "table": [("method", "ACC"), ("before", "98 %"), ("after npd", "97 %")],
            "setting": {"seed": "0"},
            "pairs": [(sample("clean", "3"), sample("triggered", "7"))],
            "histories": {"npd": History([{"epoch": 1, **ROW}, {"epoch": 2, **ROW}])},
            **changes,
        }
    )


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_self_contained_and_accessible():
    text = render(report())
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        if tag == "img":
            assert attributes["alt"]
    assert not re.search(r"url\((?!#)", text)
    assert "A &lt;title&gt; &amp; more" in text
    assert text.count("<svg") == 2
    for word in ("98 %", "97 %", "ASR fell", "prefers-color-scheme: dark", "@media print"):
        assert word in text


def test_without_pictures_or_curves():
    assert "<svg" not in render(report(pairs=(), histories={"npd": History()}))


def test_pixels_survive():
    import base64
    import io

    from PIL import Image

    image = torch.zeros(1, 4, 4)
    image[0, 1, 2] = 1
    picture = Image.open(io.BytesIO(base64.b64decode(png_data_uri(image, side=16).split(",")[1])))
    assert picture.size == (16, 16)
    assert picture.getpixel((9, 5)) == (255, 255, 255)
    assert picture.getpixel((5, 9)) == (0, 0, 0)


def test_curves_are_the_same_each_time():
    history = History([{"epoch": 1, **ROW}])
    first, second = (re.sub(r'"[#a-z]*[0-9a-f]{10}"', "", curves_svg(history, {"loss": "l"})) for _ in range(2))
    assert first.count("<path") == second.count("<path")
    assert "currentColor" in first


@pytest.mark.parametrize("missing", ["truth", "image"])
def test_a_sample_needs_everything(missing):
    values = {"caption": "c", "image": torch.zeros(3, 2, 2), "truth": "1", "before": "1", "after": "1"}
    values.pop(missing)
    with pytest.raises(TypeError):
        Sample(**values)


def test_written_whole(tmp_path):
    write_report(tmp_path / "r.html", report())
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")
