"""The loop in rounds: what is kept, under which classes, and what runs while fitting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neural_polarizer import FitConfig, FitDiverged, InputError, PolarizedModel, precision, purify
from neural_polarizer import attempts as attempts_room
from neural_polarizer import kept as kept_room
from neural_polarizer import pool as pool_room
from neural_polarizer import rounds as rounds_room
from neural_polarizer import sweep as sweep_room
from neural_polarizer.capture import make_cut
from neural_polarizer.cut import Cut
from neural_polarizer.graph import GraphCut
from neural_polarizer.kept import Kept, parts_by_row
from neural_polarizer.mixture import Family
from neural_polarizer.perturb import Descent
from neural_polarizer.polarizers import Full
from neural_polarizer.pool import Copies, Pool
from neural_polarizer.sweep import Sweep
from neural_polarizer.threats import Flow, Wave
from neural_polarizer.views import mixed, moved_and_mirrored

from .nets import CLASSES, CUTS, ZOO, images, labels, make, plain_logits
from .test_cnpd import METHODS, many_classes
from .test_fit import same, snapshot

MIXTURE = (
    Family(radius=1.0, steps=2),
    Family(radius=2.0, share="target", steps=3),
    Family(threat="flow", radius=8.0, share="target", steps=2, rule="sign"),
    Family(threat="patch", radius=3, share="target", steps=2),
)
QUICK = FitConfig.in_rounds(
    mixture=MIXTURE,
    epochs=2,
    batch_size=8,
    embedding=4,
    lr=1e-4,
    views=0,
    clip=None,
    lambda_still=0.0,
    schedule="constant",
    least_steps=0,
)  # the gradients of `lively` are large
USUAL = (images(20), labels(20))


def lively(name: str) -> torch.nn.Module:
    """A network of the zoo whose predictions differ from image to image: logits of mean 0 and deviation 1."""
    net = make(name)
    last = net.fc if hasattr(net, "fc") else net.head
    logits = plain_logits(net, images(64))
    last.weight.data /= logits.std(0)[:, None]
    last.bias.data = (last.bias - logits.mean(0)) / logits.std(0)
    return net


def quick(name: str = "skips", layer: str = "block.conv1", clean=USUAL, **kwargs) -> PolarizedModel:
    net = lively(name) if isinstance(name, str) else name
    return purify(
        net, clean, layer=layer, **{"method": "npd", "config": QUICK, "progress": False, "capture": "graph", **kwargs}
    )


def changed(config: FitConfig = QUICK, **options) -> FitConfig:
    return FitConfig.from_dict({**config.to_dict(), **options})


@pytest.fixture
def watched(monkeypatch):
    """What every step of the outer problem is given, and every set of perturbed images."""
    seen = {"perturbed": [], "steps": [], "copies": []}
    found, step, gather = Sweep.everywhere, pool_room.Outer.add, Copies.gather

    def everywhere(*args):
        for batch in found(*args):
            seen["perturbed"].append(batch)
            yield batch

    monkeypatch.setattr(Sweep, "everywhere", everywhere)
    monkeypatch.setattr(Copies, "gather", lambda self: (gather(self), seen["copies"].append(self))[0])
    monkeypatch.setattr(
        pool_room.Outer, "add", lambda self, *a, **k: (seen["steps"].append((a, k)), step(self, *a, **k))[1]
    )
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("capture", ["graph", "hooks"])
def test_every_method_on_both_cuts_leaves_the_model_alone(method, capture):
    net = lively("skips").train()
    before = snapshot(net)
    purified = quick(net, method=method, capture=capture, config=changed(rounds=2, fool="both"))
    assert same(before, snapshot(net))
    assert purified.cut.kind == capture
    assert purified(images()).isfinite().all()
    assert not torch.equal(purified(images()), purified.cut.original(images()))
    assert [row["round"] for row in purified.history] == [1, 1, 2, 2]
    assert [row["epoch"] for row in purified.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_before_every_layer_of_every_net(name, layer):
    capture = "hooks" if name == "overwritten-later" else "auto"
    assert quick(name, layer, method="r-cnpd", capture=capture)(images()).isfinite().all()


@pytest.mark.parametrize("method", ["npd", "r-cnpd"])
@pytest.mark.parametrize("name", ZOO)
def test_kept_activations_and_whole_passes_fit_the_same(full_width, method, name):
    """The graph's tail on kept rows, and hooks on kept images, are two ways to the same polarizer."""
    layer = ZOO[name][1][0]
    states = [
        quick(name, layer, method=method, capture=capture).polarizer.state_dict() for capture in ("graph", "hooks")
    ]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-4, rtol=1e-3)


