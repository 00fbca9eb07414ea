"""`polarize app`: a page on this machine where one drops an image and sees what a purified model makes of it.

Gradio draws it (extra `app`). It listens on the loopback address alone and answers to no other name, takes image files
of a bounded size, decodes them with our own reader, and tells nobody anything.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import optional_library
from ..errors import InputError
from .datasets.base import to_bytes
from .judging import Judge, Judgement

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]  # other names that lead here are of pages that would read what is shown
MAX_UPLOAD = 10 * 2**20  # bytes
UPLOADS = "GRADIO_TEMP_DIR"  # Gradio asks the environment where they lie
SIDE = 256  # pixels to which small images are enlarged for the eye
BINS = 40
UNUSUAL = 0.95  # share of the clean images that score less: what the papers allow as false positives, 5 %
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.pixels img {
  image-rendering: pixelated; width: 100% !important; height: 100% !important; object-fit: contain;
  box-sizing: border-box; padding-top: 28px; /* beneath the label */
}
.verdict { padding: 12px 16px; border-left: 6px solid #5b7fa6; margin: 4px 0; }
.verdict.unusual { border-color: #b7791f; }
.verdict.suspect { border-color: #c0392b; }
.verdict.off { border-color: #888; }
.verdict p { margin: 4px 0; }
.verdict svg { width: 100%; max-width: 460px; height: auto; }
footer { display: none !important; }
"""


