"""What the package shows: the public names, and what importing them costs and does not touch."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import neural_polarizer


def test_public_names():
    for name in neural_polarizer.__all__:
        assert getattr(neural_polarizer, name) is not None
        assert name in dir(neural_polarizer)
    with pytest.raises(AttributeError, match="has no attribute 'purge'"):
        _ = neural_polarizer.purge


def test_the_core_imports_torch_and_safetensors_alone():
    code = (
        "import sys; import torch, safetensors; before = set(sys.modules);"
        "from neural_polarizer import *; import neural_polarizer.graph;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "bad = new & {'torchvision', 'timm', 'transformers', 'typer', 'rich', 'tqdm', 'jinja2', 'matplotlib', 'sklearn', 'PIL', 'onnx', 'onnxscript', 'onnxruntime', 'huggingface_hub'};"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MODULES = [
    m.name for m in pkgutil.walk_packages(neural_polarizer.__path__, "neural_polarizer.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    generator_state = torch.get_rng_state()
    try:
        found = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn}, optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        torch.set_rng_state(generator_state)  # examples may draw: they are prose
    assert found.failed == 0
