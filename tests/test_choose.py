"""Layer, method and strength from clean data alone: what is tried, what is kept, what is never returned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from neural_polarizer import FitConfig, InputError, purify
from neural_polarizer import choose as room
from neural_polarizer.choose import STRENGTHS, candidate_layers
from neural_polarizer.mixture import Family
from neural_polarizer.models.zoo import build_model
from neural_polarizer.outer import FitDiverged
from neural_polarizer.pool import Copies, Pool
from neural_polarizer.suspicion import Suspicion, suspicion_of

from .nets import CLASSES, SHAPE, images, labels, plain_logits
from .test_fit import same, snapshot
from .test_rounds import changed, lively

SMALL = changed(views=1)
USUAL = (images(40), labels(40))


@pytest.fixture
def small(monkeypatch, few_views):
    """The mixture of the tests of rounds, as the one that is chosen with, and no clean set that is too small."""
    monkeypatch.setattr(room, "FEW", 0)
    monkeypatch.setattr(room, "PER_CLASS", 0.05)
    monkeypatch.setattr(FitConfig, "in_rounds", classmethod(lambda cls, **options: changed(SMALL, **options)))


@pytest.fixture
def accuse(monkeypatch):
    """Let class 1 stand out by so much, whatever the perturbations say."""
    attempt = room.attempt

    def by(lead: float) -> None:
        def found(*args, **options):
            made = attempt(*args, **options)
            excess = tuple(lead * (c == 1) for c in range(len(made.suspicion.excess)))
            return replace(made, suspicion=replace(made.suspicion, excess=excess))

        monkeypatch.setattr(room, "attempt", found)

    return by


@pytest.fixture
def suspected(accuse):
    """Class 1 stands out by all that a class can."""
    accuse(1.0)


def auto(net: nn.Module, clean=USUAL, **options):
    return purify(net, clean, **{"progress": False, "capture": "hooks", **options})


def test_everything_is_chosen_and_the_model_left_alone(small):
    net = lively("skips").train()
    before = snapshot(net)
    purified = auto(net, max_accuracy_drop=1.0)
    assert same(before, snapshot(net))
    choice = purified.choice
    assert choice.within_budget
    taken = choice.trials[choice.chosen]
    assert (taken.layer, taken.method) == (purified.layer, purified.method)
    assert purified.config.lambda_asr == purified.config.lambda_ce == purified.config.lambda_max == taken.strength
    assert {t.method for t in choice.trials} == {"npd"}, "no class is suspected"
    assert {t.layer for t in choice.trials} == {"block.conv1"}
    rivals = [t for t in choice.trials if (t.suspect, t.method) == (taken.suspect, taken.method)]
    assert taken.suspect is None
    assert taken.score == max(t.score for t in rivals if t.strength == taken.strength)  # luck is for a stronger one
    assert choice.held_back == 8
    assert purified.outside_budget is None


def test_what_is_reported_holds_for_what_is_returned(small):
    net = lively("skips")
    purified = auto(net, layer="block", method="npd", max_accuracy_drop=1.0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    held = order[:8]
    x, y = USUAL[0][held], USUAL[1][held]
    assert purified.choice.accuracy_before == pytest.approx((plain_logits(net, x).argmax(1) == y).double().mean())
    assert purified.choice.accuracy_after == pytest.approx((purified(x).argmax(1) == y).double().mean().item())
    drop = purified.choice.accuracy_before - purified.choice.accuracy_after
    assert purified.choice.accuracy_drop == pytest.approx(drop)
    low, high = purified.choice.drop_interval
    assert low <= drop <= high


def test_no_fit_sees_the_images_that_judge(small, monkeypatch):
    seen = []
    fit = Pool.fit
    monkeypatch.setattr(Pool, "fit", lambda self, *a, rows, **k: (seen.append(rows), fit(self, *a, rows=rows, **k))[1])
    auto(lively("skips"), layer="block", method="npd")
    held = set(torch.randperm(40, generator=torch.Generator().manual_seed(0))[:8].tolist())
    assert seen
    assert all(held.isdisjoint(rows.tolist()) and len(rows) == 32 for rows in seen)


@pytest.mark.parametrize(
    ("accused", "few", "kept", "both"),
    [(False, False, True, False), (True, False, True, True), (False, True, True, True), (False, False, False, True)],
)
def test_a_block_is_entered_alone_where_nothing_is_suspected_and_that_keeps_the_budget(
    small, monkeypatch, request, accused, few, kept, both
):
    if accused:
        request.getfixturevalue("suspected")
    judged = room.Chooser.judged

    def strict(self, trial, pool, polarizer):
        return replace(judged(self, trial, pool, polarizer), within_budget=kept or trial.layer == "block")

    monkeypatch.setattr(room, "FEW", 41 if few else 0)
    monkeypatch.setattr(room.Chooser, "judged", strict)
    choice = auto(lively("skips"), method="npd").choice
    assert candidate_layers(lively("skips"), images(2)) == ["block.conv1", "block"]
    assert {t.layer for t in choice.trials} == ({"block.conv1", "block"} if both else {"block.conv1"})
    assert choice.within_budget


@pytest.mark.parametrize(("count", "lost", "kept"), [(40, 1, True), (40, 2, False), (80, 2, True), (80, 3, False)])
def test_an_image_or_two_may_always_be_lost(small, suspected, monkeypatch, count, lost, kept):
    """Of 8 that judge, 1 is far more than the budget of 1 %, and tells nothing; of 16, 2 tell nothing."""
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (lost / len(self.held), 1.0))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (0.0, 0.0))
    assert (
        auto(lively("skips"), (images(count), labels(count)), layer="block", method="npd").choice.within_budget == kept
    )


@pytest.mark.parametrize(("few", "low", "kept"), [(0, 0.005, True), (0, 0.015, False), (41, 0.005, False)])
def test_images_that_luck_may_have_lost_break_no_budget_where_nothing_is_suspected(small, monkeypatch, few, low, kept):
    """Of 8 that judge 3 are lost, 0.5 % at least or 1.5 %. With few images the doubt is luck itself, and they count."""
    monkeypatch.setattr(room, "FEW", few)
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (0.375, 0.375 - low))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (0.0, 0.0))
    assert auto(lively("skips"), layer="block", method="npd").choice.within_budget == kept


@pytest.mark.parametrize(("suspect", "least", "kept"), [(1, 0.0, True), (1, 0.02, False), (None, 0.0, False)])
def test_a_doubt_that_may_be_luck_breaks_no_budget_where_a_backdoor_is_suspected(
    small, monkeypatch, accuse, suspect, least, kept
):
    accuse(0.0 if suspect is None else 1.0)
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (0.0, 0.0))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (0.03, least))
    choice = auto(lively("skips"), layer="block", method="npd").choice
    assert choice.within_budget == kept
    assert choice.trials[0].doubt == 0.03
    assert choice.trials[0].score == pytest.approx(choice.trials[0].repaired - 0.3)


def test_a_budget_of_nothing_is_nothing(small, monkeypatch):
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (1 / len(self.held), 1.0))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (0.0, 0.0))
    assert not auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=0.0).choice.within_budget


@pytest.fixture
def doubted(monkeypatch):
    """Let polarizers against a suspect have one doubt, and those against all classes another."""

    def by(against_one: float, against_all: float) -> None:
        def doubt(self, pool, polarizer):
            return (against_all if self.suspect is None else against_one), 0.0

        monkeypatch.setattr(room.Chooser, "doubt", doubt)

    return by


@pytest.mark.parametrize(
    ("lead", "against_one", "against_all", "believed"),
    [
        (0.41, 0.010, 0.001, True),  # the lead is worth more than that
        (0.41, 0.012, 0.001, False),
        (0.41, 0.012, 0.006, True),  # twice as much as against all classes is not yet too much
        (0.41, 0.012, 0.0059, False),
        (0.9, 0.03, 0.001, True),
    ],
)
def test_a_suspect_is_cleared_where_stopping_it_costs_more_than_its_lead_is_worth_and_than_all_classes(
    small, accuse, doubted, lead, against_one, against_all, believed
):
    """A trigger's short cut is closed at little cost; what is led to by a class's own features is not."""
    accuse(lead)
    doubted(against_one, against_all)
    choice = auto(lively("skips"), max_accuracy_drop=0.1).choice
    suspects = [t.suspect for t in choice.trials]
    assert suspects[0] == 1
    assert set(suspects[1:]) == {1 if believed else None}
    assert choice.suspicion.target == 1, "what the perturbations say stays on record"
    assert choice.chosen
    methods = {t.method for t in choice.trials}
    assert methods == ({"npd", "r-cnpd"} if believed else {"npd"})


def test_the_one_strength_that_is_given_is_the_one_of_all_trials_when_a_suspect_is_cleared(small, accuse, doubted):
    accuse(0.41)
    doubted(0.02, 0.001)
    choice = auto(lively("skips"), config=replace(SMALL, lambda_asr=0.07), max_accuracy_drop=0.1).choice
    assert {t.suspect for t in choice.trials} == {1, None}
    assert {t.strength for t in choice.trials} == {0.07}


def test_a_suspect_stays_where_it_cannot_be_told_what_all_classes_cost(small, accuse, doubted, monkeypatch):
    """The fit against all of them diverges."""
    accuse(0.41)
    doubted(0.02, 0.001)
    fitted = room.Chooser.fitted

    def diverging(self, *args, **options):
        if self.suspect is None:
            raise FitDiverged("it did")
        return fitted(self, *args, **options)

    monkeypatch.setattr(room.Chooser, "fitted", diverging)
    choice = auto(lively("skips"), layer="block", max_accuracy_drop=0.1).choice
    assert {t.suspect for t in choice.trials} == {1}
    assert choice.within_budget


def test_nothing_outside_the_budget_is_returned(small, monkeypatch):
    """However badly every fit goes, the user gets the original logits and is told."""
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (0.5, 0.1))
    net = lively("skips")
    purified = auto(net)
    assert not purified.choice.within_budget
    assert purified.choice.chosen is None
    torch.testing.assert_close(purified(images()), plain_logits(net, images()), atol=1e-4, rtol=1e-4)
    best = purified.choice.trials[purified.choice.best]
    assert (purified.outside_budget.layer, purified.outside_budget.method) == (best.layer, best.method)
    assert not torch.allclose(purified.outside_budget(images()), purified(images()), atol=1e-4)
    tried = [t for t in purified.choice.trials if t.suspect is None]
    strengths = [t.strength for t in tried if t.layer == tried[0].layer and t.method == "npd"]
    assert strengths == [0.1, 0.05, 0.02], "a fit outside the budget is tried again, weaker"


@pytest.mark.parametrize(
    ("most", "wanted"), [(0.3, [0.1, 0.2, 0.4, math.sqrt(0.08)]), (0.06, [0.1, 0.05, math.sqrt(0.005)])]
)
@pytest.mark.parametrize("accused", [False, True])
def test_between_the_last_strength_in_the_budget_and_the_next_where_nothing_is_suspected(
    small, monkeypatch, request, most, wanted, accused
):
    """It is the strength alone that stops a trigger then; against a suspect coarse steps do."""
    if accused:
        request.getfixturevalue("suspected")
    judged = room.Chooser.judged

    def strict(self, trial, pool, polarizer):
        return replace(judged(self, trial, pool, polarizer), within_budget=trial.strength <= most)

    monkeypatch.setattr(room.Chooser, "judged", strict)
    monkeypatch.setattr(room.Chooser, "look_again", lambda *a: None)
    tried = auto(lively("skips"), layer="block", method="npd").choice.trials
    assert [t.strength for t in tried if not t.twice] == pytest.approx(wanted[: len(wanted) - accused])


def test_a_fit_that_diverges_is_tried_again_weaker(small, monkeypatch):
    fit = Pool.fit

    def diverging(self, polarizer, config, *args, **kwargs):
        if config.lambda_asr > 0.02:
            raise FitDiverged("the losses are not finite")
        return fit(self, polarizer, config, *args, **kwargs)

    monkeypatch.setattr(Pool, "fit", diverging)
    choice = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0).choice
    assert [(t.strength, t.error) for t in choice.trials if t.suspect is None] == [
        (0.1, "the losses are not finite"), (0.05, "the losses are not finite"), (0.02, ""),
        (math.sqrt(0.001), "the losses are not finite"),
    ]  # fmt: skip
    assert choice.trials[choice.chosen].strength == 0.02


def test_from_the_middle_upwards_while_the_budget_is_kept(small):
    choice = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0).choice
    assert [t.strength for t in choice.trials if t.suspect is None] == list(STRENGTHS[2:])


def test_the_graph_and_hooks_choose_alike(small, full_width):
    one, two = (auto(lively("skips"), layer="block", capture=capture).choice for capture in ("graph", "hooks"))
    assert [(t.method, t.strength, t.within_budget) for t in one.trials] == [
        (t.method, t.strength, t.within_budget) for t in two.trials
    ]
    assert one.repaired == pytest.approx(two.repaired, abs=0.05)


def test_a_config_keeps_its_lambdas(small):
    config = changed(SMALL, lambda_ce=0.3, lambda_max=0.0, lambda_asr=0.03)
    purified = auto(lively("skips"), config=config, max_accuracy_drop=1.0)
    assert {t.strength for t in purified.choice.trials} == {0.03}
    assert purified.config == config


def test_same_seed_same_bits(small):
    one, two = (auto(lively("skips"), layer="block", seed=3) for _ in range(2))
    assert one.choice.to_dict() | {"trials": 0} == two.choice.to_dict() | {"trials": 0}
    for a, b in zip(one.polarizer.state_dict().values(), two.polarizer.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_without_labels_the_confidence_judges(small):
    choice = auto(lively("skips"), images(40), layer="block", method="npd", max_accuracy_drop=1.0).choice
    assert not choice.labelled
    assert choice.accuracy_before == 1.0  # against its own predictions
    assert choice.accuracy_drop <= 1 - choice.accuracy_after, "a change counts with what the model was surer of before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": FitConfig()}, "config: found loop='batch'"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop: found -0.1"),
        ({"max_accuracy_drop": float("nan")}, "max_accuracy_drop: found nan"),
        ({"layer": "nowhere"}, "layer: found 'nowhere'"),
        ({"method": "magic"}, "method: found 'magic'"),
    ],
)
def test_bad_input(small, options, message):
    with pytest.raises(InputError, match=message):
        auto(lively("skips"), **options)


def test_too_few_images_to_judge_with():
    with pytest.raises(InputError, match="clean: found 9 images, wanted at least 10"):
        auto(lively("skips"), images(9))


@pytest.mark.parametrize(
    ("arch", "options", "wanted"),
    [
        ("preact_resnet18", {"width": 4}, ["layer4.1.conv1", "layer4.1"]),
        ("vgg19_bn", {}, ["avgpool", "features.49", "features.46"]),
        ("small_resnet", {}, ["layer3.conv1", "layer3"]),
    ],
)
def test_candidates_are_the_last_blocks(arch, options, wanted):
    assert candidate_layers(build_model(arch, classes=10, **options), torch.zeros(2, 3, 32, 32)) == wanted


def test_shortcuts_and_attention_are_no_candidates():
    pytest.importorskip("transformers")
    from .hf import hugging_face

    for name in ("vit", "convnext", "swin"):
        found = candidate_layers(hugging_face(name), torch.zeros(2, 3, 32, 32))
        assert 2 <= len(found) <= 3
        assert not any(part in n for n in found for part in ("shortcut", "query", "key", "value", "intermediate"))


def test_no_block_at_all():
    class Bare(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :CLASSES]

    with pytest.raises(InputError, match="layer: found no block"):
        candidate_layers(Bare(), torch.zeros(2, *SHAPE))


def test_suspicion_is_what_stands_out_in_any_family():
    even = torch.full((3, 5), 10)
    odd = even.clone()
    odd[1, 3] = 50
    assert suspicion_of(even, torch.full((3, 5), 80)).target is None
    found = suspicion_of(odd, torch.full((3, 5), 80))
    assert found.target == 3
    assert found.score == pytest.approx(40 / 80)
    assert found.to_dict()["excess"][0] == 0
    assert suspicion_of(odd, torch.full((3, 5), 80), torch.tensor([1.0, 0.0, 1.0])).target is None
    eight = even[:1].repeat(8, 1)
    eight[1, 3] = 50
    half = suspicion_of(eight, torch.full((8, 5), 80), torch.tensor([1.0, 0.5, *[1.0] * 6]))
    assert half.score == pytest.approx(20 / 80)


def test_suspicion_is_also_a_lead_on_average():
    """A class that every family reaches, each beside another class."""
    rates = torch.tensor([[50, 50, 20, 20], [50, 20, 50, 20], [50, 20, 20, 50], [50, 50, 20, 20]])
    found = suspicion_of(rates, torch.full((4, 4), 80))
    assert found.target == 0
    assert found.score == pytest.approx(3 * (50 - 35) / 80)
    level = suspicion_of(rates[:2, :2], torch.full((2, 2), 80))
    assert level.score == pytest.approx(3 * 15 / 80), "of one family alone it would be less"


def test_a_way_that_only_some_classes_have_says_little():
    """Half of all images get to class 0: from three of six classes, where class 1 is reached from everywhere."""
    reached = torch.zeros(8, 7, 7)
    reached[0, 0, 1:4], reached[0, 1, [0, *range(2, 7)]] = 80, 20
    could = 80 * (1 - torch.eye(7)).expand(8, 7, 7)
    half = torch.tensor([0.5, *[1.0] * 7])
    found = suspicion_of(reached, could, half)
    assert found.reached[0][:2] == pytest.approx((0.5, 20 / 80))
    assert found.hardest[0][:2] == pytest.approx((0.0, 20 / 80))
    assert found.excess[:2] == pytest.approx((0, 0.5 * 20 / 80))
    faint = suspicion_of(reached, could)
    assert faint.excess[:2] == pytest.approx((0.5 - 20 / 80, 20 / 80)), "what is faint says it in either way"


def everywhere(target: int, families: int):
    """What is suspected where one class leads in every family."""
    counts = torch.ones(families, CLASSES)
    counts[:, target] = 70
    found = suspicion_of(counts, torch.full((families, CLASSES), 80))
    assert found.target == target
    return found


@pytest.mark.parametrize(("lead", "share"), [(0.61, 1.0), (0.59, 0.5)])
def test_where_a_class_stands_out_more_copies_that_are_drawn_show_it_and_they_alone_judge(
    small, monkeypatch, lead, share
):
    """All of them where it leads by much; by little, half, but for the first polarizer, which may clear it."""
    drawn, judges, fitted, attempt = [], [], room.Chooser.fitted, room.attempt
    leading = replace(everywhere(2, len(SMALL.mixture)), excess=(0.0, 0.0, lead, 0.0, 0.0))

    def watched(self, cut, pool, *args, **options):
        order, copies = torch.Generator().manual_seed(0), pool.copies
        of = copies.of[copies.targets == 2].unique().repeat(100)
        drawn.append(float((copies.targets[copies.draw(of, order)[1]] == 2).double().mean()))
        judges.append(set(copies.targets[self.judges(pool)].tolist()))
        return fitted(self, cut, pool, *args, **options)

    monkeypatch.setattr(room.Chooser, "fitted", watched)
    auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0)
    assert min(map(len, judges)) > 1
    by_chance = drawn[0]
    drawn.clear(), judges.clear()
    monkeypatch.setattr(room, "attempt", lambda *a, **k: replace(attempt(*a, **k), suspicion=leading))
    choice = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0).choice
    assert drawn[:2] == [1.0, 1.0], "by the search for poisoned images, and by the trial that may clear it"
    assert drawn[2] == pytest.approx(share + (1 - share) * by_chance, abs=0.05)
    assert (max(drawn[2:]) < 1) == (share < 1)
    assert set.union(*judges) == {2}
    assert choice.suspicion.target == 2
    assert {t.suspect for t in choice.trials} == {2}
    assert [t.alone for t in choice.trials] == [share < 1] + [False] * (len(choice.trials) - 1)
    assert not choice.trials[choice.chosen].alone


def test_a_family_counts_for_the_classes_that_it_reaches_most():
    rates = torch.tensor([[70, 2, 3], [40, 1, 30], [40, 42, 0], [5, 60, 1], [2, 4, 3]])
    found = suspicion_of(rates, torch.full((5, 3), 80))
    yes, no = True, False
    assert found.leading().tolist() == [[yes, no, no], [yes, no, no], [yes, yes, no], [no, yes, no], [yes, yes, yes]]
    assert found.leading(0)[:, 0].tolist() == [yes, yes, no, no, no], "ahead of the next"
    assert not found.leading(0)[:, 1:].any()
    assert [leaders.tolist() for leaders in found.leaders()] == [[0], [0], [1, 0], [1], [1, 2, 0]]
    assert [leaders.tolist() for leaders in found.leaders(1)] == [[], [], [], [1], []]
    nowhere = suspicion_of(torch.tensor([[70, 2, 3]]), torch.full((1, 3), 80))
    assert nowhere.leading(1).tolist() == [[no, yes, no]], "ahead on the average of all families alone"


def test_a_second_look_adds_what_still_passes(small, monkeypatch):
    sizes, families, trial, attempt = [], {}, room.Chooser.trial, room.attempt
    mixture = [Family(radius=1.0, share="target", steps=3, focus=2), Family(threat="flow", share="target", focus=1)]
    whole = changed(SMALL, mixture=mixture)
    monkeypatch.setattr(FitConfig, "in_rounds", classmethod(lambda cls, **options: changed(whole, **options)))
    monkeypatch.setattr(room, "attempt", lambda *a, **k: replace(attempt(*a, **k), suspicion=everywhere(2, 2)))

    def watched(self, cut, pool, *args, **kwargs):
        sizes.append((self.look, len(pool.copies.of)))
        families.setdefault(self.look, set()).update(pool.copies.family.tolist())
        return trial(self, cut, pool, *args, **kwargs)

    monkeypatch.setattr(room.Chooser, "trial", watched)
    choice = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0).choice
    first, again = (max(n for look, n in sizes if look == number) for number in (1, 2))
    assert again > first
    assert families[2] == families[1] | {2}, "what it adds is judged as one family more"
    looked = [t for t in choice.trials if t.look == 2]
    assert len(looked) >= 2, "the best one is judged anew, and one is fitted on what was added"
    assert choice.perturbed > 0


def test_r_cnpd_must_be_worth_a_second_tail(small, suspected, monkeypatch):
    monkeypatch.setattr(room.Chooser, "look_again", lambda *a: None)
    judged = room.Chooser.judged
    for lead, wanted in ((0.01, "npd"), (0.1, "r-cnpd")):

        def led(self, t, pool, g, lead=lead):
            return replace(judged(self, t, pool, g), score=0.5 + lead * (t.method == "r-cnpd"), within_budget=True)

        monkeypatch.setattr(room.Chooser, "judged", led)
        assert auto(lively("skips"), layer="block", max_accuracy_drop=1.0).method == wanted


@pytest.mark.parametrize(("per_class", "tried"), [(40 // CLASSES, True), (40 // CLASSES + 1, False)])
def test_a_map_per_class_needs_images_of_each(small, suspected, monkeypatch, per_class, tried):
    monkeypatch.setattr(room, "PER_CLASS", per_class)
    choice = auto(lively("skips"), layer="block", max_accuracy_drop=1.0).choice
    assert ("r-cnpd" in {t.method for t in choice.trials}) == tried


@pytest.mark.parametrize("suspect", [None, 2])
@pytest.mark.parametrize("few", [False, True])
def test_luck_decides_for_strength_and_against_a_suspect_or_of_few_images_for_the_second_look(small, suspect, few):
    """With 25 judges luck is 0.05 for each doubling of the strength."""
    x, y = images(125), labels(125)
    net = lively("skips")
    found = room.attempt(net, x, y, SMALL, seed=0, progress=False)
    given = replace(
        found, suspicion=replace(found.suspicion, excess=tuple(float(c == suspect) for c in range(CLASSES)))
    )
    chooser = room.Chooser(x, y, given, SMALL, None, 0.01, 0, few=few)
    again = few or suspect is not None
    weak = room.Trial("block", "npd", 0.1, score=0.5, within_budget=True, suspect=suspect)
    for score, best in ((0.53, 1), (0.47, 1), (0.43, 0)):
        for strengths in ((0.1, 0.2), (0.05, 0.1)):
            first, second = (replace(weak, strength=s) for s in strengths)
            chooser.trials = [first, replace(second, score=score)]
            assert chooser.best() == best
    chooser.trials = [weak, replace(weak, strength=0.2, within_budget=False)]
    assert chooser.best() == 0, "what a stronger one costs is for the budget to say"
    judged, fitted = replace(weak, look=2), replace(weak, look=2)
    chooser._looked = 0
    for score, best in ((0.57, (1, 1)), (0.53, (0, 1)), (0.47, (0, 1)), (0.43, (0, 0))):
        chooser.trials = [judged, replace(fitted, score=score)]
        assert chooser.best() == best[again]
    chooser.trials = [replace(judged, strength=0.2), replace(fitted, score=0.47)]
    assert chooser.best() == int(again), "a weaker one counts as strong as what it replaces"


@pytest.mark.parametrize("lost", [False, True])
def test_of_few_images_one_strength_is_tried_where_nothing_is_suspected(small, monkeypatch, lost):
    """No doubt stops it, and weaker ones are tried where more images are lost than tell nothing."""
    monkeypatch.setattr(room, "FEW", 41)
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (lost * 2 / len(self.held), 1.0))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (0.3, 0.2))
    choice = auto(lively("skips"), layer="block", method="npd").choice
    assert choice.suspicion.target is None
    assert [t.strength for t in choice.trials if t.look == 1 or t == choice.trials[0]] == (
        [0.2] if not lost else [0.2, 0.1, 0.04]
    )
    assert choice.within_budget == (not lost)
    assert choice.trials[0].score == pytest.approx(choice.trials[0].repaired)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("accused", [False, True])
def test_of_few_images_what_a_firm_polarizer_cannot_give_back_is_not_fitted_on(
    small, monkeypatch, request, few, accused
):
    """Where nothing is suspected; once more with what the second look adds."""
    if accused:
        request.getfixturevalue("suspected")
    else:
        monkeypatch.setattr(Suspicion, "target", property(lambda self: None))
    mixture = [Family(radius=1.0, share="target", steps=3, focus=2), Family(threat="flow", share="target", focus=1)]
    whole = changed(SMALL, mixture=mixture)
    monkeypatch.setattr(FitConfig, "in_rounds", classmethod(lambda cls, **options: changed(whole, **options)))
    monkeypatch.setattr(room, "FEW", 41 if few else 0)
    seen, back, fit, only = [], [], Pool.fit, Copies.only

    def watched(self, g, config, *args, **options):
        history = fit(self, g, config, *args, **options)
        every = torch.arange(len(self.copies.of))
        back[:] = [self.on_copies(g, every).argmax(1) == self.labels[self.copies.of]]
        seen.append(config.lambda_asr)
        return history

    def drawn(self, which):
        kind = "all" if which.all() else "given back" if torch.equal(which, back[0]) else "others"
        seen.append((kind, len(which)))
        return only(self, which)

    monkeypatch.setattr(Pool, "fit", watched)
    monkeypatch.setattr(Copies, "only", drawn)
    auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0)
    kinds, counts = zip(*(s for s in seen if isinstance(s, tuple)), strict=True)
    if few and not accused:
        assert kinds == ("all", "given back") * 2
        assert counts[0] == counts[1] < counts[2] == counts[3]
        assert [s for s in seen if not isinstance(s, tuple)] == [0.8, 0.2, 0.8, 0.2], "the firm one is fitted once"
    else:
        assert set(kinds) == {"all"}


@pytest.mark.parametrize(
    ("drop", "spread", "doubt", "within"),
    [
        (0.0, 0.01, 0.013, False), (0.0, 0.01, 0.009, True), (0.03, 0.03, 0.006, True), (0.03, 0.03, 0.0095, False),
        (0.019, 0.01, 0.008, False), (0.3, 0.03, 0.0, False),
    ],
)  # fmt: skip
def test_a_drop_above_the_doubt_counts_by_how_little_it_errs(small, monkeypatch, drop, spread, doubt, within):
    """Where nothing is suspected, and no class stands out."""
    monkeypatch.setattr(room.Chooser, "drop", lambda self, pool, g: (drop, spread))
    monkeypatch.setattr(room.Chooser, "doubt", lambda self, pool, g: (doubt, 0.0))
    monkeypatch.setattr(room, "_together", lambda *a, told=room._together: told(*a[:3], 10**6))
    trials = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=0.01).choice.trials
    assert {t.within_budget for t in trials} == {within}


def test_two_witnesses_by_hand():
    """Labels of which none says anything still err by two judges."""
    assert room._together(0.02, 0.02, 0.01, 10**9) == pytest.approx(0.012)
    assert room._together(0.03, 0.0, 0.01, 200) == pytest.approx(0.02)
    assert room._together(-0.5, 0.02, 0.01, 100) == room._together(0.01, 0.0, 0.01, 100) == 0.01
    assert room._together(0.05, 0.0, 0.0, 100) == room._together(0.0, 0.0, 0.0, 10**9) == 0.0


@pytest.mark.parametrize("few", [True, False])
def test_the_doubt_by_hand(small, few):
    """Of 25 judges with two views each, one view each of two goes from a class of 0.6 to one of 0.3. One of them is a
    view that the model takes for another class than the image: of few images it counts as well, else no such view does."""
    x, y = images(125), labels(125)
    found = room.attempt(lively("skips"), x, y, SMALL, seed=0, progress=False)
    chooser = room.Chooser(x, y, found, SMALL, None, 0.01, 0, few=few)
    own = found.original[chooser.held].argmax(1)
    own = torch.cat([own, (own + 1) % CLASSES])[:, None]
    p = torch.full((50, CLASSES), 0.1 / (CLASSES - 2)).scatter(1, own, 0.6).scatter(1, (own + 1) % CLASSES, 0.3)
    after = p.clone()
    after[[3, 30]] = after[[3, 30]].scatter(1, (own[[3, 30]] + 1) % CLASSES, 0.9)

    class Seen:
        def on_views(self, polarizer, rows):
            return p.log(), after.log()

    doubt, least = chooser.doubt(Seen(), None)
    rows, views = ([3, 5], 50) if few else ([3], 25)
    each = torch.zeros(25).index_fill(0, torch.tensor(rows), 0.3 * 25 / views)
    assert doubt == pytest.approx(each.mean().item(), abs=1e-6)
    assert least == pytest.approx(doubt - 1.96 * each.std().item() / 5, abs=1e-6)


def test_with_few_images_the_polarizer_is_held_to_the_identity(small, suspected, monkeypatch):
    """Losses are twice as strong beside that; a config of the user's is left alone."""
    seen, fit = [], Pool.fit
    monkeypatch.setattr(
        Pool, "fit", lambda self, g, config, *a, **k: (seen.append(config), fit(self, g, config, *a, **k))[1]
    )
    for few in (41, 40):
        monkeypatch.setattr(room, "FEW", few)
        seen.clear()
        choice = auto(lively("skips"), layer="block", max_accuracy_drop=1.0).choice
        times = 2 if few > 40 else 1
        strengths = [t.strength for t in choice.trials if t.method == "npd" and t.look == 1]
        assert strengths[:3] == [times * s for s in STRENGTHS[2:]]
        assert {(c.lambda_still, c.mix_views) for c in seen} == {(4.0, True) if few > 40 else (0.0, False)}
    monkeypatch.setattr(room, "FEW", 41)
    seen.clear()
    auto(lively("skips"), layer="block", method="auto", config=FitConfig.in_rounds(), max_accuracy_drop=1.0)
    assert {c.lambda_still for c in seen} == {0.0}


