"""Which layer, which method, how strong: from clean data alone (ours).

Perturbations are computed once, against the original model. At every candidate layer their activations are kept and
polarizers of growing strength are fitted in seconds, on a part of the clean set. The rest, which no fit has seen,
judges: a score rewards perturbed images that get their class back and punishes lost clean accuracy, and the accuracy
budget is a constraint. What is returned was fitted on the first part alone, so that the figures hold for it.

Where a class stands out as a backdoor's target, what was sent to it is all that is fitted on and judged by, unless the
first such polarizer costs so much that these were ways into any such class, no short cut; where it leads by little,
half of what is fitted on was sent to any class. Clean images that seem to carry its trigger are left out. What still
fools both the original model and the best polarizer is added for a second look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .attempts import Attempts, attempt
from .capture import make_cut
from .choice import Choice, Trial
from .config import FitConfig
from .cut import Cut, frozen_view, list_layers, logits_of
from .errors import InputError
from .history import History
from .outer import FitDiverged
from .poisoned import poisoned
from .polarizers import Polarizer
from .pool import Pool
from .progress import Progress

STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.4)  # λ of the three losses on perturbed images
FIRST = 2  # the place in STRENGTHS to begin at
HELD_SHARE = 0.2  # of the clean set, for judging
FEWEST = 10  # clean images with which anything can be judged
DROP_PRICE = 10.0  # what a point of clean accuracy costs, in points of perturbed images that get their class back
BELIEVED = 0.3  # of the lead of a suspect, with what it costs to stop it taken off: under it, the suspect may be none
SURE, HEDGED = 0.6, 0.5  # of less lead, a suspect has this share of the copies that a step draws; else all of them
DEARER = 2.0  # times the doubt of a polarizer against all classes, that one against a suspect has where it is none
MOST_CHANNELS = 2048  # of a candidate layer
LATE = 3  # candidate layers, from the end
LOST_FREELY, OUT_OF = 2, 16  # held-back images, of at least so many: they tell nothing; of fewer, one
MARGIN = 0.02  # of the score, by which r-CNPD must be better than NPD: it runs the tail twice
PER_CLASS = 50  # clean images that a map per class is fitted on at least
LUCK = 0.25  # over the root of the images that judge: by so much of the score anything may be better by chance
MOST_CLASSES = 256  # r-CNPD holds a map per class; with more of them NPD alone is tried
FEW = 128  # clean images, a batch; fewer say too little by their logits, and the polarizer is held to the identity
AGAIN = 3  # times at most that images which seem to carry the trigger are looked for, without those found before
STILL, BESIDE_STILL = 4.0, 2  # λ_still then, and how much stronger the losses are beside it


@dataclass
class Chosen:
    """The polarizer of one trial."""

    polarizer: Polarizer
    layer: str
    method: str
    config: FitConfig | None
    history: History
    cut: Cut


def candidate_layers(model: nn.Module, example: Tensor, mergeable: bool = False) -> list[str]:
    """Where whole features pass, from the end: the last feature map and the last blocks, else the classifier.

    A block is one of at least two items of a sequence, or a child of the network without such blocks inside, that has
    weights of its own. Beside a last block that holds convolutions, the edge into its first one is a candidate. The
    last feature map is one where it is flattened, not averaged, before the classifier. None has so many channels that
    a map between them would be larger than the network. The classifier is one where fewer than two others are: what
    fools it alone is repaired there at a glance, and a trigger is not. `mergeable`: layers alone that `merge` takes.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> candidate_layers(net, torch.rand(2, 3, 8, 8))
        ['2', '0']
    """
    every = [info for info in list_layers(model, example) if info.channels <= MOST_CHANNELS]
    found = [i for i in every if any(p.ndim > 1 for p in model.get_submodule(i.name).parameters())]
    linears = [i for i in found if isinstance(model.get_submodule(i.name), nn.Linear)]
    ends = [i.name for i in linears if not i.spatial][-1:]
    items: dict[str, list[str]] = {}
    for info in found:
        parent, _, last = info.name.rpartition(".")
        if last.isdigit() and (info.spatial or info.name in ends):
            items.setdefault(parent, []).append(info.name)
    blocks = {name for names in items.values() if len(names) > 1 for name in names}.union(ends)
    outer = {i.name for i in found if "." not in i.name and not any(b.startswith(i.name + ".") for b in blocks)}
    inner = {b for b in blocks if not any(c.startswith(b + ".") for c in blocks.difference(ends))}
    names = [i.name for i in found if i.name in outer | inner][::-1]
    for at, name in enumerate(names):
        parts = model.get_submodule(name).named_modules()
        first = next((f"{name}.{n}" for n, m in parts if n and isinstance(m, nn.modules.conv._ConvNd)), None)
        if first in {i.name for i in found}:
            names.insert(at, first)
            break
    spatial = [i.name for i in every if i.spatial]
    maps = [i for i in every if len(i.spatial) == 2 and i.channel_dim == 1 and i.name == spatial[-1]]
    if maps and maps[-1].name not in names and maps[-1].channels not in {i.channels for i in linears if not i.spatial}:
        names.insert(1 if names[:1] == ends else 0, maps[-1].name)
    if not names:
        raise InputError("layer: found no block that is called once, wanted the name of a layer (see list_layers)")
    late = [name for name in names[:LATE] if not mergeable or _folds(model.get_submodule(name))]
    return late[late[:1] == ends and len(late) == LATE :]


def _folds(layer: nn.Module) -> bool:
    """Whether `merge` takes layers of this kind."""
    return type(layer) in (nn.Linear, nn.Conv2d) and getattr(layer, "groups", 1) == 1


def whole_forward(model: nn.Module, images: Tensor, capture: str = "auto") -> Callable[[Tensor], Tensor]:
    """Images -> the original logits, with less to compute: by a lean cut, where the model can be cut at a candidate.

    It does not depend on the layer that is asked for, so that whoever perturbs beforehand finds the same.
    """
    few = images[:2]
    if capture != "hooks":
        from .graph import CaptureError, GraphCut  # torch.export takes its time to import

        with suppress(CaptureError, InputError):  # `make_cut` says it where it matters
            return GraphCut(model, candidate_layers(model, few)[0], few).lean(few).original
    view = frozen_view(model)
    return lambda x: logits_of(view(x))


def _given_up(original: Tensor, after: Tensor) -> Tensor:
    """How much surer (B,) the original model was of its own class than of the one that logits (B, K) give now."""
    sure = original.double().softmax(1)
    return (sure.gather(1, original.argmax(1, keepdim=True)) - sure.gather(1, after.argmax(1, keepdim=True)))[:, 0]


def _mean_and_spread(each: Tensor) -> tuple[float, float]:
    """The mean, and half of its 95 % interval (normal approximation)."""
    return each.mean().item(), 1.96 * each.std().item() / len(each) ** 0.5


def _together(drop: float, spread: float, doubt: float, judges: int) -> float:
    """The doubt, and of what a drop by labels is above it so much as it errs less.

    The doubt errs by as much as itself, more or less; 95 % of what labels tell by `spread`, or by two judges of all.
    """
    return doubt + max(0.0, drop - doubt) * doubt**2 / max(1e-12, doubt**2 + spread**2 + (2 / judges) ** 2)


def held_back(images: int, seed: int, without: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Which of so many clean images judge, and which are fitted on: sorted rows of both, the same for the same seed.

    `without`: rows that are in neither, such as `choice.poisoned`.
    """
    shuffled, out = torch.randperm(images, generator=torch.Generator().manual_seed(seed)), torch.tensor(without)
    count = max(2, round(HELD_SHARE * images))
    held, fitted_on = (part[~torch.isin(part, out)].sort().values for part in (shuffled[:count], shuffled[count:]))
    return held, fitted_on


