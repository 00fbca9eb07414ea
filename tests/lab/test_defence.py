"""The loop does what it is for, on a real network: perturbations that worked stop working, clean images stay."""

from __future__ import annotations

import torch

from neural_polarizer import FitConfig, purify
from neural_polarizer.cut import frozen_view
from neural_polarizer.lab.datasets.digits import digits
from neural_polarizer.lab.train import Recipe, predict, train
from neural_polarizer.losses import asr_loss, without_class
from neural_polarizer.metrics import accuracy
from neural_polarizer.models.small_resnet import SmallResNet
from neural_polarizer.perturb import descend


def test_perturbations_stop_working():
    data = digits()
    clean, rest = (data.train.take(rows) for rows in data.hold_back(100, seed=0))
    images = clean.floats()
    net = SmallResNet(classes=10, width=8)
    train(net, rest, Recipe(epochs=8), progress=False)
    config = FitConfig(epochs=15, warmup_epochs=1)
    target = without_class(net(images).detach(), clean.labels).argmax(1)
    how = config.descent(images.shape[1:])
    fixed = descend(config.threat((3, 16, 16)), frozen_view(net), images, target, how).images
    purified = purify(net, (images, clean.labels), method="npd", layer="layer3", config=config, progress=False)
    with torch.no_grad():
        assert asr_loss(purified(fixed), target) < 0.5 * asr_loss(net(fixed), target)
    drop = accuracy(predict(net, data.test.images), data.test.labels) - accuracy(
        predict(purified, data.test.images), data.test.labels
    )
    assert drop < 0.05
