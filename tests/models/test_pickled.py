from __future__ import annotations

import os
import pickle

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.models.pickled import read_pickle

from ..lab.datasets import official

PLAIN = {"a": [1, 2.5, None, True, "x" * 300], b"b": (1, (2, 3), ()), 3: {"deep": [b"bytes", 10**12, -7]}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_in_every_protocol(protocol):
    assert read_pickle(pickle.dumps(PLAIN, protocol=protocol), "file") == PLAIN


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_arrays(protocol):
    import numpy

    value = {"data": numpy.arange(24, dtype=numpy.uint8).reshape(4, 6), "x": numpy.ones(3, dtype=numpy.float32)}
    if protocol == 5:  # kept in a buffer, by another call: refused, as nothing official is written so
        with pytest.raises(InputError, match="nothing was run"):
            read_pickle(pickle.dumps(value, protocol=protocol), "file")
        return
    found = read_pickle(pickle.dumps(value, protocol=protocol), "file")
    assert torch.equal(found["data"], torch.arange(24, dtype=torch.uint8).view(4, 6))
    assert found["x"].tolist() == [1, 1, 1]


def test_what_python_2_wrote():
    rows = official.pixels(3, 0)
    found = read_pickle(official.python2_pickle({"data": official.array(rows)}), "file")
    assert torch.equal(found["data"], rows)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(protocol, tmp_path):
    path = str(tmp_path / "was_here")
    with pytest.raises(InputError, match=r"(io|__builtin__)\.open.*nothing was run|nothing was run"):
        read_pickle(pickle.dumps([Evil(path)], protocol=protocol), "file")
    assert not os.path.exists(path)


@pytest.mark.parametrize("cut", range(0, 400, 13))
def test_damaged(cut):
    data = official.python2_pickle({"data": official.array(official.pixels(3, 0)), "labels": official.integers([1])})
    with pytest.raises(InputError):
        read_pickle(data[: len(data) - 1 - cut], "file")
