from __future__ import annotations

import json
import logging

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.models.checkpoint import read_checkpoint

from ..hf import hugging_face

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def saved(name, folder, **preprocessor):
    net = hugging_face(name)
    net.save_pretrained(folder)
    described = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "rescale_factor": 1 / 255, **preprocessor}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return net


def logits(net, mean=MEAN, std=STD):
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    with torch.no_grad():
        return net((IMAGES - shift) / scale).logits


@pytest.mark.parametrize("name", ["vit", "convnext", "swin", "resnet", "mobilenet_v2", "efficientnet", "regnet"])
def test_folders(name, tmp_path, capsys):
    net = saved(name, tmp_path)
    capsys.readouterr()
    found = read_checkpoint(tmp_path)
    assert not found.training
    with torch.no_grad():
        assert torch.equal(found(IMAGES), logits(net))
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert torch.equal(read_checkpoint(tmp_path, classes=5)(IMAGES), logits(net))
    said = capsys.readouterr()
    assert said.out + said.err == "", "no bars, no reports"


def test_reports_of_transformers_are_as_they_were(tmp_path):
    from transformers.utils import logging as theirs

    saved("convnext", tmp_path)
    before = theirs.get_verbosity()
    for level in (logging.CRITICAL, before):
        theirs.set_verbosity(level)
        theirs.enable_progress_bar()
        read_checkpoint(tmp_path)
        assert theirs.get_verbosity() == level
        assert theirs.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({"do_normalize": False}, [0.0], [1.0]),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, [0.5], [0.5]),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3}, [0.5], [0.25]),
        ({"include_top": True}, MEAN, [s * s for s in STD]),
        ({"image_processor_type": "EfficientNetImageProcessor"}, MEAN, [s * s for s in STD]),
        ({"image_processor_type": "EfficientNetImageProcessor", "include_top": False}, MEAN, STD),
    ],
)
def test_what_the_preprocessor_does_to_bytes(preprocessor, mean, std, tmp_path):
    net = saved("convnext", tmp_path, **preprocessor)
    with torch.no_grad():
        assert torch.allclose(read_checkpoint(tmp_path)(IMAGES), logits(net, mean, std), atol=1e-5)


def test_names_that_older_versions_gave(tmp_path):
    """Checkpoints of ViT from before transformers 5 are on every hub."""
    import safetensors.torch

    net = saved("vit", tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert any(".encoder.layer.0.attention.attention.query." in name for name in state), (
        "which is how it still saves them"
    )
    with torch.no_grad():
        assert torch.equal(read_checkpoint(tmp_path)(IMAGES), logits(net))


def test_half_precision(tmp_path):
    net = hugging_face("convnext").half()
    net.save_pretrained(tmp_path)
    found = read_checkpoint(tmp_path, normalization=(MEAN, STD))
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(found(IMAGES), logits(net.float()))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"auto_map": {"AutoModelForImageClassification": "modeling.Evil"}},
            "brings its own code .auto_map., which is not run",
        ),
        ({"model_type": "timm_wrapper"}, "wanted an image classifier of transformers"),
        ({"model_type": "bert"}, "wanted an image classifier of transformers"),
        ({"hidden_sizes": [16, 16]}, "describes|do not fit"),
        ({"num_labels": 7, "id2label": {str(i): "x" for i in range(4)}}, "describes|do not fit"),
    ],
)
def test_configurations_that_are_refused(changes, message, tmp_path):
    saved("convnext", tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


def test_what_reaches_beyond_the_network_is_not_followed(tmp_path, monkeypatch):
    """Names of other models, kernels and files in a configuration change nothing."""
    import socket

    net = saved("vit", tmp_path)
    edit(
        tmp_path / "config.json",
        _attn_implementation="evil/kernel", attn_implementation="evil/kernel", _name_or_path="evil/model", backbone="evil",
        use_pretrained_backbone=True, quantization_config={"quant_method": "evil"}, transformers_weights="/etc/passwd",
        adapter_kwargs={"x": 1}, torch_dtype="evil", dtype="evil", kernel_config={"a": "evil/b:c"}, fusion_config={"a": 1},
        custom_pipelines={"x": {"impl": "evil.X"}}, architectures=["Evil"], name_or_path="evil/model",
    )  # fmt: skip
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("went to the network"))
    with torch.no_grad():
        assert torch.equal(read_checkpoint(tmp_path)(IMAGES), logits(net))


def test_what_else_may_be_missing(tmp_path):
    saved("convnext", tmp_path)
    with pytest.raises(InputError, match="classes: found 4, but .*config.json says 5"):
        read_checkpoint(tmp_path, classes=4)
    with pytest.raises(InputError, match="arch: found 'small_resnet', but .*config.json says"):
        read_checkpoint(tmp_path, arch="small_resnet")
    with pytest.raises(InputError, match="width: found 3, but .*config.json says"):
        read_checkpoint(tmp_path, width=3)
    with pytest.raises(InputError, match="wanted one or 3"):
        read_checkpoint(tmp_path, normalization=((0.5, 0.5), (0.5, 0.5)))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"normalization: .* has no preprocessor_config.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="weights in parts are not read"):
        read_checkpoint(tmp_path)