@pytest.mark.parametrize("suspected", [True, False])
def test_where_a_class_is_suspected_the_best_is_fitted_once_more_for_twice_as_many_steps(small, monkeypatch, suspected):
    """It is taken where that is worth more than luck; a config of the user's keeps its steps."""
    attempt, judged = room.attempt, room.Chooser.judged
    where = everywhere(2, len(FitConfig.in_rounds().mixture))
    where = where if suspected else replace(where, excess=(0.0,) * CLASSES)
    monkeypatch.setattr(room, "attempt", lambda *a, **k: replace(attempt(*a, **k), suspicion=where))
    monkeypatch.setattr(room.Chooser, "look_again", lambda *a: None)
    for lead, taken in ((0.0, False), (0.4, suspected)):

        def led(self, t, pool, g, lead=lead):
            return replace(judged(self, t, pool, g), score=0.5 + lead * t.twice, within_budget=True)

        monkeypatch.setattr(room.Chooser, "judged", led)
        found = auto(lively("skips"), layer="block", method="npd", max_accuracy_drop=1.0)
        longer = [t for t in found.choice.trials if t.twice]
        assert len(longer) == suspected
        assert found.choice.trials[found.choice.chosen].twice == taken
        usual = FitConfig.in_rounds()
        assert found.config.epochs == (2 if taken else 1) * usual.epochs
        assert found.config.least_steps == (2 if taken else 1) * usual.least_steps
    own = auto(lively("skips"), layer="block", method="auto", config=FitConfig.in_rounds(), max_accuracy_drop=1.0)
    assert not any(t.twice for t in own.choice.trials)


