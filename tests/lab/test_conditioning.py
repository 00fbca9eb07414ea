from __future__ import annotations

from dataclasses import replace

import torch

from neural_polarizer.lab import conditioning, demo
from neural_polarizer.lab.conditioning import CONFIG
from neural_polarizer.lab.train import Recipe


def test_conditions():
    predicted, labels = torch.tensor([1, 2, 0]), torch.tensor([1, 1, 1])
    assert conditioning.conditions("predicted", predicted, labels, 3, 0) is predicted
    assert conditioning.conditions("label", predicted, labels, 3, 0) is labels
    assert conditioning.conditions("none", predicted, labels, 3, 0).tolist() == [0, 0, 0]
    drawn = conditioning.conditions("random", torch.zeros(3000), labels.repeat(1000), 3, 0)
    assert torch.bincount(drawn).min() > 900


def test_the_clean_images_come_with_moved_copies():
    data = demo.digits(size=demo.SIZE, seed=0)
    clean = data.train.take(data.hold_back(int(demo.CLEAN_SHARE * len(data.train)), 0)[0])
    images, labels = conditioning.augmented(clean, 0)
    assert len(images) == len(labels) == conditioning.COPIES * len(clean)
    assert torch.equal(images[: len(clean)], clean.floats())


def test_every_cell_is_there(monkeypatch):
    monkeypatch.setattr(demo, "RECIPE", Recipe(epochs=4))
    monkeypatch.setattr(demo, "SIZE", 16)
    config = replace(CONFIG, epochs=2, warmup_epochs=0, steps=1, lr=0.03, batch_size=32)
    records = conditioning.run_conditioning([0], config=config, progress=False)
    assert len(records) == 1 + 3 * 4
    table = conditioning.summary(records)
    assert [row[:2] for row in table[1:3]] == [("npd", "-"), ("r-cnpd", "predicted")]
    assert all(row[-1] == "1" for row in table[1:])
    after = {(r["method"], r["condition"]): r["after"] for r in records}
    assert len({str(v) for v in after.values()}) > 3  # the condition changes the outcome
