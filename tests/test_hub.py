"""`push_to_hub` and `from_pretrained("user/repo")`, against a stand-in for the hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from neural_polarizer import InputError, PolarizedModel
from neural_polarizer.saved import CONFIG_FILE, WEIGHTS_FILE

from .hub_server import Hub, commit_of, running_hub
from .nets import images, make
from .test_card import fitted

FILES = {"README.md", CONFIG_FILE, WEIGHTS_FILE}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with running_hub() as server:
        yield server


def fetched(hub: Hub, name: str = "me/polarizer", **options) -> PolarizedModel:
    return PolarizedModel.from_pretrained(make("plain"), name, endpoint=hub.url, **options)


def test_there_and_back(hub):
    purified = fitted()
    address = purified.push_to_hub("me/polarizer", token="hf_secret", private=True, endpoint=hub.url)
    assert address == f"{hub.url}/me/polarizer"
    private, commits = hub.repositories["me/polarizer"]
    assert private
    assert len(commits) == 2  # the first is empty
    assert set(commits[-1]) == FILES
    assert 'from_pretrained(model, "me/polarizer")' in commits[-1]["README.md"].decode()
    assert hub.tokens == {"Bearer hf_secret"}
    loaded = fetched(hub, token="hf_secret")
    assert torch.equal(loaded(images()), purified(images()))
    assert hub.tokens == {"Bearer hf_secret"}


def test_only_the_two_files_are_fetched_and_only_once(hub):
    fitted().push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    hub.repositories["me/polarizer"][1][-1]["pytorch_model.bin"] = b"\x80\x04cos\nsystem\n."
    hub.asked.clear()
    fetched(hub)
    read = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET"}
    assert read == {CONFIG_FILE, WEIGHTS_FILE}
    hub.asked.clear()
    fetched(hub)
    assert {method for method, _ in hub.asked} == {"HEAD"}


def test_a_second_push_goes_into_the_same_repository_and_revisions_stay(hub):
    one, two = fitted(), fitted("fc")
    one.push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    two.push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    assert torch.equal(fetched(hub)(images()), two(images()))
    assert torch.equal(fetched(hub, revision=commit_of(1))(images()), one(images()))


def test_a_folder_comes_first(hub, tmp_path):
    fitted("fc").push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    hub.asked.clear()
    fitted().save_pretrained("me/polarizer")
    assert fetched(hub).layer == "conv2"
    (tmp_path / "me" / "polarizer" / CONFIG_FILE).unlink()
    with pytest.raises(InputError, match="holds no polarizer"):
        fetched(hub)
    assert hub.asked == []


def test_neither_folder_nor_repository(hub):
    with pytest.raises(InputError, match="directory: 'me/nothing' is no folder here, and cannot be fetched"):
        fetched(hub, "me/nothing")
    hub.asked.clear()
    for name in ("nothing", "a/b/c", "../up", "/abs/olute", "me/po larizer", "-x/y"):
        with pytest.raises(InputError, match="holds no polarizer"):
            fetched(hub, name)
    assert hub.asked == []
    hub.repositories["me/empty"] = (False, [{}])
    with pytest.raises(InputError, match="'me/empty' is no folder here"):
        fetched(hub, "me/empty")
    fitted().push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    with pytest.raises(InputError, match="'me/polarizer' is no folder here"):
        fetched(hub, revision="nowhere")


def test_no_server(tmp_path):
    with pytest.raises(InputError, match=r"repo_id: 'me/polarizer' cannot be written"):
        fitted().push_to_hub("me/polarizer", token="hf_x", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(("name", "size"), [(CONFIG_FILE, (1 << 20) + 1), (WEIGHTS_FILE, 9 << 30)])
def test_what_is_too_large_is_not_fetched(hub, name, size):
    fitted().push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    hub.claimed[name] = size
    hub.asked.clear()
    with pytest.raises(InputError, match=f"{name} has {size} bytes, wanted at most"):
        fetched(hub)
    assert not [path for method, path in hub.asked if method == "GET" and path.endswith(name)]


def test_what_comes_from_there_is_not_trusted(hub):
    fitted().push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    files = hub.repositories["me/polarizer"][1][-1]
    config = json.loads(files[CONFIG_FILE])
    for damaged, message in (
        ({CONFIG_FILE: json.dumps({**config, "channels": 1 << 40}).encode()}, "channels"),
        ({CONFIG_FILE: b"{"}, "no JSON"),
        ({WEIGHTS_FILE: files[WEIGHTS_FILE][:-4] + b"\0\0\0\0"}, "SHA-256|safetensors"),
        ({WEIGHTS_FILE: b"\x80\x04cos\nsystem\n."}, "safetensors"),
    ):
        hub.repositories["me/polarizer"][1].append({**files, **damaged})
        with pytest.raises(InputError, match=message):
            fetched(hub)


def test_names_that_are_none(hub):
    for name in ("polarizer", "a/b/c", "me/", "me/pola rizer", "me/x\n"):
        with pytest.raises(InputError, match="repo_id: found .* wanted user/repo"):
            fitted().push_to_hub(name, token="hf_x", endpoint=hub.url)
    assert hub.asked == []


def test_without_the_library(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'needs huggingface_hub .*pip install "neural-polarizer\[hub\]"'):
        fetched(hub)
    with pytest.raises(InputError, match="repo_id: needs huggingface_hub"):
        fitted().push_to_hub("me/polarizer", endpoint=hub.url)


def test_the_endpoint_of_the_environment(hub, tmp_path):
    fitted().push_to_hub("me/polarizer", token="hf_x", endpoint=hub.url)
    code = (
        "from neural_polarizer import PolarizedModel; from tests.nets import make;"
        "print(PolarizedModel.from_pretrained(make('plain'), 'me/polarizer').layer)"
    )
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "conv2\n", done.stderr
