"""Clean images that carry the trigger are found, left out, and told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neural_polarizer import FitConfig, purify
from neural_polarizer import choose as room
from neural_polarizer.poisoned import ODD, SHARE, poisoned

from .nets import CLASSES, images, labels
from .test_rounds import changed, lively

SURE = 9.0


def logits(of: list[int], classes: int = 3) -> torch.Tensor:
    return SURE * torch.nn.functional.one_hot(torch.tensor(of), classes).float()


EVERY = torch.arange(100)


def test_what_lost_its_class_by_hand():
    """Seven of the suspected class 1 go to another one; an image of class 0 that goes is none of them."""
    before, after = logits([1] * 7 + [0] + [1] * 92), logits([2] * 6 + [0, 2] + [1] * 92)
    assert poisoned(before, after, EVERY, 1) == [0, 1, 2, 3, 4, 5, 6]
    assert poisoned(before, after, EVERY) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert poisoned(before, before, EVERY) == []
    after[1] = torch.tensor([0.0, 2.0, 3.0])  # keeps a quarter
    assert poisoned(before, after, EVERY, 1) == [0, 2, 3, 4, 5, 6]
    before[0, 0] = 9.0
    after[0] = torch.tensor([9.0, 5.0, 9.0])  # had a half, and keeps a hundredth
    assert poisoned(before, after, EVERY)[:2] == [2, 3]
    before[0, 0] = 8.9
    assert poisoned(before, after, EVERY, 1)[:2] == [0, 2]


def test_what_loses_less_is_left_out_where_others_lose_more():
    before, after = logits([1] * 100), logits([0] * 5 + [1] * 95)
    after[5] = torch.tensor([3.8, 2.0, 0.0])  # keeps an eighth
    assert poisoned(before, after, EVERY) == [0, 1, 2, 3, 4, 5]
    assert poisoned(before, after, EVERY[1:]) == []
    assert poisoned(before, after, EVERY[1:], known=[99]) == [0, 1, 2, 3, 4, 5, 99]


@pytest.mark.parametrize(("of", "gone"), [(60, 4), (5000, 10)])
def test_a_few_odd_ones_are_none(of, gone):
    """Unless it is known that there are some; and what it was not fitted on does not count."""
    assert (ODD, SHARE) == (4, 0.002)
    before, every = logits([1] * of), torch.arange(of)
    after = logits([0] * gone + [1] * (of - gone))
    assert len(poisoned(before, after, every)) == 0
    assert poisoned(before, after, every, known=[0]) == list(range(gone))
    after[gone] = after[0]
    assert poisoned(before, after, every) == list(range(gone + 1))
    assert len(poisoned(before, after, every[2:])) == 0


@pytest.mark.parametrize("known", [[], [0], [98, 99]])
def test_more_than_a_tenth_are_what_the_polarizer_destroys(known):
    """Those that were known before are counted with them, and stay."""
    for gone in range(8, 13):
        before, after = logits([1] * 100), logits([0] * gone + [1] * (100 - gone))
        together = sorted({*range(gone), *known})
        assert poisoned(before, after, EVERY, known=known) == (together if len(together) <= 10 else known)


USUAL = (images(40), labels(40))


@pytest.fixture
def small(monkeypatch, few_views):
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


@pytest.mark.parametrize("suspect", [1, None])
def test_they_are_neither_fitted_on_nor_judged_by(small, monkeypatch, suspect):
    """They are looked for with the strongest polarizer, and again with one that has not seen what was found."""
    accused(monkeypatch, 1.0 if suspect else 0.0)
    said, asked, fits, judged = [[0, 3], [3, 7], []], list[tuple](), list[list[int]](), list[list[int]]()

    def found(before, after, fitted_on, of, known):
        assert fitted_on.tolist() == fits[-1]
        asked.append((of, known, len(fits)))
        return sorted({*known, *said[len(asked) - 1]})

    monkeypatch.setattr(room, "poisoned", found)
    fit, drop = room.Pool.fit, room.Chooser.drop
    strengths = list[float]()

    def fitted(self, polarizer, config, *a, rows, **o):
        fits.append(rows.tolist())
        strengths.append(config.lambda_asr)
        return fit(self, polarizer, config, *a, rows=rows, **o)

    monkeypatch.setattr(room.Pool, "fit", fitted)
    monkeypatch.setattr(room.Chooser, "drop", lambda self, *a: (judged.append(self.held.tolist()), drop(self, *a))[1])
    choice = choice_of(1.0)
    held, others = (rows.tolist() for rows in room.held_back(40, 0))
    assert asked == [(suspect, (), 1), (suspect, (0, 3), 2), (suspect, (0, 3, 7), 3)]
    assert choice.poisoned == (0, 3, 7)
    for at, out in enumerate(([], [0, 3], [0, 3, 7])):
        assert fits[at] == [i for i in others if i not in out]
    assert all(rows == fits[2] for rows in fits[3:])
    assert all(rows == [i for i in held if i not in choice.poisoned] for rows in judged)
    assert choice.held_back == len(judged[0])
    assert len(choice.trials) == len(fits) - 3, "what finds them is no trial"
    assert strengths[:3] == [room.STRENGTHS[-1]] * 3 != strengths[3:6]


def test_what_is_found_again_and_again_ends(small, monkeypatch):
    accused(monkeypatch, 0.0)
    asked = list[int]()
    monkeypatch.setattr(room, "poisoned", lambda *a: (asked.append(0), [*range(1, len(asked) + 1)])[1])
    assert choice_of(1.0).poisoned == tuple(range(1, room.AGAIN + 1))


def test_all_judges_are_not_left_out(small, monkeypatch):
    accused(monkeypatch, 1.0)
    monkeypatch.setattr(room, "poisoned", lambda *a: room.held_back(40, 0)[0].tolist())
    choice = choice_of(1.0)
    assert choice.poisoned == ()
    assert choice.held_back == 8


def test_they_are_back_where_the_suspect_is_cleared(small, monkeypatch):
    accused(monkeypatch, 0.41)
    monkeypatch.setattr(room, "poisoned", lambda *a: [0, 3, 7] if a[3] == 1 else [])
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, *a: (0.02 if self.suspect == 1 else 0.001, 0.0))
    choice = choice_of(0.5)
    assert [t.suspect for t in choice.trials[:2]] == [1, None]
    assert choice.poisoned == ()
    assert choice.held_back == 8
