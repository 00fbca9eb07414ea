"""The one training loop: resumes to the same bits, lends the global generator, says what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neural_polarizer import InputError
from neural_polarizer.lab import train as train_room
from neural_polarizer.lab.datasets.base import Split
from neural_polarizer.lab.loop import Learner, one_cycle, run_loop
from neural_polarizer.lab.train import Recipe, Tampering, train
from neural_polarizer.models.zoo import build_model


def data(count: int = 48, side: int = 8) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)


def vgg() -> nn.Module:
    return build_model("vgg19_bn", classes=3, width=1)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_dropout_is_deterministic_and_leaves_the_global_generator():
    nets = [vgg() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        train(net, data(), Recipe(epochs=1, lr=0.01), seed=seed, progress=False)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_goes_on_to_the_same_bits_with_dropout(optimizer, tmp_path):
    whole, first, second = vgg(), vgg(), vgg()
    recipe = Recipe(epochs=3, lr=0.01, optimizer=optimizer, mirror=True)
    train(whole, data(), recipe, progress=False)

    class Enough(Exception):
        pass

    class StopInTheThirdEpoch(Tampering):
        count = 0

        def batch(self, images, labels, generator):
            self.count += 1
            if self.count > 2:
                raise Enough
            return images, labels, None

    path = tmp_path / "at.pt"
    with pytest.raises(Enough):
        train(first, data(), recipe, tampering=StopInTheThirdEpoch(), checkpoint=path, progress=False)
    train(second, data(), recipe, checkpoint=path, progress=False)
    assert same(whole, second)
    third = vgg()
    train(third, data(), recipe, checkpoint=path, progress=False)
    assert same(whole, third), "a finished checkpoint is only read"


def test_checkpoints_of_others(tmp_path):
    path = tmp_path / "at.pt"
    train(vgg(), data(), Recipe(epochs=1, lr=0.01), checkpoint=path, progress=False)
    with pytest.raises(InputError, match="another setting"):
        train(vgg(), data(), Recipe(epochs=2, lr=0.01), checkpoint=path, progress=False)
    for content in (b"", b"\x80\x02cos\nsystem\nU\x02ls\x85R.", path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be gone on from"):
            train(vgg(), data(), Recipe(epochs=1, lr=0.01), checkpoint=path, progress=False)


def test_a_training_that_loses_its_way_is_said():
    net = build_model("small_resnet", classes=3, width=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with pytest.raises(InputError, match="lost its way in epoch 1"):
        run_loop(
            [Learner(net, optimizer, one_cycle(optimizer, 1.0, 4))],
            lambda rows, generator: net(data().floats(rows)).sum() * float("nan"),
            48, epochs=1, batch_size=12, seed=0, device="cpu", progress=False,
        )  # fmt: skip


def test_bad_recipes():
    for options, message in [
        ({"precision": "half"}, "precision"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
    ]:
        with pytest.raises(InputError, match=message):
            Recipe(**options)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_what_the_processor_is_made_for(monkeypatch, native):
    monkeypatch.setattr(train_room, "native_bfloat16", lambda device: native)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    narrow = "bfloat16" if native else "float32"
    wanted = {"float32": ("float32", "float32"), "bfloat16": (narrow, narrow), "auto": ("float32", narrow)}
    for precision, on in wanted.items():
        recipe = Recipe(precision=precision)
        assert (recipe.precision_on(cpu), recipe.precision_on(gpu)) == on
        assert recipe.autocast(cpu)._enabled == (on[0] == "bfloat16")


def test_bfloat16_trains_float32_weights(monkeypatch):
    monkeypatch.setattr(train_room, "native_bfloat16", lambda device: True)
    net = build_model("small_resnet", classes=3, width=4)
    train(net, data(), Recipe(epochs=1, precision="bfloat16", channels_last=True), progress=False)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())


def test_a_last_batch_of_one_joins_the_one_before():
    sizes = []
    module = nn.BatchNorm1d(1)

    def loss(rows, generator):
        sizes.append(len(rows))
        return module.weight.square().sum()

    learner = Learner(module, torch.optim.SGD(module.parameters(), lr=0.1))
    run_loop([learner], loss, 9, epochs=1, batch_size=4, seed=0, device="cpu", progress=False)
    assert sizes == [4, 5]