def build_app(judge: Judge) -> Any:
    """The page, not yet served: a `gradio.Blocks`.

    Raises:
        InputError: Gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="Neural Polarizer", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"# Neural Polarizer\n{_told(judge)}")
        with gr.Row():
            with gr.Column(min_width=280):
                given = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="An image",
                    height=300,
                    elem_classes="pixels",
                )
                polarized = gr.Checkbox(True, label="Polarizer on")
                triggered = gr.Checkbox(
                    False, label=f"Put the trigger on it ({judge.attack.name})" if judge.attack else "No attack given",
                    interactive=judge.attack is not None, visible=judge.attack is not None,
                )  # fmt: skip
            with gr.Column(min_width=280):
                seen = gr.Image(
                    label="What the model is given", height=300, format="png", interactive=False, buttons=[],
                    elem_classes="pixels",
                )  # fmt: skip
        verdict = gr.HTML(label="Verdict")
        with gr.Row():
            before = gr.Label(label="Original model", min_width=280)
            after = gr.Label(label="Purified model", min_width=280)
        # Gradio would open the upload as whatever Pillow knows, PostScript included; our own reader takes few formats.
        given.preprocess = lambda payload: None if payload is None else payload.path
        answer = answerer(judge, gr.Error)
        asked, shown = [given, polarized, triggered], [seen, before, after, verdict]
        for thing in asked:
            thing.change(answer, asked, shown, api_visibility="private", show_progress="hidden")
    return page.queue(max_size=16, default_concurrency_limit=1, api_open=False)


def answerer(judge: Judge, refusal: Callable[[str], Exception]) -> Callable[..., tuple[Any, ...]]:
    """From a path and the two switches to what the page shows: pixels, both predictions, the verdict as HTML."""

    def answer(path: str | None, polarized: bool, triggered: bool) -> tuple[Any, ...]:
        if path is None:
            return None, None, None, ""
        try:
            if os.stat(path).st_size > MAX_UPLOAD:
                raise InputError(f"image: found more than {MAX_UPLOAD >> 20} MiB, wanted a smaller file")
            found = judge.judge(Path(path), polarized=polarized, triggered=triggered)
        except InputError as error:
            raise refusal(str(error).replace(path, Path(path).name)) from None
        return enlarged(found.shown), found.original, found.purified, verdict_html(found, judge.scores, polarized)

    return answer


def enlarged(image: Tensor) -> Any:
    """Pixels (H, W, 3) uint8 of a (C, H, W) image, every pixel a square where it is small."""
    times = max(1, SIDE // max(image.shape[1:]))
    pixels = to_bytes(image).repeat_interleave(times, 1).repeat_interleave(times, 2)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()


def verdict_html(found: Judgement, scores: Tensor | None, polarized: bool) -> str:
    """A few sentences, and where the score lies among those of the clean images."""
    before, after = (html.escape(next(iter(p))) for p in (found.original, found.purified))
    if not polarized:
        return _box("off", [f"The polarizer is off: both answers are the original model's, <b>{before}</b>."])
    kind = "suspect" if found.suspect else "unusual" if (found.place or 0) >= UNUSUAL else ""
    lines = [
        f"<b>Suspect.</b> The original model says <b>{before}</b>, the purified one <b>{after}</b>."
        if found.suspect
        else f"Both say <b>{before}</b>.",
        f"Suspicion score {found.score:+.3f}: the probability of {before} that the polarizer took away.",
    ]
    if found.place is None or scores is None:
        lines.append("How clean images score is not known here: start the app with --clean FOLDER.")
        return _box(kind, lines)
    doubt = " <b>That is unusual.</b>" if kind == "unusual" else ""
    lines.append(f"It is higher than that of {found.place:.0%} of {len(scores)} clean images.{doubt}")
    return _box(kind, lines, histogram(scores, found.score))


def histogram(scores: Tensor, here: float) -> str:
    """The scores of the clean images as bars of an SVG from -1 to 1, and a mark at `here`."""
    counts = torch.histc(scores.float().clamp(-1, 1), BINS, -1, 1)
    heights = (60 * counts.clamp_min(0).sqrt() / counts.max().clamp_min(1).sqrt()).tolist()  # roots: few are seen, too
    width = 400 / BINS
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{70 - h:.1f}" width="{width - 1:.1f}" height="{h:.1f}" fill="currentColor" '
        'fill-opacity="0.45"/>'
        for i, h in enumerate(heights)
        if h > 0
    )
    at = 200 + 200 * max(-1.0, min(1.0, here))
    told = f"Scores of {len(scores)} clean images; this one: {here:+.3f}"
    return (
        f'<svg viewBox="-12 0 424 92" role="img" aria-label="{told}">'
        f'{bars}<path d="M0 70H400" stroke="currentColor"/><path d="M{at:.1f} 4V70" stroke="#c0392b" stroke-width="3"/>'
        '<g font-size="15" fill="currentColor" text-anchor="middle"><text x="0" y="88">-1</text>'
        '<text x="200" y="88">score 0</text><text x="400" y="88">1</text></g></svg>'
    )


def serve(judge: Judge, port: int, *, wait: bool = True, tell: Callable[[str], None] = lambda address: None) -> Any:
    """Serve the page on the loopback address; with `wait`, until somebody interrupts. `tell` gets the address.

    Returns:
        The `gradio.Blocks`, whose `close()` ends it.

    Raises:
        InputError: Gradio is not installed, or the port is taken.
    """
    gr = _gradio()
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    uploads = tempfile.TemporaryDirectory(prefix="polarize-app-")
    before = os.environ.get(UPLOADS)
    os.environ[UPLOADS] = uploads.name
    page = build_app(judge)
    page.uploads = uploads  # goes when the page goes
    fonts = ("system-ui", "sans-serif")  # those of the machine: none is fetched
    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
            max_file_size=MAX_UPLOAD, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
            run_history=False, footer_links=[], css=CSS,
            theme=gr.themes.Default(font=fonts, font_mono=("monospace",)),
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)]},
        )  # fmt: skip
    except OSError:
        os.environ.pop(UPLOADS)
        if before is not None:
            os.environ[UPLOADS] = before  # of a page that is served already
        raise InputError(f"port: found {port}, which is taken; wanted a free one") from None
    tell(f"http://{HOST}:{page.server_port}")
    if wait:
        page.block_thread()
    return page


def _box(kind: str, lines: list[str], more: str = "") -> str:
    return f'<div class="verdict {kind}">{"".join(f"<p>{line}</p>" for line in lines)}{more}</div>'


def _told(judge: Judge) -> str:
    shape = "x".join(map(str, judge.purified.image_shape))
    return (
        f"{judge.purified.method} before `{judge.purified.layer}`; images of {shape}. Drop an image: both models judge "
        "it. A score is a hint, no proof; see *Threat model and limits* in the documentation."
    )


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return optional_library("app", "gradio", "app")
