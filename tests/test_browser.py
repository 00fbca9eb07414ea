"""The report in a real browser: headless Chromium, on a phone and on a desk, light and dark, offline.

Needs Debian's `chromium` (or another Chromium on the path) and the extra `browser`; skipped where one is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from neural_polarizer.report.page import write_report

from .report.evidence import BAD_NAME, evidence, report

playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install "neural-polarizer[browser]"')

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium")

PHONE, DESK, PAPER = 390, 1280, 718  # A4 less its margins, in CSS pixels
WIDE = [
    ("method", "ACC", "ASR", "RA", "DER", "AUROC", "parameters", "seconds"),
    ("before", "99.4% (98.0–99.8)", "100.0% (98.8–100.0)", "0.0% (0.0–1.2)", "", "", "", ""),
    (
        "after r-cnpd",
        "98.6% (96.8–99.4)",
        "100.0% (98.8–100.0)",
        "98.1% (96.0–99.1)",
        "0.993",
        "1.000",
        "10,880",
        "126.5",
    ),
]
WIDER_THAN_THE_PAGE = """
() => [...document.querySelectorAll("main *")].filter(e => {
  if (e.closest(".scroll") || e.closest("svg")) return false;
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as start:
        chromium = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "triggered": report(),
        "perturbed": report(evidence=evidence(11, other="perturbed", labelled=False), table=WIDE),
        "many classes": report(evidence=evidence(43), verdict="Not purified: " + BAD_NAME, good=False),
    }
    for name, page in made.items():
        write_report(folder / f"{name}.html", page)
    return {name: folder / f"{name}.html" for name in made}


class Opened:
    """A page, and everything that it said or asked for."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.requests: list[str] = []
        self.said: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.route("**/*", self._ask)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def _ask(self, route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
            return
        self.requests.append(route.request.url)
        route.abort()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_) -> None:
        self.context.close()

    def sizes(self) -> tuple[int, int]:
        return tuple(self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]"))


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["triggered", "perturbed", "many classes"])
def test_it_opens_offline_and_fits(browser, pages, name, width):
    size = {"width": width, "height": 900}
    with Opened(browser, pages[name], viewport=size, offline=True, color_scheme="dark") as opened:
        scroll, client = opened.sizes()
        assert scroll <= client == width
        assert opened.page.evaluate(WIDER_THAN_THE_PAGE) == []
        assert opened.page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert opened.page.evaluate("document.images.length") > 10
        picture = opened.page.screenshot(full_page=True)
        assert opened.requests == []
        assert opened.said == []
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == width  # of the PNG's header


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_key_figures_are_seen(browser, pages, width):
    with Opened(browser, pages["triggered"], viewport={"width": width, "height": 900}) as opened:
        page = opened.page
        for text in ("ASR fell from 99 % to 1 %", "after npd", "97 %", "2.5 %", "before: 1"):
            found = page.get_by_text(text).first
            found.scroll_into_view_if_needed()
            assert found.is_visible(), text
            box = found.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width + 1, text
        assert page.locator("#verdict").bounding_box()["y"] < 300, "the verdict comes first"
        assert page.locator("svg").count() == 7
        for chart in page.locator("svg").all():
            assert chart.bounding_box()["width"] > 0.7 * min(width, 400)
        words = page.locator("svg text").first.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")
        scale = page.locator("svg").first.evaluate("e => e.getScreenCTM().a")
        assert words * scale >= 9, "text of charts is read on a phone"


def test_dark_and_light_are_two_looks(browser, pages):
    looks = {}
    for scheme in ("light", "dark"):
        with Opened(browser, pages["triggered"], color_scheme=scheme) as opened:
            style = "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
            ink, paper = opened.page.locator("body").evaluate(style)
            chart = opened.page.locator("svg text").first.evaluate("e => getComputedStyle(e).fill")
            assert chart == ink, "charts are written in the ink of the page"
            looks[scheme] = brightness(ink), brightness(paper)
    assert looks["light"][0] < 0.2
    assert looks["light"][1] > 0.9
    assert looks["dark"][0] > 0.8
    assert looks["dark"][1] < 0.2


def brightness(colour: str) -> float:
    """Of ``rgb(r, g, b)``, from 0 to 1."""
    return sum(int(part) for part in colour[4:-1].split(",")[:3]) / 765


@pytest.mark.parametrize("name", ["triggered", "perturbed", "many classes"])
def test_it_prints_dark_on_white_whatever_the_scheme(browser, pages, name):
    with Opened(browser, pages[name], viewport={"width": PAPER, "height": 1000}, color_scheme="dark") as opened:
        opened.page.emulate_media(media="print", color_scheme="dark")
        scroll, client = opened.sizes()
        assert scroll <= client == PAPER
        ink = opened.page.locator("body").evaluate("e => getComputedStyle(e).color")
        assert brightness(ink) < 0.1
        assert not opened.page.locator("nav").is_visible()
        assert opened.page.pdf(format="A4").startswith(b"%PDF")


def test_links_of_the_contents_lead_somewhere(browser, pages):
    with Opened(browser, pages["triggered"]) as opened:
        links = opened.page.locator("nav a").all()
        assert len(links) == 10
        for link in links:
            assert opened.page.locator(link.get_attribute("href")).count() == 1


def test_the_guard_sees_what_it_should(browser, tmp_path):
    """Or all the silence above would prove nothing."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><main style="width: 900px">wide</main><img src="https://example.org/x.png">'
        "<script>console.error('oh'); throw new Error('no')</script>"
    )
    with Opened(browser, bad, viewport={"width": PHONE, "height": 900}) as opened:
        scroll, client = opened.sizes()
        assert scroll > client == PHONE
        assert opened.requests == ["https://example.org/x.png"]
        assert any("oh" in text for text in opened.said)
        assert any("no" in text for text in opened.said)
