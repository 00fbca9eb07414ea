"""The re-activation attack: more budget wakes more, on images that the search has not seen."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from neural_polarizer.errors import InputError
from neural_polarizer.lab.attacks.registry import build_attack
from neural_polarizer.lab.bench import reactivate, work
from neural_polarizer.lab.bench.cells import cells_of
from neural_polarizer.lab.bench.grid import Grid, read_grid
from neural_polarizer.lab.bench.reactivate import reactivated
from neural_polarizer.lab.bench.store import read_records
from neural_polarizer.lab.datasets.base import Split

from .test_run import GRID, run

TARGET = 1


class Bright(nn.Module):
    """Class TARGET where the image is bright enough, else class 0: so bright that the trigger alone does not do it."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        excess = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([-excess, excess, torch.full_like(excess, -9.0)], 1) * 50


def dark(count=400):
    images = torch.randint(0, 40, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Split(images, torch.arange(count) % 3)


def test_a_larger_budget_wakes_more():
    attack = build_attack("badnets", {"target": TARGET, "size": 2})
    model = Bright(0.12).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rates = [r["asr"] for r in reactivated(model, dark(), attack, (0, 0.5, 4.0), 3, seed=0)]
    assert rates[0] == 0
    assert rates[0] <= rates[1] <= rates[2]
    assert rates[2] == 1
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.threshold.requires_grad


def test_what_is_measured_was_not_searched_on(monkeypatch):
    seen, learn = [], reactivate.learn_patterns

    def watched(threat, forward, images, labels, *args, **kwargs):
        seen.append(labels)
        return learn(threat, forward, images, labels, *args, **kwargs)

    judged, predict = [], reactivate.predict
    monkeypatch.setattr(reactivate, "learn_patterns", watched)
    monkeypatch.setattr(reactivate, "predict", lambda m, x, **k: (judged.append(x), predict(m, x, **k))[1])
    split = dark(300)
    split.images[:, 0, 0, 0] = (torch.arange(300) % 256).to(torch.uint8)
    reactivated(Bright(0.5), split, build_attack("badnets", {"target": TARGET, "size": 2}), (1.0,), 3, seed=0)
    assert (seen[0] != TARGET).all()
    assert len(seen[0]) == len(judged[0]) == 100, "200 of the 300 images are of other classes"


def test_in_a_grid(tmp_path):
    wanted = cells_of(Grid.model_validate(GRID | {"reactivation": [0, 1.5], "defences": ["none"]}))
    run(tmp_path, wanted)
    (record,) = read_records(tmp_path)
    assert record["setting"]["reactivation"] == [0.0, 1.5]
    assert [r["radius"] for r in record["reactivated"]] == [0.0, 1.5]
    assert len(record["twin_reactivated"]) == 2
    assert record["reactivated"][1]["asr"] >= record["reactivated"][0]["asr"]
    json.dumps(record)


def test_without_it_cells_keep_their_keys():
    plain, empty = (cells_of(Grid.model_validate(GRID | more)) for more in ({}, {"reactivation": []}))
    assert [c.key for c in plain] == [c.key for c in empty]
    assert all("reactivation" not in c.setting() for c in plain)


def test_all_to_all_has_no_class_to_wake():
    with pytest.raises(InputError, match="reactivation: badnets_all has no one target"):
        cells_of(Grid.model_validate(GRID | {"reactivation": [1], "attacks": ["badnets_all"]}))


def test_the_shipped_grid():
    assert cells_of(read_grid("adaptive"))


def test_the_twin_is_woken_once_for_all_defences_of_a_network(tmp_path, monkeypatch):
    woken = []
    monkeypatch.setattr(work, "_twin_woken", work.Last())
    monkeypatch.setattr(work, "reactivated", lambda model, *a, **k: woken.append(model) or [{"n": len(woken)}])
    some = {"reactivation": [0, 1.5], "defences": ["none", "clp"], "seeds": [0, 1]}
    run(tmp_path, cells_of(Grid.model_validate(GRID | some)))
    records = read_records(tmp_path)
    assert len(records) == 4
    # Two networks. Nothing done has the seed 0 at both, so that the second one's twin is woken with two seeds.
    assert len(woken) == 4 + 1 + 2
    first, second = (r["twin_reactivated"] for r in records if r["seeds"]["network"] == 0)
    assert first == second
