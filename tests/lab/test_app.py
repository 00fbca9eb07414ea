"""The app: what it shows, without Gradio; served on the loopback address; and looked at by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import types
import urllib.error
import urllib.request

import pytest
import torch

from neural_polarizer.lab import app
from neural_polarizer.lab.attacks.badnets import BadNets
from neural_polarizer.lab.datasets.base import to_bytes
from neural_polarizer.lab.datasets.images import write_image
from neural_polarizer.lab.judging import Judge, Judgement

from ..nets import images
from ..test_cli_purify import run
from .test_judging import purified_model


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(purified_model(), clean=to_bytes(images(30, seed=3)), attack=BadNets())


@pytest.fixture
def file(tmp_path):
    write_image(tmp_path / "one.png", images(1)[0])
    return tmp_path / "one.png"


def found(score=0.0, suspect=False, place=None, name="cat") -> Judgement:
    return Judgement(torch.zeros(3, 8, 8), {name: 0.9}, {"dog" if suspect else name: 0.8}, suspect, score, place)


def test_the_verdict_in_words():
    scores = torch.linspace(-0.1, 0.1, 200)
    said = app.verdict_html(found(0.8, suspect=True, place=1.0), scores, True)
    assert 'class="verdict suspect"' in said
    assert "The original model says <b>cat</b>, the purified one <b>dog</b>." in said
    assert "score +0.800" in said
    assert "higher than that of 100% of 200 clean images" in said
    assert "That is unusual" in app.verdict_html(found(0.09, place=0.97), scores, True)
    assert "That is unusual" not in app.verdict_html(found(0.0, place=0.5), scores, True)
    assert "--clean FOLDER" in app.verdict_html(found(), None, True)
    assert "The polarizer is off" in app.verdict_html(found(), scores, False)
    assert "<script>" not in app.verdict_html(found(name="<script>"), scores, True)


def test_the_histogram_has_the_scores_and_the_mark():
    drawn = app.histogram(torch.tensor([-1.0, 0.01, 0.02, 1.0]), 0.5)
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', drawn)]
    assert len(heights) == 3  # of the forty bins, three have an image
    assert max(heights) == heights[1]
    assert "M300.0 4V70" in drawn


def test_small_images_are_enlarged_and_grey_ones_coloured():
    pixels = app.enlarged(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert pixels.shape == (256, 256, 3)
    assert app.enlarged(torch.zeros(3, 300, 300)).shape == (300, 300, 3)


def test_what_a_drop_answers(judge, file, monkeypatch):
    answer = app.answerer(judge, ValueError)
    assert answer(None, True, False) == (None, None, None, "")
    pixels, before, after, verdict = answer(str(file), True, True)
    assert pixels.shape == (256, 256, 3)
    assert set(before) == set(after) == set("01234")
    assert "verdict" in verdict
    (file.parent / "bad.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\nsomething")
    with pytest.raises(ValueError, match="bad.png: cannot be read as an image") as refused:
        answer(str(file.parent / "bad.png"), True, False)
    assert str(file.parent) not in str(refused.value)  # where uploads lie is nobody's business
    monkeypatch.setattr(app, "MAX_UPLOAD", 10)
    with pytest.raises(ValueError, match="wanted a smaller file"):
        answer(str(file), True, False)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(monkeypatch, "app", "--polarizer", tmp_path, "--model", tmp_path) == 2
    assert 'pip install "neural-polarizer[app]"' in capsys.readouterr().err


def test_the_command_reads_model_polarizer_clean_images_and_attack(monkeypatch, tmp_path, capsys):
    from neural_polarizer import FitConfig, purify
    from neural_polarizer.lab.backdoor import Victim, train_backdoored
    from neural_polarizer.lab.datasets.digits import digits
    from neural_polarizer.lab.train import Recipe

    victim = Victim(digits(size=8), "small_resnet", {"width": 4}, Recipe(epochs=1))
    attacked = train_backdoored(tmp_path / "model", victim, BadNets(size=2, target=3), progress=False)
    few = victim.data.test.floats()[:12]
    config = FitConfig(epochs=1, warmup_epochs=0)
    purify(attacked.model, few, method="npd", layer="layer3", config=config, progress=False).save_pretrained(
        tmp_path / "polarizer"
    )
    for i, image in enumerate(few):
        (tmp_path / "clean").mkdir(exist_ok=True)
        write_image(tmp_path / "clean" / f"{i}.png", image)
    served = []
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))  # what draws the page is not asked here
    monkeypatch.setattr(
        app, "serve", lambda judge, port, tell: served.append((judge, port)) or tell("http://127.0.0.1:7999")
    )
    given = ("--polarizer", tmp_path / "polarizer", "--model", tmp_path / "model", "--clean", tmp_path / "clean")
    assert run(monkeypatch, "app", *given, "--attack", tmp_path / "model", "--port", "7999", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"address": "http://127.0.0.1:7999"}
    ((judge, port),) = served
    assert port == 7999
    assert judge.attack == attacked.attack
    assert judge.names == list("0123456789")
    assert len(judge.scores) == 12
    assert run(monkeypatch, "app", *given, "--attack", tmp_path / "clean") == 2  # no attack there
    assert len(served) == 1


@pytest.fixture(scope="module")
def served(judge):
    """The app on a free port; who is called while it starts and runs, this machine apart, is kept."""
    pytest.importorskip("gradio")
    strangers, connect = [], socket.socket.connect

    def noted(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            strangers.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setattr(socket.socket, "connect", noted)
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")  # restored afterwards
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        page = app.serve(judge, port, wait=False)
        try:
            yield f"http://127.0.0.1:{port}", strangers
        finally:
            page.close()


def test_it_answers_on_the_loopback_address_alone(served):
    address, strangers = served
    with urllib.request.urlopen(address) as answer:
        assert "Neural Polarizer" in answer.read().decode()
    other = urllib.request.Request(address, headers={"Host": "rebound.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(other)
    port = int(address.rpartition(":")[2])
    with socket.socket() as outside, pytest.raises(OSError, match="refused"):
        outside.connect(("127.0.0.2", port))
    assert strangers == [("127.0.0.2", port)]


def test_an_upload_has_a_limit(served):
    address, _ = served
    edge = "b"
    body = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'.encode()
    body += b"0" * (app.MAX_UPLOAD + 1) + f"\r\n--{edge}--\r\n".encode()
    sent = urllib.request.Request(
        f"{address}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
    )
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(sent)


def test_a_taken_port_is_said(served, judge):
    from neural_polarizer import InputError

    port = int(served[0].rpartition(":")[2])
    with pytest.raises(InputError, match=f"port: found {port}, which is taken"):
        app.serve(judge, port, wait=False)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_drops_an_image(served, file, width):
    sync = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package is chromium")
    address, _ = served
    errors, elsewhere = [], []
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else elsewhere.append(r.url))
        page.goto(address)
        page.set_input_files("input[type=file]", str(file))
        page.wait_for_selector(".verdict")
        assert "clean images" in page.inner_text(".verdict")
        page.get_by_label("Polarizer on").uncheck()
        page.wait_for_selector(".verdict.off")
        page.get_by_label("Put the trigger on it (badnets)").check()
        page.get_by_label("Polarizer on").check()
        page.wait_for_selector(".verdict:not(.off)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert errors == []
    assert elsewhere == []
    assert wide <= width
