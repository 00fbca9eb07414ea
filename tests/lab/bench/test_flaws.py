"""Clean sets that are not quite clean."""

from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.choose import held_back
from neural_polarizer.lab.attacks.registry import build_attack
from neural_polarizer.lab.bench import work
from neural_polarizer.lab.bench.flaws import FLAWS
from neural_polarizer.lab.bench.store import read_records
from neural_polarizer.lab.datasets.base import Split

from .test_run import cells, finished, run  # noqa: F401

ATTACK = build_attack("badnets", {"target": 2})


def split(channels: int = 3) -> Split:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (100, channels, 16, 16), generator=draw, dtype=torch.uint8)
    return Split(images, torch.randint(4, (100,), generator=draw))


@pytest.mark.parametrize("name", FLAWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_given_set_is_left_alone_and_the_same_seed_makes_the_same(name, channels):
    given, before = split(channels), split(channels)
    one, two = (FLAWS[name](given, ATTACK, 4, 3) for _ in range(2))
    assert torch.equal(given.images, before.images)
    assert torch.equal(given.labels, before.labels)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert one.images.dtype == torch.uint8
    assert one.images.shape == given.images.shape


@pytest.mark.parametrize(("name", "count"), [("triggered-1", 1), ("triggered-5", 5)])
def test_some_carry_the_trigger_and_its_label(name, count):
    given, seen = split(), FLAWS[name](split(), ATTACK, 4, 0)
    rows = (seen.images != given.images).flatten(1).any(1).nonzero()[:, 0]
    assert len(rows) == count
    assert (seen.labels[rows] == 2).all()
    rest = torch.ones(100, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(seen.labels[rest], given.labels[rest])
    torch.testing.assert_close(seen.floats(rows), ATTACK.trigger(given.floats(rows)), atol=1 / 255, rtol=0)


def test_what_is_flawed_is_not_drawn_as_the_judges_of_purify_are():
    """The cell gives both the same seed: a fifth of what carries the trigger judges, and not all of it."""
    given = Split(torch.zeros(1000, 1, 8, 8, dtype=torch.uint8), torch.ones(1000, dtype=torch.long))
    seen = FLAWS["triggered-5"](given, ATTACK, 4, 0)
    rows = seen.images.flatten(1).any(1).nonzero()[:, 0]
    judges, _ = held_back(1000, 0)
    assert 2 <= torch.isin(rows, judges).sum() <= 20 < len(rows)


def test_some_have_a_wrong_label():
    seen = FLAWS["mislabelled-10"](split(), ATTACK, 4, 0)
    assert (seen.labels != split().labels).sum() == 10
    assert set(seen.labels.tolist()) <= {0, 1, 2, 3}


def test_jpeg_and_brightness_change_every_image_a_little():
    smooth = Split(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(8, 3, -1, -1), torch.zeros(8).long())
    seen = FLAWS["jpeg"](smooth, ATTACK, 4, 0)
    apart = (seen.floats() - smooth.floats()).abs()
    assert 0 < apart.mean() < 0.05
    bright = FLAWS["brighter"](smooth, ATTACK, 4, 0).floats()
    torch.testing.assert_close(bright, (smooth.floats() * 1.2).clamp(max=1), atol=1 / 255, rtol=0)


def test_a_grid_asks_for_them(finished, short_rounds, monkeypatch):  # noqa: F811
    root, _ = finished
    seen, defend = [], work.defend
    monkeypatch.setattr(work, "defend", lambda *a, **k: (seen.append(a[4]), defend(*a, **k))[1])
    monkeypatch.setattr(work, "_perturbed", work.Last())
    options = {"method": "npd", "layer": "fc", "max_accuracy_drop": 0.5}
    flaws = [None, "unlabelled", "mislabelled-10"]
    wanted = cells(defences=[{"name": "auto", "label": f"with {f}", "flaw": f, "options": options} for f in flaws])
    assert len({c.key for c in wanted}) == 3
    assert "flaw" not in wanted[0].setting(), "records older than flaws keep their names"
    assert run(root, wanted).finished == 3
    (x, y), alone, (same, wrong) = seen
    assert torch.equal(alone, x), "images without labels"
    assert torch.equal(same, x)
    assert (wrong != y).double().mean() == pytest.approx(0.1, abs=0.02)
    assert {r["setting"].get("flaw") for r in read_records(root) if r["labels"]["defence"] in "with None"} == {None}


@pytest.mark.parametrize(("defence", "flaw"), [("auto", "dirty"), ("ft", "unlabelled")])
def test_what_cannot_be_is_refused(defence, flaw):
    with pytest.raises(InputError, match="flaw"):
        cells(defences=[{"name": defence, "flaw": flaw}])
