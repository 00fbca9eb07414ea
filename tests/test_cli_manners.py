"""What holds for every command: grouped help, completion, JSON, and no colour where nobody wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from neural_polarizer.cli import app

POLARIZE = [sys.executable, "-m", "neural_polarizer"]
ESCAPE = "\x1b["
PANELS = {
    "See it work": ["demo"],
    "Defend a model": ["purify", "layers", "screen", "report", "export", "detect", "app"],
    "Reproduce and compare": ["conditioning", "attack", "attacks", "bench"],
}


def plain_environment(**changes: str) -> dict[str, str]:
    wishes = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "COLUMNS")
    kept = {k: v for k, v in os.environ.items() if k not in wishes}
    return {**kept, "TERM": "xterm-256color", **changes}


def piped(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POLARIZE, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env=plain_environment(**environment),
    )  # fmt: skip


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal would show of both streams, escapes included."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    mine, theirs = pty.openpty()
    child = subprocess.Popen(
        [*POLARIZE, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=plain_environment(**environment)
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            break
        seen += part
    os.close(mine)
    assert child.wait(timeout=120) is not None
    return seen.decode()


def commands(group: click.Command | None = None, path: str = "") -> Iterator[tuple[str, click.Command]]:
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_help_is_grouped_by_task():
    text = piped("--help").stdout
    places = [text.index(panel) for panel in PANELS]
    assert places == sorted(places)
    for (panel, names), end in zip(PANELS.items(), [*places[1:], len(text)], strict=True):
        part = text[text.index(panel) : end]
        for name in names:
            assert f"│ {name} " in part, (panel, name)
    assert {name.split()[0] for name, _ in commands()} == {n for names in PANELS.values() for n in names}


def test_help_imports_nothing_heavy():
    """`polarize --help` answers at once because of this."""
    code = (
        "import sys; sys.argv = ['polarize', '--help']\n"
        "from neural_polarizer.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'jinja2', 'sklearn', 'pandas', 'safetensors', 'yaml'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Defend a model" in done.stdout


def test_every_command_has_a_help_with_a_sentence_and_speaks_json():
    found = dict(commands())
    assert len(found) >= 13
    for name, command in found.items():
        assert command.help, name
        options = {o: p for p in command.params for o in p.opts}
        assert "--json" in options, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} says nothing of itself"


def test_json_of_the_grids():
    done = piped("bench", "grids", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "smoke" in [grid["name"] for grid in told]
    assert all(grid["about"] for grid in told)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from neural_polarizer.models.zoo import build_model, save_model

    folder = tmp_path_factory.mktemp("model")
    options = {"classes": 3, "width": 4}
    save_model(folder, build_model("small_resnet", **options), "small_resnet", options)
    return folder


def test_a_pipe_gets_no_escapes(model):
    for arguments in (("--help",), ("layers", "--help"), ("layers", "--model", str(model)), ("nothing",)):
        done = piped(*arguments)
        assert ESCAPE not in done.stdout + done.stderr, arguments
        assert done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("layers",), ("nothing",)])
def test_a_terminal_gets_colours_unless_it_says_no(model, arguments):
    arguments = ("layers", "--model", str(model)) if arguments == ("layers",) else arguments
    assert ESCAPE in on_a_terminal(*arguments), "or the next line proves nothing"
    assert ESCAPE in on_a_terminal(*arguments, NO_COLOR=""), "an empty one is none"
    seen = on_a_terminal(*arguments, NO_COLOR="1")
    assert ESCAPE not in seen
    assert len(seen) > 50


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell):
    script = Path(sys.executable).with_name("polarize")
    if not script.exists():
        pytest.skip("the command is not installed")
    done = subprocess.run(
        [script, "--show-completion", shell], capture_output=True, text=True, check=False,
        env=plain_environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "polarize" in done.stdout
    assert "_POLARIZE_COMPLETE" in done.stdout


def test_completion_knows_commands_and_options():
    script = Path(sys.executable).with_name("polarize")
    if not script.exists():
        pytest.skip("the command is not installed")

    def completed(words: str, place: int) -> list[str]:
        done = subprocess.run(
            [script], capture_output=True, text=True, check=False,
            env=plain_environment(_POLARIZE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(place)),
        )  # fmt: skip
        return done.stdout.split()

    assert completed("polarize pur", 1) == ["purify"]
    assert completed("polarize purify --max", 2) == ["--max-accuracy-drop"]
    assert completed("polarize bench t", 2) == ["table"]
