from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from neural_polarizer import FitConfig, InputError, PolarizedModel, purify, with_normalization
from neural_polarizer.polarizers import STRUCTURES
from neural_polarizer.saved import CONFIG_FILE, WEIGHTS_FILE

from .nets import ZOO, images, labels, make


def fitted(net: nn.Module | None = None, layer: str = "conv2", capture: str = "hooks", **options) -> PolarizedModel:
    config = FitConfig(**{"epochs": 1, "warmup_epochs": 1, "batch_size": 8, "rank": 2, **options})
    return purify(
        net or make("plain"),
        (images(12), labels(12)),
        method="npd",
        layer=layer,
        config=config,
        progress=False,
        capture=capture,
    )


def bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_save_and_load_is_bit_identical(structure, tmp_path):
    purified = fitted(structure=structure)
    purified.save_pretrained(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", WEIGHTS_FILE, CONFIG_FILE]
    loaded = PolarizedModel.from_pretrained(make("plain"), tmp_path / "out")
    assert bits(loaded(images()), purified(images()))
    assert (loaded.method, loaded.layer, loaded.config) == ("npd", "conv2", purified.config)
    assert loaded.history == purified.history


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("capture", ["hooks", "graph"])
def test_save_and_load_before_every_layer(name, capture, tmp_path):
    for layer in ZOO[name][1]:
        purified = fitted(make(name), layer, capture=capture)
        purified.save_pretrained(tmp_path / layer)
        loaded = PolarizedModel.from_pretrained(make(name), tmp_path / layer, capture=capture)
        assert loaded.cut.kind == purified.cut.kind == capture
        assert bits(loaded(images()), purified(images()))


def test_disabled():
    purified, net, x = fitted(), make("plain"), images()
    polarized = purified(x)
    with purified.disabled():
        assert bits(purified(x), net(x))
        with purified.disabled():
            assert bits(purified(x), net(x))
        assert bits(purified(x), net(x))
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(purified(x)))
        thread.start()
        thread.join()
        assert bits(elsewhere[0], polarized)
    assert bits(purified(x), polarized)


def test_train_and_requires_grad_never_reach_the_base():
    net = make("plain").train()
    net.conv1.weight.requires_grad_(False)
    purified = fitted(net)
    before = purified(images())
    purified.eval()
    assert net.training
    assert net.bn1.training
    purified.train()
    purified.requires_grad_(False)
    assert net.conv2.weight.requires_grad
    assert not purified.polarizer.weight.requires_grad
    purified.requires_grad_(True)
    assert not net.conv1.weight.requires_grad
    assert bits(purified(images()), before)  # the pass itself knows no mode
    purified(images()).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert purified.polarizer.weight.grad is not None


def test_gradient_reaches_the_image():
    x = images().requires_grad_()
    fitted()(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_to_moves_base_and_polarizer_and_the_cut_follows():
    net = make("plain")
    purified = fitted(net)
    expected = purified(images())
    assert purified.to(torch.float64) is purified
    assert net.conv1.weight.dtype == torch.float64  # as PyTorch does with any submodule
    out = purified(images().double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), expected, atol=1e-5, rtol=1e-5)
    net.float()  # behind our back
    purified.polarizer.float()
    torch.testing.assert_close(purified(images()), expected, atol=1e-5, rtol=1e-5)


def test_new_weights_in_the_base_are_seen():
    net = make("plain")
    purified = fitted(net)
    net.load_state_dict(make("plain", seed=9).state_dict())
    with purified.disabled():
        assert bits(purified(images()), make("plain", seed=9)(images()))
    net.load_state_dict(make("plain", seed=3).state_dict(), assign=True)
    with purified.disabled():
        assert bits(purified(images()), make("plain", seed=3)(images()))


def test_state_dict_and_copies():
    purified, x = fitted(), images()
    names = set(purified.state_dict())
    assert {"base.conv1.weight", "polarizer.weight", "polarizer.norm.running_mean"} <= names
    assert names == {f"base.{k}" for k in purified.base.state_dict()} | {
        f"polarizer.{k}" for k in purified.polarizer.state_dict()
    }
    other = fitted(make("plain", seed=8))
    other.load_state_dict(purified.state_dict())
    assert bits(other(x), purified(x))
    for twin in (copy.deepcopy(purified), pickle.loads(pickle.dumps(purified))):  # noqa: S301
        assert bits(twin(x), purified(x))
        twin.base.conv1.weight.data.zero_()
        twin.polarizer.weight.data.zero_()
        assert not bits(twin(x), purified(x))
        assert purified.base.conv1.weight.abs().sum() > 0


