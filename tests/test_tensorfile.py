from __future__ import annotations

import os
import threading

import pytest
import safetensors.torch
import torch

from neural_polarizer import InputError, tensorfile
from neural_polarizer.files import read_json_object, regular_file
from neural_polarizer.tensorfile import DTYPES, open_safetensors, read_finite


def written(path, **tensors):
    path.write_bytes(safetensors.torch.save(tensors))
    return path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_of_number(dtype, tmp_path):
    value = torch.arange(6).view(2, 3).to(dtype)
    stored = open_safetensors(written(tmp_path / "x", a=value))
    assert stored["a"].shape == (2, 3)
    assert stored["a"].dtype == dtype
    assert torch.equal(stored["a"].read(), value)
    assert torch.equal(read_finite(stored, "x")["a"], value)


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Sizes are known of a file whose numbers take no room in memory."""
    path = written(tmp_path / "x", a=torch.zeros(1))
    header = path.read_bytes()[8:-4].rstrip().replace(b"[1]", b"[268435456]").replace(b"[0,4]", b"[0,1073741824]")
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (1 << 30))
    assert open_safetensors(path)["a"].shape == (1 << 28,)


def test_names_what_is_not_finite(tmp_path):
    for value in (torch.nan, torch.inf, -torch.inf):
        stored = open_safetensors(written(tmp_path / "x", a=torch.zeros(2), b=torch.tensor([0, value])))
        with pytest.raises(InputError, match="x: b is not a finite tensor"):
            read_finite(stored, "x")


def test_too_large(tmp_path, monkeypatch):
    path = written(tmp_path / "x", a=torch.zeros(100))
    monkeypatch.setattr(tensorfile, "MAX_FILE", 200)
    with pytest.raises(InputError, match="wanted at most 200"):
        open_safetensors(path)


def test_what_would_keep_its_reader_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(written(tmp_path / "x", a=torch.zeros(1)))
    done = []

    def all_of_them():
        for name in ("pipe", "zero", "folder"):
            for reader in (open_safetensors, read_json_object, lambda p: regular_file(p, limit=1)):
                with pytest.raises(InputError, match="is no regular file"):
                    reader(tmp_path / name)
        done.append(True)

    thread = threading.Thread(target=all_of_them, daemon=True)
    thread.start()
    thread.join(30)
    assert done, "still waiting"
    assert set(open_safetensors(tmp_path / "link")) == {"a"}, "links are as good as what they lead to"
    for name in ("nowhere", "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            regular_file(tmp_path / name, limit=1)
