from __future__ import annotations

import torch

from neural_polarizer.lab.augment import augment, mirrored, shifted
from neural_polarizer.lab.datasets.digits import digits
from neural_polarizer.lab.train import Recipe, predict, train
from neural_polarizer.metrics import accuracy
from neural_polarizer.models.small_resnet import SmallResNet


def test_learns_digits_and_is_deterministic():
    data = digits()
    part = data.train.take(torch.arange(600))
    nets = []
    for seed in (0, 0, 1):
        net = SmallResNet(classes=10, width=8, seed=seed)
        train(net, part, Recipe(epochs=6), seed=seed, progress=False)
        nets.append(net)
    assert accuracy(predict(nets[0], data.test.images), data.test.labels) > 0.8
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0].fc.weight, nets[2].fc.weight)


def test_shift_moves_whole_images():
    image = torch.zeros(40, 1, 7, 7)
    image[:, :, 3, 3] = 1
    out = shifted(image, 2, torch.Generator().manual_seed(0))
    assert out.sum((1, 2, 3)).tolist() == [1.0] * 40
    where = out.flatten(1).argmax(1)
    rows, columns = where // 7, where % 7
    assert rows.min() == 1
    assert rows.max() == 5
    assert columns.min() == 1
    assert columns.max() == 5
    assert shifted(image, 0, torch.Generator()) is image


def test_predict_restores_the_mode():
    net = SmallResNet(classes=10, width=4).train()
    predict(net, digits().test.images[:4])
    assert net.training


def test_mirrored_or_not():
    images = torch.arange(6.0).view(1, 1, 1, 6).repeat(50, 1, 1, 1)
    out = mirrored(images, torch.Generator().manual_seed(0))
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) | flipped).all()
    assert 10 < flipped.sum() < 40
    assert augment(images, torch.Generator(), shift=0, mirror=False) is images