def test_threads():
    purified = fitted()
    batches = [images(4, seed=s) for s in range(6)]
    expected = [purified(b) for b in batches]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not bits(purified(batches[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_print_trainable_parameters(capsys):
    purified = fitted()
    purified.print_trainable_parameters()
    base = sum(p.numel() for p in make("plain").parameters())
    own = 6 * 6 + 2 * 6
    text = capsys.readouterr().out
    assert (
        text == f"trainable params: {own} || all params: {own + base} || trainable%: {100 * own / (own + base):.4f}\n"
    )


def test_normalization_is_part_of_the_model():
    net = make("plain")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    wrapped = with_normalization(net, mean, std)
    x = images()
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(wrapped(x), net(normalised))
    purified = fitted(wrapped, "model.conv2")
    with purified.disabled():
        torch.testing.assert_close(purified(x), net(normalised))
    for bad in ({"mean": (1, 2), "std": (1,)}, {"mean": (0,), "std": (0,)}):
        with pytest.raises(InputError, match="mean, std"):
            with_normalization(net, **bad)
    with pytest.raises(InputError, match="found 1 channels, wanted 3"):
        wrapped(x[:, :1])


def test_wrong_number_of_channels():
    with pytest.raises(InputError, match=r"found shape \(6, 1, 8, 8\)"):
        fitted()(images()[:, :1])


def test_other_image_sizes_pass_where_the_network_allows():
    assert fitted()(images(2, shape=(3, 11, 9))).shape == (2, 5)


class TestHostileFolders:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        fitted().save_pretrained(tmp_path / "p")
        return tmp_path / "p"

    def edit(self, folder: Path, **changes) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())
        config.update(changes)
        (folder / CONFIG_FILE).write_text(json.dumps(config))

    def refuses(self, folder: Path, message: str, net: nn.Module | None = None) -> None:
        with pytest.raises(InputError, match=message):
            PolarizedModel.from_pretrained(net or make("plain"), folder)

    def test_no_polarizer_there(self, tmp_path):
        self.refuses(tmp_path, "holds no polarizer")
        self.refuses(tmp_path / "nowhere", "holds no polarizer")

    def test_for_another_layer_or_shape(self, folder):
        self.refuses(folder, "layer: found 'conv2'", make("skips"))
        self.edit(folder, layer="fc")
        self.refuses(folder, "does not fit this model")

    def test_for_another_number_of_classes(self, folder):
        self.edit(folder, classes=7)
        self.refuses(folder, "7 classes")

    @pytest.mark.parametrize(
        "changes",
        [
            {"format": 2}, {"format": "1"}, {"format": None}, {"channels": 10**9}, {"channels": "6"}, {"channels": True},
            {"channels": 65536}, {"channel_dim": 7}, {"options": {"rank": 3}}, {"options": []}, {"options": {"shape": "x"}},
            {"structure": "position", "options": {"shape": [2**40, 2**40]}}, {"structure": "os.system"}, {"structure": []},
            {"structure": "low-rank", "options": {"rank": 65536}, "channels": 65536}, {"layer": 3}, {"layer": ""},
            {"method": None}, {"image_shape": [3, 8]}, {"image_shape": [3, 10**6, 10**6]}, {"image_shape": [3, -8, 8]},
            {"image_shape": "3x8x8"}, {"fit": {"radius": "x"}}, {"fit": {"nonsense": 1}}, {"fit": 3}, {"history": {}},
            {"history": [{"loss": "a"}]}, {"sha256": "0" * 64}, {"sha256": 5}, {"classes": 1}, {"classes": 1.5},
        ],
    )  # fmt: skip
    def test_configs_of_wrong_types(self, folder, changes):
        self.edit(folder, **changes)
        self.refuses(folder, ".")

    @pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"format": NaN}', "[" * 100_000, " " * (2 << 20)])
    def test_broken_json(self, folder, text):
        (folder / CONFIG_FILE).write_text(text)
        self.refuses(folder, ".")

    def test_damaged_weights(self, folder):
        data = (folder / WEIGHTS_FILE).read_bytes()
        for broken in (b"", data[:-4], data[:20], b"\x80\x04" + data, data[:-1] + bytes([data[-1] ^ 1])):
            (folder / WEIGHTS_FILE).write_bytes(broken)
            self.refuses(folder, "safetensors|SHA-256")

    def test_weights_that_are_not_numbers(self, folder):
        import hashlib

        import safetensors.torch

        state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        state["weight"][0, 0] = float("nan")
        content = safetensors.torch.save(state)
        (folder / WEIGHTS_FILE).write_bytes(content)
        self.edit(folder, sha256=hashlib.sha256(content).hexdigest())
        self.refuses(folder, "weight is not a finite")


def test_saving_where_a_file_stands(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a directory"):
        fitted().save_pretrained(tmp_path / "file" / "below")


def test_nothing_half_written(tmp_path, monkeypatch):
    """A write that fails in the middle leaves no new file and no temporary one."""
    purified = fitted()
    purified.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fitted(seed := None or make("plain", seed=2)).save_pretrained(tmp_path)
    assert seed is not None
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
