"""Clean images that carry the trigger are found, left out, and told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neural_polarizer import FitConfig, purify
from neural_polarizer import choose as room
from neural_polarizer.poisoned import LEAST, poisoned

from .nets import CLASSES, images, labels, plain_logits
from .test_rounds import changed, lively

SURE = 9.0


def logits(of: list[int], classes: int = 3) -> torch.Tensor:
    return SURE * torch.nn.functional.one_hot(torch.tensor(of), classes).float()


def test_what_lost_its_class_by_hand():
    """Of the suspected class 1 two of five go to another one; an image of class 0 that goes is none of them."""
    before, after = logits([1, 1, 0, 1, 1, 1]), logits([1, 2, 2, 0, 1, 1])
    assert poisoned(before, after, 1).tolist() == [1, 3]
    assert poisoned(before, before, 1).tolist() == []
    doubtful = after.clone()
    doubtful[1] = torch.tensor([0.0, 2.0, 3.0])  # keeps more than a twentieth
    assert poisoned(before, doubtful, 1).tolist() == [3]


@pytest.mark.parametrize(("gone", "found"), [(3, 0), (4, 4)])
def test_a_few_odd_ones_are_none(gone, found):
    """Of 100 images of the class three are within what any class has."""
    assert LEAST == 0.03
    before, after = logits([1] * 100), logits([0] * gone + [1] * (100 - gone))
    assert len(poisoned(before, after, 1)) == found


USUAL = (images(40), labels(40))


@pytest.fixture
def small(monkeypatch):
    few = changed(views=1)
    monkeypatch.setattr(FitConfig, "in_rounds", classmethod(lambda cls, **options: changed(few, **options)))
    monkeypatch.setattr(room, "FEW", 0)


def choice_of(most: float):
    return purify(lively("skips"), USUAL, layer="block", max_accuracy_drop=most, progress=False, capture="hooks").choice


def accused(monkeypatch, score: float) -> None:
    attempt = room.attempt

    def found(*args, **options):
        made = attempt(*args, **options)
        excess = tuple(score * (c == 1) for c in range(CLASSES))
        return replace(made, suspicion=replace(made.suspicion, excess=excess))

    monkeypatch.setattr(room, "attempt", found)


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_they_are_neither_fitted_on_nor_judged_by(small, monkeypatch, score):
    """And the polarizer that finds them has seen no image of the suspected class. Without a suspect none is looked for."""
    accused(monkeypatch, score)
    found, fits, judged = [0, 3, 7], list[torch.Tensor](), list[room.Chooser]()
    monkeypatch.setattr(room, "poisoned", lambda before, after, suspect: torch.tensor(found))
    fit = room.Pool.fit
    monkeypatch.setattr(room.Pool, "fit", lambda self, *a, **o: (fits.append(o["rows"].clone()), fit(self, *a, **o))[1])
    monkeypatch.setattr(
        room.Chooser, "drop", lambda self, *a, told=room.Chooser.drop: (judged.append(self), told(self, *a))[1]
    )
    choice = choice_of(1.0)
    held, others = room.held_back(40, 0)
    if not score:
        assert choice.poisoned == ()
        assert choice.held_back == len(held)
        assert all(rows.tolist() == others.tolist() for rows in fits)
        return
    assert choice.poisoned == tuple(found)
    own = plain_logits(lively("skips"), USUAL[0]).argmax(1)
    assert fits[0].tolist() == (own != 1).nonzero()[:, 0].tolist()
    assert len(fits) > 2
    assert all(rows.tolist() == [i for i in others.tolist() if i not in found] for rows in fits[1:])
    assert choice.held_back == len([i for i in held.tolist() if i not in found])
    assert judged[0].held.tolist() == [i for i in held.tolist() if i not in found]


@pytest.mark.parametrize("found", [list(range(20)), room.held_back(40, 0)[0].tolist()])
def test_half_of_the_images_or_all_judges_are_not_left_out(small, monkeypatch, found):
    accused(monkeypatch, 1.0)
    monkeypatch.setattr(room, "poisoned", lambda before, after, suspect: torch.tensor(found))
    choice = choice_of(1.0)
    assert choice.poisoned == ()
    assert choice.held_back == 8


def test_they_are_back_where_the_suspect_is_cleared(small, monkeypatch):
    accused(monkeypatch, 0.41)
    monkeypatch.setattr(room, "poisoned", lambda before, after, suspect: torch.tensor([0, 3, 7]))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, *a: (0.02 if self.suspect == 1 else 0.001, 0.0))
    choice = choice_of(0.5)
    assert [t.suspect for t in choice.trials[:2]] == [1, None]
    assert choice.poisoned == ()
    assert choice.held_back == 8