def test_a_family_perturbs_no_more_images_than_it_needs_and_each_its_own(watched, monkeypatch):
    monkeypatch.setattr(rounds_room, "MOST_TRIED", 12)
    quick()
    (copies,) = watched["copies"]
    tried = [copies.of[copies.family == f].unique() for f in copies.family.unique()]
    assert all(len(rows) <= 12 for rows in tried)
    assert len(torch.cat(tried).unique()) > 12
    net, (x, y) = lively("skips"), USUAL
    found = attempts_room.attempt(net, x, y, QUICK, seed=0, progress=False).found
    for family in {a.family for a in found}:
        assert len(torch.cat([a.rows for a in found if a.family == family]).unique()) <= 12
    for a in (a for a in found if a.family == 0):  # additive and small: next to the image that it is made of
        assert torch.equal(torch.cdist(a.images.flatten(1), x.flatten(1)).argmin(1), a.rows)


def test_of_few_images_several_views_are_perturbed(monkeypatch):
    monkeypatch.setattr(rounds_room, "MOST_TRIED", 43)
    order = torch.Generator().manual_seed(0)
    x = torch.rand(10, 3, 32, 48, generator=order)
    of, views = rounds_room.several_views(x, changed(views=3), order)
    assert of.tolist() == [*range(10)] * 4
    assert torch.equal(views[:10], x)
    for i in range(10, 40):
        aligned = [views[i].roll((a, b), (1, 2))[:, 2:-2, 3:-3] for a in range(-2, 3) for b in range(-3, 4)]
        assert any(torch.equal(part, x[of[i]][:, 2:-2, 3:-3]) for part in aligned), "moved, and nothing else"
    assert len(rounds_room.several_views(x, changed(views=0), order)[0]) == 10
    assert len(rounds_room.several_views(x[..., :8, :8], changed(views=3), order)[0]) == 10, "too small to be moved"
    found = attempts_room.attempt(lambda z: z.mean((2, 3)), x, labels(10) % 3, changed(views=3), seed=0, progress=False)
    assert found.original.shape == (10, 3)
    rows = torch.cat([a.rows for a in found.found if a.family == 0])
    assert len(rows) > 10 > rows.max(), "an image has copies of several of its views"


def test_kept_are_exactly_the_images_whose_prediction_changed_to_a_wrong_one(watched):
    net, (x, y) = lively("skips"), USUAL
    purified = quick(net, method="r-cnpd")
    (copies,) = watched["copies"]
    of, targets, reached = [], [], []
    shares = {}
    for i, (rows, found, sent) in enumerate(watched["perturbed"]):
        now, before = net(found).argmax(1), net(x[rows]).argmax(1)
        moved = (now != before) & (now != y[rows])
        of, targets, reached = [*of, rows[moved]], [*targets, sent[moved]], [*reached, now[moved]]
        shares[i] = moved.sum()
    assert torch.equal(copies.of, torch.cat(of))
    assert torch.equal(copies.targets, torch.cat(targets))
    assert torch.equal(copies.reached, torch.cat(reached))
    assert 5 <= len(copies.of) < 80, "the case should move some images and not all"
    assert all((sent != y[rows]).all() for rows, _, sent in watched["perturbed"])
    total = sum(purified.history[0][f"moved_{i}"] for i in (1, 2, 3, 4)) * 20
    assert total == pytest.approx(len(copies.of))
    assert purified.history[0]["mismatch"] == pytest.approx(float((copies.targets != copies.reached).double().mean()))


@pytest.mark.parametrize("condition", ["reached", "target"])
def test_conditions_and_classes_to_push_away(watched, full_width, monkeypatch, condition):
    """Clean images carry the original prediction; perturbed ones the class they reached, which is pushed away as well."""
    given = []
    forward = Kept.forward
    monkeypatch.setattr(
        Kept, "forward", lambda self, g, r, c, *more: (given.append((r, c)), forward(self, g, r, c, *more))[1]
    )
    net = lively("skips")
    quick(net, method="e-cnpd", config=changed(condition=condition))
    (copies,) = watched["copies"]
    predictions = net(USUAL[0]).argmax(1)
    wanted = copies.reached if condition == "reached" else copies.targets
    perturbed_passes = 0
    for rows, classes in given:
        if classes is None:
            continue  # the original model on what was kept
        if (rows >= 20).any():
            assert (rows >= 20).all()
            assert torch.equal(classes, wanted[rows - 20])
            perturbed_passes += 1
        else:
            assert torch.equal(classes, predictions[rows])
    assert perturbed_passes == 6
    for (_, _, y, logits, aimed), options in watched["steps"]:
        of = options["of"]
        assert len(of) == len(aimed) == len(logits) <= len(y)
        assert (aimed != y[of]).all()


