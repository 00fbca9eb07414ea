"""The tutorial and the how-to pages, followed literally: their blocks run, top to bottom, in an empty directory.

A block with a title is a file that the reader writes. One behind `<!-- not run: WHY -->` is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from neural_polarizer.errors import InputError
from neural_polarizer.models.elsewhere import import_library

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(
    r'^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w+)(?: title="(?P<title>[^"\n]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
PAGES = sorted([DOCS / "tutorial.md", *(DOCS / "howto").glob("*.md")])
NEEDS = {
    "timm.md": ("timm",),
    "torchvision.md": ("torchvision",),
    "huggingface.md": ("transformers",),
    "ray.md": ("ray",),
    "torchrun.md": ("accelerate",),
}
SLOW = ("ray.md", "torchrun.md", "tutorial.md")  # test_spread.py, and test_cli.py's demo, go the same ways

RUN = """
import json, subprocess, sys
from pathlib import Path

page, scope = sys.argv[2], {"__name__": "__main__"}
sys.path.insert(0, "")
for block in json.loads(Path(sys.argv[1]).read_text()):
    code = block["code"]
    if block["title"]:
        Path(block["title"]).write_text(code)
    elif block["language"] == "python":
        exec(compile("\\n" * block["line"] + code, page, "exec"), scope)
    else:
        sys.stdout.flush()
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
"""


class Block(NamedTuple):
    language: str
    code: str
    title: str
    why_not: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            m["language"], m["code"], m["title"] or "", m["why"] or "", text.count("\n", 0, m.start("code")) - 1
        )
        for m in FENCE.finditer(text)
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_a_page_is_a_file_or_is_run_or_says_why_not(page):
    text = page.read_text(encoding="utf-8")
    found = blocks_of(page)
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)) > 0  # none is overlooked
    assert text.count("not run:") == sum(bool(b.why_not) for b in found)
    for block in found:
        assert block.language in ("python", "shell") or block.title, block
    assert any(not b.why_not and not b.title for b in found)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW), id=p.name) for p in PAGES]
)
def test_a_page_can_be_followed(page, tmp_path):
    for library in NEEDS.get(page.name, ()):
        try:
            import_library(library)
        except InputError as error:
            pytest.skip(str(error).splitlines()[0])
    here = tmp_path / "empty"
    here.mkdir()
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "blocks.json").write_text(json.dumps([b._asdict() for b in blocks_of(page) if not b.why_not]))
    # The commands of this very Python, and nothing of this repository beside what is installed.
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "blocks.json"), page.name],
        cwd=here, env={**os.environ, "PATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_a_page_beside_the_site_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    for library in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {p.name for p in PAGES} <= {p.with_suffix(".md").name for p in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*(?:src|href)="(https?:[^"]*)', text
        )
        assert fetched == [], page
    assert "purify" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