@dataclass
class Chooser:
    """Everything that is shared by the trials: the split, the perturbed images, the original model's word.

    Args:
        images, labels: (N, C, H, W) in [0, 1], (N,) or None: what the model predicts, on the device where to work.
        attempts: their perturbations.
        config: what every trial starts from, `loop="rounds"`.
        start: method, config, cut, mean and variance (C,) of what enters there -> a polarizer at the identity.
        budget: the largest drop of clean accuracy.
        few: judge and choose as with fewer than `FEW` images.
        strengths: λ to choose from.
    """

    images: Tensor
    labels: Tensor | None
    attempts: Attempts
    config: FitConfig
    start: Callable[[str, FitConfig, Cut, Tensor, Tensor], Polarizer]
    budget: float
    seed: int
    progress: bool = False
    few: bool = False
    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        self.trials, self._kept = list[Trial](), list[Chosen | None]()
        self.known = self.attempts.original.argmax(1) if self.labels is None else self.labels
        self.leave_out(())
        self.look, self._looked = 1, -1
        self.turn_to(self.attempts.suspicion.target)

    def leave_out(self, rows: Sequence[int]) -> None:
        """Neither fit on nor judge by these clean images, unless they are all that judge."""
        held, fitted_on = (part.to(self.images.device) for part in held_back(len(self.images), self.seed, rows))
        if len(held) > 1:
            self.poisoned, self.held, self.fitted_on = tuple(rows), held, fitted_on

    def turn_to(self, suspect: int | None) -> None:
        """Fit and judge from here on by what was sent to one class, or where nothing is suspected, to all."""
        self.suspect, nobody = suspect, suspect is None and self.budget > 0
        self._hedged = suspect is not None and self.attempts.suspicion.score < SURE
        # Nothing tells then what is lost, and too little done may leave everything: the strength is given, and a weaker
        # one is tried only where it loses more than it may.
        self._blind, self._bold = nobody and self.few, nobody and not self.few
        self.tried = self.strengths[: FIRST + 1] if self._blind else self.strengths

    def clears(self, cut: Cut, method: str, first: Trial) -> bool:
        """Whether the first trial against a suspect shows that it is none; then nothing is suspected from here on.

        A trigger is a short cut, and closing it costs less than closing all ways there are, or little more. Where the
        lead is worth little at the price that accuracy has everywhere, one polarizer against all classes says which.
        """
        suspect, lead = self.suspect, self.attempts.suspicion.score - DROP_PRICE * first.doubt
        if suspect is not None and len(self.trials) == 1 and not first.error and lead < BELIEVED:
            self.turn_to(None)
            doubt = first.doubt  # where it cannot be told, the suspect stays
            with suppress(FitDiverged):
                doubt, _ = self.doubt(pool := self.pool(cut), self.fitted(cut, pool, method, first.strength).polarizer)
            self.turn_to(suspect if first.doubt <= DEARER * doubt else None)
        if self.suspect != suspect:
            self.leave_out(())
        return self.suspect != suspect

    def find_poisoned(self, cut: Cut, pool: Pool, method: str) -> Chosen | None:
        """Leave out clean images from which the strongest polarizer takes their class, as long as there are more.

        Returns the last of these polarizers where it was fitted on what fits are from here on, else None.
        """
        every = torch.arange(len(self.images), device=self.images.device)
        with suppress(FitDiverged):
            for _ in range(AGAIN):
                before, strongest = self.poisoned, self.fitted(cut, pool, method, self.strengths[-1])
                original, after = self.attempts.original, pool.on_clean(strongest.polarizer, every)
                self.leave_out(poisoned(original, after, self.fitted_on, self.suspect, before))
                if self.poisoned == before:
                    return strongest
        return None

    def pool(self, cut: Cut) -> Pool:
        """What the trials at one cut share."""
        attempts = self.attempts.sent_to(None if self._hedged else self.suspect)
        pool = Pool(
            cut, self.images, self.known, views=self.config.views,
            copies=sum(len(a.rows) for a in attempts.found), batch_size=self.config.batch_size,
            pass_size=self.config.pass_size(self.images.shape[1:], self.images.device.type), layout=attempts.layout,
            order=torch.Generator().manual_seed(self.seed + 2), compile=self.config.compile,
            mix=self.config.mix_views, apart=self.held,
        )  # fmt: skip
        for a in attempts.found:
            pool.take(a.rows, a.images, a.targets, family=a.family)
        pool.copies.gather()
        return pool

    def enters(self, layer: str) -> bool:
        """Whether a block's own input need not be tried: a layer inside was, with success, and nothing is suspected.

        At the block more of what is perturbed gets its class back for the same strength, and of triggers less is
        stopped for the same accuracy: a shortcut carries there what both see.
        """
        inside = any(t.layer.startswith(layer + ".") for t in self.trials)
        return self._bold and inside and self.best(within=True) is not None

    def aim(self, pool: Pool, alone: bool = False) -> None:
        """Where a suspect leads by little, draw half of the time a copy that shows it, or `alone` these.

        If it is none, to fit on what was sent to it alone leaves everything open.
        """
        if self._hedged:
            pool.copies.only((shown := self.shows(pool)) | (not alone), shown, HEDGED)

    def shows(self, pool: Pool) -> Tensor:
        """Which copies (P,) judge: those sent to the suspect, by families that reach it most, or on the second look."""
        copies, lead = pool.copies, self.attempts.suspicion.leading(self.suspect).to(self.images.device)
        lead = torch.cat([lead if self._hedged else lead | True, torch.ones_like(lead[:1])])
        return lead[copies.family, copies.targets]

    def sift(self, cut: Cut, pool: Pool, method: str, strongest: Chosen | None = None) -> None:
        """Draw no other copies than those that a polarizer stronger than any that is tried gives their class back to.

        The others have become images of another class, as far as anything at this cut can tell. A trigger is a short
        cut, and the first to be closed; to fit on what is none costs clean accuracy and stops nothing.

        `strongest`: that polarizer, where there is one already.
        """
        with suppress(FitDiverged):
            polarizer = (strongest or self.fitted(cut, pool, method, self.strengths[-1])).polarizer
            logits = pool.on_copies(polarizer, torch.arange(len(pool.copies.of), device=self.images.device))
            pool.copies.only(logits.argmax(1) == self.known[pool.copies.of])

    def judges(self, pool: Pool) -> Tensor:
        """The perturbed copies of held-back images, those that show the suspect where there is one."""
        return (torch.isin(pool.copies.of, self.held) & self.shows(pool)).nonzero()[:, 0]

    def climb(self, cut: Cut, pool: Pool, method: str) -> Pool:
        """Trials of one method at one cut: from the middle strength upwards while the budget is kept, else down.

        Where nothing is suspected it is the strength that stops a trigger, and one in between is tried as well.

        Returns the pool, or a new one where the first trial has cleared the suspect.
        """
        at, strongest = min(FIRST, len(self.tried) - 1), None
        new = all(t.suspect != self.suspect for t in self.trials)
        self.aim(pool, alone=new)
        if new:
            strongest = self.find_poisoned(cut, pool, method)
        if self._blind:
            self.sift(cut, pool, method, strongest)
        first = self.trial(cut, pool, method, self.tried[at], alone=new and self._hedged)
        if self.clears(cut, method, first):
            return self.climb(cut, self.pool(cut), method)
        if first.alone:
            self.aim(pool)
            first = self.trial(cut, pool, method, self.tried[at])
        step = 1 if first.within_budget else -1
        while 0 <= (at := at + step) < len(self.tried):
            if self.trial(cut, pool, method, self.tried[at]).within_budget != (step > 0):
                if self._bold:
                    self.trial(cut, pool, method, math.sqrt(self.tried[at] * self.tried[at - step]))
                break
        return pool

    def fitted(self, cut: Cut, pool: Pool, method: str, strength: float, times: int = 1) -> Chosen:
        """A polarizer of so much strength, fitted for `times` as many steps as others."""
        config = replace(self.config, epochs=times * self.config.epochs, least_steps=times * self.config.least_steps)
        if strength != config.lambda_asr:
            config = replace(config, lambda_ce=strength, lambda_max=strength, lambda_asr=strength)
        polarizer, order = self.start(method, config, cut, *pool.statistics()), torch.Generator().manual_seed(self.seed)
        history = pool.fit(polarizer, config, order, rows=self.fitted_on, progress=False)
        return Chosen(polarizer, cut.layer, method, config, history, cut)

    def trial(
        self, cut: Cut, pool: Pool, method: str, strength: float, *, twice: bool = False, alone: bool = False
    ) -> Trial:
        """Fit and judge one polarizer, that is `twice` or `alone` as `Trial` says."""
        started, chosen, made = time.perf_counter(), None, Trial(cut.layer, method, strength, twice=twice, alone=alone)
        try:
            chosen = self.fitted(cut, pool, method, strength, 1 + twice)
            made = self.judged(made, pool, chosen.polarizer)
        except FitDiverged as error:
            made = replace(made, error=str(error))
        made = replace(made, suspect=self.suspect, look=self.look, seconds=time.perf_counter() - started)
        self.trials.append(made)
        self._kept.append(chosen)
        return made

    def judged(self, trial: Trial, pool: Pool, polarizer: Polarizer) -> Trial:
        """The trial with the figures of its polarizer on what the pool has by now."""
        (drop, spread), (doubt, least) = self.drop(pool, polarizer), self.doubt(pool, polarizer)
        repaired, sure = self.repaired(pool, polarizer), drop - spread
        if self._bold:
            counted = _together(drop, spread, doubt, len(self.held))
            within = max(sure, counted) <= self.budget
        else:
            counted = 0.0 if self._blind else doubt
            vetoed = not self._blind and (doubt if self.suspect is None else least) > self.budget
            within = drop <= self.allowed() and not vetoed
        score = repaired - DROP_PRICE * max(0.0, sure, counted)
        return replace(trial, accuracy_drop=drop, doubt=doubt, repaired=repaired, score=score, within_budget=within)

    def allowed(self) -> float:
        """The measured drop that keeps the budget: a few images may always be lost, or few could judge nothing."""
        lost = LOST_FREELY if len(self.held) >= OUT_OF else 1
        return max(self.budget, lost / len(self.held)) + 1e-9 if self.budget else 0.0

    def best(self, within: bool = False) -> int | None:
        """The place of the best trial so far.

        Those in the budget come first, or are the only ones; then those judged by the last look. What costs time must
        be better by more than luck: r-CNPD, a longer fit, and without a suspect one on a second look. Each doubling of
        the strength may be worse by that much, and against a suspect, or of few images, the second look: the budget
        bounds what they cost, and what a few judges let through, the trigger may be.
        """
        known = [i for i, t in enumerate(self.trials) if not (t.error or t.alone) and t.suspect == self.suspect]
        places = [i for i in known if self.trials[i].within_budget or not within]
        luck = LUCK / len(self.held) ** 0.5

        def worth(i: int) -> tuple[bool, int, float]:
            t = self.trials[i]
            again = t.look > 1 and i != self._looked
            strength = max(t.strength, self.trials[self._looked].strength) if again else t.strength
            doublings = math.log2(max(strength, STRENGTHS[0]))
            handicap = luck * (again * (-1 if self._blind or t.suspect is not None else 1) - doublings)
            handicap += max(MARGIN, luck) * ((t.method != "npd") + t.twice)
            return t.within_budget, t.look, t.score - handicap

        return max(places, key=worth, default=None)

    def taken(self, place: int) -> Chosen:
        """What a trial that did not fail has made."""
        chosen = self._kept[place]
        assert chosen is not None
        return chosen

    def look_again(self, pool: Pool, place: int) -> None:
        """Add what fools both the original model and the best polarizer, judge that one by it, and fit once more.

        It is judged as one family more: what still passes is little beside all else, and comes closest to a trigger.
        """
        first, trial = self.taken(place), self.trials[place]
        found = self.attempts.again(
            first.cut, first.polarizer, self.images, self.known, self.config, self.suspect, seed=self.seed + 3,
            progress=self.progress,
        )  # fmt: skip
        if not found:
            return
        for a in found:
            pool.take(a.rows, a.images, a.targets, family=len(self.config.focus()))
        pool.copies.gather()
        self.aim(pool)
        if self._blind:
            self.sift(first.cut, pool, first.method)
        self.look, self._looked = 2, place
        self.trials[place] = self.judged(replace(trial, look=2), pool, first.polarizer)
        if not self.trial(first.cut, pool, first.method, trial.strength, twice=trial.twice).within_budget:
            for strength in [s for s in self.tried if s < trial.strength][-1:]:
                self.trial(first.cut, pool, first.method, strength, twice=trial.twice)

    def verdict(self, cut: Cut, pool: Pool, method: str) -> tuple[Chosen, Choice, Chosen | None]:
        """What `choose` returns, where `cut` and `pool` are those of the best trial."""
        place, best = self.best(within=True), self.best()
        outside = self._kept[best] if place is None and best is not None else None
        taken = self.taken(place) if place is not None else Chosen(
            self.start(method, self.config, cut, *pool.statistics()), cut.layer, method, None, History(), cut
        )  # fmt: skip
        drop, spread = self.drop(pool, taken.polarizer)
        said = self.attempts.original[self.held], pool.on_clean(taken.polarizer, self.held)
        before, after = ((z.argmax(1) == self.known[self.held]).double().mean().item() for z in said)
        choice = Choice(
            trials=tuple(self.trials), chosen=place, best=best, max_accuracy_drop=self.budget,
            labelled=self.labels is not None, held_back=len(self.held), accuracy_before=before, accuracy_after=after,
            accuracy_drop=drop, drop_interval=(drop - spread, drop + spread), perturbed=len(self.judges(pool)),
            repaired=self.repaired(pool, taken.polarizer), suspicion=self.attempts.suspicion, poisoned=self.poisoned,
        )  # fmt: skip
        return taken, choice, outside

    def drop(self, pool: Pool, polarizer: Polarizer) -> tuple[float, float]:
        """Clean accuracy lost on the held-back images, and what 95 % of it lie within, above and below."""
        original, after = self.attempts.original[self.held], pool.on_clean(polarizer, self.held)
        if self.labels is None:
            return _mean_and_spread(_given_up(original, after))
        before, now = (logits.argmax(1) == self.labels[self.held] for logits in (original, after))
        return _mean_and_spread(before.double() - now.double())

    def doubt(self, pool: Pool, polarizer: Polarizer) -> tuple[float, float]:
        """The drop as the original model's own confidences tell it, on the held-back images and views of them.

        A few hundred labels cannot tell one point of accuracy from none: every image whose class changes counts here
        with what the original model was surer of before. Views that it takes for another class than the image itself
        are none (nobody mirrors a digit), but of few images, where almost all that changes is among them.

        Returns the mean, and the low end of its 95 % interval; the views of an image are one witness, not many.
        """
        original, after = pool.on_views(polarizer, self.held)
        each = _given_up(original, after).view(-1, len(self.held))
        known = self.few | (original.argmax(1).view(each.shape) == self.attempts.original[self.held].argmax(1))
        mean, spread = _mean_and_spread((each * known).sum(0) / known.sum() * len(self.held))
        return mean, mean - spread

    def repaired(self, pool: Pool, polarizer: Polarizer) -> float:
        """Share of the perturbed held-back images that get their class back, the mean over the families."""
        judges = self.judges(pool)
        if not len(judges):
            return 0.0
        right = pool.on_copies(polarizer, judges).argmax(1) == self.known[pool.copies.of[judges]]
        family = pool.copies.family[judges]
        return float(torch.stack([right[family == f].double().mean() for f in family.unique()]).mean())