@pytest.mark.parametrize(
    ("arch", "shape", "classes", "layer"),
    [
        ("small_resnet", (1, 28, 28), 10, "auto"),
        ("preact_resnet18", (3, 32, 32), 2, "layer4.1"),
        ("vgg19_bn", (3, 32, 32), 43, "features.49"),
        ("small_resnet", (3, 64, 64), 300, "layer3"),
    ],
)
def test_any_size_and_number_of_classes(small, suspected, arch, shape, classes, layer):
    net = build_model(arch, classes=classes, channels=shape[0], width=4)
    clean = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(20) % classes
    purified = auto(net, clean, layer=layer, max_accuracy_drop=1.0)
    assert purified(clean[0][:3]).shape == (3, classes)
    assert len(purified.choice.suspicion.excess) == classes
    assert ("r-cnpd" in {t.method for t in purified.choice.trials}) == (classes <= room.MOST_CLASSES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision(small, dtype):
    net = lively("skips").to(dtype)
    before = snapshot(net)
    purified = auto(net, max_accuracy_drop=1.0)
    assert same(before, snapshot(net))
    assert purified(images().to(dtype)).dtype == dtype
    assert purified(images().to(dtype)).isfinite().all()
    assert purified.choice.within_budget


def test_channels_last_is_the_same_model(small):
    net = lively("skips")
    plain = auto(net, max_accuracy_drop=1.0)
    last = auto(net.to(memory_format=torch.channels_last), max_accuracy_drop=1.0)
    assert net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert last.choice.to_dict().keys() == plain.choice.to_dict().keys()
    assert (last.layer, last.method) == (plain.layer, plain.method)
    torch.testing.assert_close(last(images()), plain(images()), atol=1e-2, rtol=1e-2)


def test_a_model_on_several_devices_is_refused():
    net = lively("skips")
    net.fc.to("meta")
    with pytest.raises(InputError, match="model: found its tensors on cpu, meta, wanted one device"):
        auto(net)