def test_copies_are_drawn_of_the_images_in_the_batch():
    copies = Copies(6, torch.device("cpu"))
    copies.add(torch.tensor([4, 1, 4]), torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]))
    copies.add(torch.tensor([4, 0]), torch.tensor([0, 0]), torch.tensor([3, 4]), torch.tensor([1, 1]))
    copies.gather()
    order, seen = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        of, chosen = copies.draw(torch.tensor([2, 4, 0, 5]), order)
        assert of.tolist() == [1, 2]
        assert copies.of[chosen].tolist() == [4, 0]
        seen.add(int(chosen[0]))
    assert seen == {0, 2, 3}  # every copy of image 4 has its turn
    assert copies.mismatch() == pytest.approx(4 / 5)
    copies.only(copies.reached != 0)  # the first one
    assert {int(copies.draw(torch.tensor([4]), order)[1]) for _ in range(50)} == {2, 3}
    copies.only(copies.of >= 0, copies.reached == 2, 0.75)
    drawn = [int(copies.draw(torch.tensor([4]), order)[1]) for _ in range(400)]
    favoured = [drawn.count(row) / 400 for row in (2, 0, 3)]
    assert favoured == pytest.approx([0.75 + 0.25 / 3, 0.25 / 3, 0.25 / 3], abs=0.06)
    assert copies.draw(torch.tensor([1, 0]), order)[1].tolist() == [1, 4], "others have what there is of them"
    copies.only(copies.reached == 4)
    assert copies.draw(torch.tensor([4, 1, 0]), order)[0].tolist() == [2]
    copies.add(*(torch.tensor([v]) for v in (5, 0, 5, 0)))
    copies.gather()
    of, chosen = copies.draw(torch.tensor([5, 1, 0]), order)
    assert (of.tolist(), chosen.tolist()) == ([0, 1, 2], [5, 1, 4]), "what is added is drawn, and all others again"


def test_only_the_tail_runs_while_fitting(monkeypatch):
    calls = {"prefix": 0, "whole": 0, "tail": 0}
    for method, kind in (("prefix", "prefix"), ("original", "whole"), ("edited", "whole"), ("tail", "tail")):
        plain = getattr(GraphCut, method)

        def counted(self, *a, plain=plain, kind=kind):
            calls[kind] += 1
            return plain(self, *a)

        monkeypatch.setattr(GraphCut, method, counted)
    few = quick(config=changed(epochs=1))
    once = dict(calls)
    many = quick(config=changed(epochs=6))
    assert many.history[0].keys() == few.history[0].keys()
    assert calls["prefix"] - once["prefix"] == once["prefix"]
    assert calls["whole"] - once["whole"] == once["whole"]
    assert calls["tail"] - once["tail"] > once["tail"]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method):
    runs = [quick(method=method, seed=s).polarizer.state_dict() for s in (4, 4, 5)]
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    assert any(not torch.equal(v, runs[2][k]) for k, v in runs[0].items())