def choose(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    *,
    method: str,
    layer: str,
    config: FitConfig | None,
    max_accuracy_drop: float,
    start: Callable[[str, FitConfig, Cut, Tensor, Tensor], Polarizer],
    seed: int,
    capture: str,
    progress: bool,
    attempts: Attempts | None = None,
) -> tuple[Chosen, Choice, Chosen | None]:
    """Try layers, methods and strengths; see the top of this file.

    Args:
        model, images, labels: on one device; (N, C, H, W) in [0, 1], (N,) or None: what the model predicts.
        method, layer: a name, or "auto"; what cannot be merged is not tried where the config wants mergeable.
        config: keeps its lambdas, and only the rest is chosen; None chooses them as well.
        attempts: the perturbed images, if they are known.
        start: see `Chooser`.

    Returns:
        What is to be used (the identity where nothing kept the budget), what was tried, and the best trial of all where
        that one is outside the budget.

    Raises:
        InputError: too few images, a config of the per-batch loop, no layer that can be cut.
    """
    base = FitConfig.in_rounds() if config is None else config
    few = config is None and len(images) < FEW
    strengths: tuple[float, ...] = STRENGTHS if config is None else (config.lambda_asr,)
    if few:
        base, strengths = replace(base, lambda_still=STILL, mix_views=True), tuple(BESIDE_STILL * s for s in STRENGTHS)
    if base.loop != "rounds":
        raise InputError("config: found loop='batch', wanted 'rounds' to choose layer or method with, or both named")
    if len(images) < FEWEST:
        raise InputError(
            f"clean: found {len(images)} images, wanted at least {FEWEST} to choose with; with fewer, name layer and "
            "method and give a config"
        )
    names = candidate_layers(model, images[:2], base.mergeable) if layer == "auto" else [layer]
    if not names:
        raise InputError("layer: found no candidate that `merge` can fold into (mergeable=True); name a layer")
    if attempts is None:
        whole = whole_forward(model, images, capture)
        attempts = attempt(whole, images, labels, base, seed=seed + 1, progress=progress)
    elif attempts.original.shape[0] != len(images) or len(attempts.suspicion.reached) != len(base.focus()):
        raise InputError("attempts: found those on other clean images or of another mixture")
    chooser = Chooser(images, labels, attempts, base, start, max_accuracy_drop, seed, progress, few, strengths)
    first_method = "npd" if method == "auto" else method

    cuts, refused = list[Cut](), ""
    for name in names:
        try:
            cuts.append(make_cut(model, name, images[:2], capture))
        except InputError as error:
            if layer != "auto":
                raise
            refused = str(error)
    if not cuts:
        raise InputError(f"layer: none of {', '.join(names)} can be cut ({refused}); name another one")

    leader: tuple[Cut, Pool] | None = None
    bar = Progress(len(cuts), "layers", enabled=progress)
    for at in bar:
        if chooser.enters(cuts[at].layer):
            continue
        best = chooser.best()
        pool = chooser.climb(cuts[at], chooser.pool(cuts[at]), first_method)
        if leader is None or chooser.best() != best:
            leader = cuts[at], pool
        bar.note(f"{cuts[at].layer}: {chooser.trials[-1].repaired:.2f} repaired")
    assert leader is not None
    (cut, pool), place = leader, chooser.best()
    # Where no class is suspected, a map per class costs more than it stops.
    most = min(MOST_CLASSES, len(images) // PER_CLASS)
    maps = cut.classes <= most and not base.mergeable and chooser.suspect is not None
    if method == "auto" and maps and place is not None:
        chooser.trial(cut, pool, "r-cnpd", chooser.trials[place].strength)
    place = chooser.best(within=True)
    if place is not None and chooser.suspect is not None and config is None:  # what stops all classes alike is not
        found = chooser.trials[place]  # short of steps: more of them cost accuracy as more strength does
        chooser.trial(cut, pool, found.method, found.strength, twice=True)
        place = chooser.best(within=True)
    if place is not None:
        chooser.look_again(pool, place)
    return chooser.verdict(cut, pool, first_method)