def test_what_does_not_fit_into_memory_is_computed_again(full_width, monkeypatch):
    net = lively("skips")
    fits = quick(net, method="r-cnpd").polarizer.state_dict()
    monkeypatch.setattr(kept_room, "KEPT_BYTES", 20 * 5 * 6 * 64 * 4 * 2 - 1)  # m and its shortcut, 100 rows
    passes, edited = [], GraphCut.edited
    monkeypatch.setattr(GraphCut, "edited", lambda self, x, e: (passes.append(len(x)), edited(self, x, e))[1])
    assert not Kept(make_cut(net, "block.conv1", images(2), "graph"), images(2), 100).activations
    assert Kept(make_cut(net, "block.conv1", images(2), "graph"), images(2), 99).activations
    again = quick(net, method="r-cnpd").polarizer.state_dict()
    assert len(passes) > 10
    for key, value in fits.items():
        torch.testing.assert_close(value, again[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("most", [12, 1])
def test_rows_of_kept_activations_are_their_images(most):
    """Beside `m` a shortcut passes the cut row by row; a hooks cut keeps images. More rows than were foretold find room."""
    net, x = lively("skips"), images(12)
    polarizer = Full(6)
    polarizer.weight.data += 0.1
    for cut in (make_cut(net, "block.conv1", x[:2], "graph"), Cut(net, "block.conv1", x[:2])):
        kept = Kept(cut, x, most)
        assert kept.activations == (cut.kind == "graph")
        for rows in (torch.arange(5), torch.arange(5, 12)):
            logits, tensors = kept.look(x[rows])
            torch.testing.assert_close(logits, net(x[rows]), atol=1e-5, rtol=1e-5)
            kept.add(tensors, torch.arange(len(rows)))
        rows = torch.tensor([11, 0, 6, 0])
        with torch.no_grad():
            torch.testing.assert_close(
                kept.forward(polarizer, rows, None), cut.edited(x[rows], polarizer), atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(("scale", "half"), [(1.0, True), (1e5, False)])
def test_rows_in_half_precision_take_half_the_memory(scale, half):
    """Values that float16 does not hold are kept as they are; one that comes later and is larger is the largest of it."""
    net, x = lively("skips"), images(12)
    net.stem.weight.data *= scale
    cut = make_cut(net, "block.conv1", x[:2], "graph")
    kept = Kept(cut, x, 12, half=True)
    logits, tensors = kept.look(x)
    kept.add(tensors, torch.arange(12))
    assert {t.dtype for t in kept._rows} == {torch.float16 if half else torch.float32}
    rows = torch.arange(12)
    found = kept.forward(None, rows, None)
    assert found.dtype == torch.float32
    assert (found - logits).abs().max() <= (2e-3 if half else 1e-5) * logits.abs().max()
    if half:
        kept.add([1e6 * t for t in tensors], rows)
        assert kept.entering(rows + 12).abs().max() == 65504


def test_values_that_are_no_rows_are_seen():
    class Odd:
        kind = "graph"

        def __init__(self, make_alive):
            self.make_alive = make_alive

        def prefix(self, x):
            return kept_room.Activation(x, self.make_alive(len(x)))

    positions = torch.ones(2, 4)
    assert parts_by_row(Odd(lambda n: (torch.zeros(n, 3), positions, 7)), images(1)) == [True, False, False]
    assert parts_by_row(Odd(lambda n: (torch.zeros(4, n, 3),)), images(1)) is None  # the batch stands second
    assert parts_by_row(Odd(lambda n: (n,)), images(1)) is None
    assert parts_by_row(Cut(lively("skips"), "fc", images(2)), images(1)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 2}, {"mixture": MIXTURE[:3]}, {"mixture": (*MIXTURE[:3], Family(threat="pixels", radius=4, steps=2))},
        {"condition": "target"}, {"aim": "prediction"}, {"benign": "label"}, {"statistics": "batch"}, {"schedule": "cosine"},
        {"warmup_epochs": 1}, {"target": 2}, {"weight_decay": 0.1}, {"lambda_asr": 0.3}, {"momentum": 0.5}, {"lr": 0.02},
        {"views": 1}, {"clip": 0.01}, {"least_steps": 30}, {"lambda_still": 0.5},
    ],
)  # fmt: skip
def test_no_option_is_ignored(options):
    long = {"epochs": 8} if "condition" in options else {}  # few copies reach another class: all should be drawn
    for method in ("npd", "r-cnpd") if "condition" in options else ("r-cnpd",):
        plain = quick(method=method, config=changed(**long)).polarizer.state_dict()
        other = quick(method=method, config=changed(**long, **options)).polarizer.state_dict()
        assert any(not torch.equal(v, other[k]) for k, v in plain.items())


def test_later_rounds_attack_what_fool_names():
    states = [quick(config=changed(rounds=2, fool=fool)).polarizer.weight for fool in ("polarized", "original", "both")]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert not torch.equal(states[1], states[2])


def test_one_ball_without_a_mixture():
    config = FitConfig(loop="rounds", radius=2.0, epochs=2, batch_size=8, share="target", warmup_epochs=0, lr=1e-4)
    history = quick(config=config).history
    assert 0 < history[0]["moved_1"] <= 1
    assert "moved_2" not in history[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(method, classes):
    clean = (images(10), labels(10, classes=classes))
    purified = quick(many_classes(classes), "conv2", clean, method=method, config=changed(epochs=1))
    assert purified(images()).shape == (6, classes)
    assert purified(images()).isfinite().all()


def test_universal_patterns_of_many_classes_are_bounded(monkeypatch, watched):
    """At most MAX_CLASSES of them in a round, learned GROUP at a time."""
    monkeypatch.setattr(sweep_room, "MAX_CLASSES", 5)
    monkeypatch.setattr(sweep_room, "GROUP", 2)
    groups, learn = [], sweep_room.learn_patterns
    monkeypatch.setattr(
        sweep_room, "learn_patterns", lambda t, f, x, y, group, *a, **k: (groups.append(group), learn(t, f, x, y, group, *a, **k))[1]
    )  # fmt: skip
    config = changed(mixture=MIXTURE[1:2], epochs=1)
    quick(many_classes(50), "conv2", (images(40), labels(40, classes=50)), method="npd", config=config)
    assert [len(group) for group in groups] == [2, 2, 1]
    aimed = torch.cat([targets for _, _, targets in watched["perturbed"]])
    assert set(aimed.tolist()) == set(torch.cat(groups).tolist())


def test_classes_in_focus_get_patterns_of_their_own(monkeypatch):
    """Those that the shared patterns reach most, one after the other, learned on images of other classes alone."""
    learned, learn, kept, take = [], sweep_room.learn_patterns, [], pool_room.Pool.take

    def learning(threat, attacked, x, y, group, *rest, **named):
        learned.append((group.tolist(), y))
        return learn(threat, attacked, x, y, group, *rest, **named)

    def taking(pool, rows, found, targets, family=0):
        reached = take(pool, rows, found, targets, family)
        kept.append((rows, targets, reached))
        return reached

    monkeypatch.setattr(sweep_room, "learn_patterns", learning)
    monkeypatch.setattr(pool_room.Pool, "take", taking)
    x, y = images(40), labels(40)
    config = changed(mixture=[Family(radius=2.0, share="target", steps=3, focus=2)], epochs=1, batch_size=40)
    quick(clean=(x, y), config=config)
    (shared, _), *alone = learned
    assert len(shared) == CLASSES
    ended = torch.bincount(kept[0][2][kept[0][2] >= 0], minlength=CLASSES) / (40 - torch.bincount(y, minlength=CLASSES))
    assert [group for group, _ in alone] == [[c] for c in ended.argsort(descending=True, stable=True)[:2].tolist()]
    for (group, seen), (rows, targets, _) in zip(alone, kept[1:], strict=True):
        assert group[0] not in seen
        assert set(targets.tolist()) == set(group)
        assert group[0] not in y[rows]
    assert not set(kept[1][0].tolist()) & set(kept[2][0].tolist()), "an image has one more copy"


def test_a_pattern_of_its_own_fools_more():
    """What the focus is for: with as many steps, a class that shares no batch is reached from more images."""
    net, x = lively("skips"), images(60)
    y = plain_logits(net, x).argmax(1)
    family = Family(radius=2.0, share="target", steps=4)
    threat, how, order = family.threat_model(x.shape[1:]), family.descent(x.shape[1:]), torch.Generator()

    def reach(parts):
        found = [
            (plain_logits(net, images) == plain_logits(net, images).amax(1, keepdim=True), sent)
            for _, images, sent in parts
        ]
        return {c: torch.cat([hit[sent == c, c] for hit, sent in found]).double().mean().item() for c in range(CLASSES)}

    def forward(images, targets):
        return net(images)

    sweep = Sweep(threat, how, forward, x, y, 12, order)
    order.manual_seed(0)
    together = reach(sweep.everywhere("random", CLASSES))
    order.manual_seed(0)
    alone = reach(sweep.focused(torch.arange(CLASSES)))
    assert sum(alone.values()) > sum(together.values())


@pytest.mark.parametrize("count", [1, 3, 9, 17])
def test_odd_sizes_of_the_clean_set(count):
    for layer in ("block.conv1", "fc"):
        purified = quick(clean=(images(count), labels(count)), layer=layer, config=changed(warmup_epochs=1))
        assert purified(images()).isfinite().all()


def test_without_labels_and_where_nothing_can_be_moved():
    net = lively("skips")
    own = quick(net, clean=(USUAL[0], net(USUAL[0]).argmax(1))).polarizer.state_dict()
    alone = quick(net, clean=USUAL[0]).polarizer.state_dict()
    assert all(torch.equal(v, alone[k]) for k, v in own.items())
    still = quick(net, clean=USUAL[0], config=changed(mixture=[Family(radius=1e-6)]))
    assert still.history[0]["moved_1"] == still.history[0]["loss_ce"] == 0
    torch.testing.assert_close(still(images()), net(images()), atol=1e-4, rtol=0)


def test_in_bfloat16_only_the_steps_are_rounded(monkeypatch):
    """What judges is at full width, and to change nothing costs nothing, as clean logits are held to rounded ones."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: True)
    (x, y), rows, order = USUAL, torch.arange(20), torch.Generator().manual_seed(0)

    def pool_of(net):
        cut = make_cut(net, "block", x[:2], "graph")
        return pool_room.Pool(cut, x, y, views=0, copies=0, batch_size=8, pass_size=8, order=order)

    net = make("skips")
    pool, said = pool_of(net), plain_logits(net, x)
    identity = quick(net, layer="block", config=changed(epochs=0)).polarizer
    torch.testing.assert_close(pool.on_clean(identity, rows), said, atol=1e-4, rtol=1e-4)
    assert 0 < (pool._held_to - said).abs().max() < 0.02 * said.abs().max(), "rounded"
    still = quick(net, layer="block", config=changed(mixture=[Family(radius=1e-6)], epochs=5, lr=0.01))
    torch.testing.assert_close(still(x), said, atol=2e-3, rtol=2e-3)
    touchy = lively("skips")  # its logits are small differences of large numbers, and many classes change
    wide = pool_of(touchy)
    assert wide._hasty is None, "such a network is worked on at full width"
    assert torch.equal(wide._held_to, wide._on(None, rows, None))


def test_channels_last_only_where_the_model_bears_it():
    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.utils.skip_init(torch.nn.Conv2d, 3, 4, 3)
            self.fc = torch.nn.utils.skip_init(torch.nn.Linear, 144, CLASSES)
            for p in self.parameters():
                p.data = torch.linspace(-1, 1, p.numel()).sin().view_as(p)

        def forward(self, x):
            out = self.conv(x)
            return self.fc(out.view(out.size(0), -1))

    cut = Cut(Views(), "fc", images(2))
    assert rounds_room.fastest_layout(cut.original, images(2)) == torch.contiguous_format
    assert rounds_room.fastest_layout(Cut(lively("skips"), "fc", images(2)).original, images(2)) == torch.channels_last
    for capture in ("graph", "hooks"):
        assert quick(Views(), "fc", capture=capture)(images()).isfinite().all()


def test_double_and_half_models():
    for dtype in (torch.float64, torch.bfloat16):
        purified = quick(lively("skips").to(dtype), method="r-cnpd", capture="hooks")
        assert purified(images().to(dtype)).dtype == dtype
        assert purified(images().to(dtype)).isfinite().all()


def test_divergence_and_interruption_leave_the_model_alone(monkeypatch):
    net = lively("skips")
    before = snapshot(net)
    with pytest.raises(FitDiverged, match="not finite"):
        quick(net, config=changed(epochs=20, lr=1e20))

    def interrupted(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(pool_room.Outer, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(net)
    assert same(before, snapshot(net))


def test_saved_and_loaded(tmp_path):
    net = lively("skips")
    purified = quick(net, method="a-cnpd")
    purified.save_pretrained(tmp_path)
    again = PolarizedModel.from_pretrained(net, tmp_path)
    assert again.config == purified.config
    assert again.history == purified.history
    assert torch.equal(again(images()), purified(images()))


def test_views_are_moved_and_mirrored_copies():

    x = torch.arange(2 * 3 * 16 * 32, dtype=torch.float32).view(2, 3, 16, 32).repeat(32, 1, 1, 1) / 5000
    seen = moved_and_mirrored(x, torch.Generator().manual_seed(0))
    assert seen.shape == x.shape
    inner = seen[:, 0, 4, 10] * 5000
    origin = x[:, 0, 4, 10] * 5000
    steps = (inner - origin).round()
    rows = {-32.0, 0.0, 32.0}  # a row holds 32 values, a sixteenth of 16 rows is one
    plain = {r + c for r in rows for c in (-2.0, -1.0, 0.0, 1.0, 2.0)}
    mirrored = {r + c for r in rows for c in (9.0, 10.0, 11.0, 12.0, 13.0)}
    found = set(steps.tolist())
    assert found <= plain | mirrored
    assert found & plain, "some are not mirrored"
    assert found & mirrored, "some are mirrored"
    assert len(found) > 8


def test_no_view_is_mirrored_where_the_model_takes_it_for_another_class():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = moved_and_mirrored(images, torch.Generator().manual_seed(1), mirror=False)
    both = moved_and_mirrored(images, torch.Generator().manual_seed(1))
    mirrored = [i for i in range(6) if not torch.equal(plain[i], both[i])]
    assert 0 < len(mirrored) < 6
    inner = (slice(None), slice(None), slice(4, 28))  # what a border does not touch
    for i in mirrored:
        assert torch.equal(both[i].flip(-1)[inner], plain[i][inner])


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_whether_views_are_mirrored_is_what_the_model_says(monkeypatch, share):
    monkeypatch.setattr(pool_room, "SAME_IN_A_MIRROR", share)
    asked = []
    view = pool_room.moved_and_mirrored
    monkeypatch.setattr(pool_room, "moved_and_mirrored", lambda x, o, m: (asked.append(m), view(x, o, m))[1])
    quick(config=changed(views=2))
    assert asked
    assert all(mirror == (share == 0.0) for mirror in asked)


def test_mixed_images_are_half_their_own_at_least():
    own, others = torch.zeros(200, 3, 16, 24), torch.ones(200, 3, 16, 24)
    seen = mixed(own, others, torch.Generator().manual_seed(0))
    assert torch.equal(seen, mixed(own, others, torch.Generator().manual_seed(0)))
    share = seen.mean((1, 2, 3))
    assert share.max() < 0.55, "a rectangle covers whole pixels, a few more or less than half"
    assert share.min() < 0.05
    blended = torch.tensor([len(image.unique()) == 1 and 0 < image[0, 0, 0] < 1 for image in seen])
    assert 60 < blended.sum() < 140
    for image in seen[~blended]:
        there = image[0] == 1
        assert torch.equal(image.bool(), there.expand(3, -1, -1)), "each pixel is of one of the two"
        rows, columns = there.any(1), there.any(0)
        assert torch.equal(there, rows[:, None] & columns), "a rectangle"


@pytest.mark.parametrize("apart", [None, [0, 3]])
def test_few_images_have_mixed_views_but_for_those_that_judge(monkeypatch, apart):
    """Every second view beyond the usual ones; what is mixed is no image of those that stand apart."""
    monkeypatch.setattr(pool_room, "VIEWED", 8 * 6)  # seven views of each
    monkeypatch.setattr(pool_room, "moved_and_mirrored", lambda x, order, mirror: x)
    seen = []
    monkeypatch.setattr(Kept, "look", lambda self, x, look=Kept.look: (seen.append(x.clone()), look(self, x))[1])
    x = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8) / 10
    x = x.index_fill(0, torch.tensor(apart or [], dtype=torch.long), 1.0)
    cut = make_cut(make("skips"), "block.conv1", x[:2], "graph")
    away = torch.tensor(apart) if apart else None
    Pool(cut, x, None, views=2, mix=True, copies=0, batch_size=4, pass_size=4, order=torch.Generator(), apart=away)
    views = torch.cat(seen).view(8, 6, 3, 8, 8)
    changed = (views != x).flatten(2).any(2)
    assert [n for n in range(8) if changed[n].any()] == [4, 6], "after the images, the usual views and one more"
    if apart:
        assert not changed[:, apart].any()
        assert views[:, [1, 2, 4, 5]].max() <= 0.5, "and nothing of them is in any other"


def test_a_mixed_view_that_is_taken_for_a_third_class_is_left_out(monkeypatch):
    """How two images were mixed may be a trigger: here a mean of 0.5 in the red channel is."""
    monkeypatch.setattr(pool_room, "VIEWED", 8 * 6)
    monkeypatch.setattr(pool_room, "moved_and_mirrored", lambda x, order, mirror: x)
    monkeypatch.setattr(pool_room, "mixed", lambda x, others, order: torch.full_like(x, 0.5))

    class Triggered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                self.conv, self.fc = torch.nn.Conv2d(3, 3, 1, bias=False), torch.nn.Linear(3, 3, bias=False)
            self.conv.weight.data = torch.eye(3)[:, :, None, None]
            self.fc.weight.data = torch.eye(3)

        def forward(self, x):
            m = self.conv(x)
            return self.fc(m.mean((2, 3))) + torch.tensor([0.0, 0.0, 9.0]) * (m[:, :1].mean((2, 3)) == 0.5)

    x = torch.zeros(6, 3, 8, 8)
    x[:3, 0], x[3:, 1] = 1, 1  # classes 0 and 1
    pool = Pool(
        make_cut(Triggered(), "fc", x[:2], "graph"), x, None, views=2, mix=True, copies=0, batch_size=4, pass_size=4,
        order=torch.Generator(),
    )  # fmt: skip
    said, _ = pool.on_views(Full(3, channel_dim=1), torch.arange(6))
    assert said.argmax(1).view(8, 6).tolist() == 8 * [[0, 0, 0, 1, 1, 1]]


def test_the_original_output_is_kept_on_views(watched, full_width, monkeypatch):
    """A step's clean half is a view of its images, beside what the original model says of that view."""
    monkeypatch.setattr(pool_room, "SAME_IN_A_MIRROR", 0.0)  # images of 8 pixels are mirrored or not, and never moved
    quick("skips", method="r-cnpd", config=changed(views=2, clip=1.0))
    clean, original = watched["steps"][0][0][:2]
    torch.testing.assert_close(clean, original, atol=1e-4, rtol=1e-4)  # the polarizer starts as the identity
    plain = plain_logits(lively("skips"), USUAL[0])
    seen = torch.cat([args[1] for args, _ in watched["steps"]])
    near = torch.cdist(seen, plain).amin(1) < 1e-2  # kept in half precision
    assert 0.1 < near.float().mean() < 0.7, "a third of the time the view is the image itself"


def test_no_step_is_longer_than_the_clipped_gradient_allows(watched):
    config = changed(clip=1e-3, lr=1.0, momentum=0.0, epochs=1, schedule="constant")
    for method in ("npd", "r-cnpd"):
        for capture in ("graph",):
            start = quick("skips", method=method, config=changed(config, epochs=0), capture=capture).polarizer
            end = quick("skips", method=method, config=config, capture=capture).polarizer
            moved = sum((a - b).square().sum() for a, b in zip(start.parameters(), end.parameters(), strict=True))
            assert 0 < moved.sqrt() <= 3 * 1e-3 + 1e-6  # three batches of 8 in 20 images


def test_views_want_the_original_output():
    with pytest.raises(InputError, match="benign: found 'label' with views"):
        FitConfig.in_rounds(benign="label")


def test_the_best_of_what_can_be_tried_for_each_class():
    columns = torch.arange(8, dtype=torch.float32)
    waves = torch.stack([torch.sin(2 * torch.pi * f * columns / 8).expand(8, 8) for f in (1, 2)])
    x, y = 0.5 + 0.01 * images(30), torch.zeros(30, dtype=torch.long)
    x = x[:, :, :8, :8]

    def forward(images):
        answers = torch.einsum("bchw,fhw->bf", images, waves)
        return torch.cat([torch.ones(len(images), 1), answers], 1)

    threat = Wave(radius=1.0, grid=6, share="target")
    for size in (1, 40, 1000):
        found, _ = rounds_room.scan(threat, forward, x, y, 3, size, torch.Generator().manual_seed(0))
        for number, wave in enumerate(waves):
            pattern = (threat.act(found[[number + 1]], torch.full((1, 3, 8, 8), 0.5)) - 0.5)[0, 0]
            torch.testing.assert_close(pattern, wave / wave.expand(3, 8, 8).norm(), atol=1e-4, rtol=0)
    assert rounds_room.scan(Flow(share="target"), forward, x, y, 3, 8, torch.Generator()) is None
    assert rounds_room.scan(Wave(share="sample"), forward, x, y, 3, 8, torch.Generator()) is None


def test_what_was_found_is_ranked_on_other_images_and_the_best_get_the_focus():
    """Of the few images that it was found on, another class's wave may send as many or more."""
    calls, reached = [], []

    def forward(images):
        """All of the images that candidates are tried on seem to end in class 1, and all others do in class 2."""
        calls.append(len(images))
        return torch.tensor([0.5, len(calls) <= 2, len(calls) > 2]).expand(len(images), 3)

    threat, x, y = Wave(radius=0.1, grid=2, share="target"), images(70)[:, :1], torch.zeros(70, dtype=torch.long)
    found, order = rounds_room.scan(threat, forward, x, y, 3, 10_000, torch.Generator().manual_seed(0))
    assert len(calls) == 3
    assert calls[-1] == 3 * (70 - rounds_room.SCANNED)
    assert order.tolist() == [2, 0, 1]

    def keep(own, tried, targets):
        reached.append(targets)
        return torch.full_like(own, 1)  # whatever was asked for

    how, order = Descent(steps=0, step=0.1), torch.Generator().manual_seed(0)
    sweep = Sweep(threat, how, lambda x, targets: forward(x), x, y, 8, order, (found, torch.tensor([2, 0, 1])))
    sweep.run(torch.arange(70), "random", 3, 1, keep)
    assert set(reached[-1].tolist()) == {2}


def test_patterns_begin_with_what_was_found(monkeypatch):
    """In the first families of a fit and in those of `attempt` alike; without a step they stay there."""
    begun, learn = [], sweep_room.learn_patterns

    def watched(threat, *args, begin=None, **kwargs):
        begun.append(None if begin is None else begin.clone())
        return learn(threat, *args, begin=begin, **kwargs)

    monkeypatch.setattr(sweep_room, "learn_patterns", watched)
    family = Family(threat="wave", radius=4.0, share="target", steps=0, focus=1)
    quick(config=replace(QUICK, mixture=(family, Family(share="target", steps=1))))
    waves, ball = [b for b in begun if b is not None], [b for b in begun if b is None]
    assert [len(b) for b in waves] == [CLASSES, 1]
    assert len(ball) == 1
    assert any(torch.equal(waves[1][0], b) for b in waves[0]), "the class with a pattern of its own begins there too"
