"""What each lead of the method is worth, alone: `python tools/leads.py [--images 500] [--only NAME ...] [--data FILE]`.

On the CIFAR-10 networks of `benchmarks/networks` that are clean or carry a development attack: NPD before one layer,
fitted as `purify` does where no class is suspected, with many images or with fewer than 128, then with one thing
changed at a time, at two strengths; what it costs and stops on test images. No test attack is looked at. What is in the
record already is not done again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from development import (
    CIFAR10,
    ROOT,
    clean_set,
    development_networks,
    figures,
    some_test_images,
    withheld,
    write_record,
)
from torch import Tensor, nn

from neural_polarizer import FitConfig, pool
from neural_polarizer.attempts import Attempts
from neural_polarizer.capture import make_cut
from neural_polarizer.choose import FEW, STILL, Chooser, Chosen
from neural_polarizer.cut import Cut
from neural_polarizer.fit import attempts_on, started
from neural_polarizer.lab.attacks.base import DEVELOPMENT_ATTACKS
from neural_polarizer.lab.backdoor import CLEAN
from neural_polarizer.lab.datasets.base import Split
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.mixture import Family
from neural_polarizer.outer import FitDiverged, Outer
from neural_polarizer.polarizers import Polarizer
from neural_polarizer.rounds import fit_in_rounds

LAYER, EARLIER = "layer4.1", "layer4.0"
STRENGTHS = {False: (0.1, 0.2), True: (0.2, 0.4)}  # with many images, and with few
ON = (CLEAN, *DEVELOPMENT_ATTACKS)
USUAL = FitConfig.in_rounds()
FIRST = (  # the first that was tried: two of single images, two universal
    Family(threat="l2", radius=1.0, share="sample", steps=3),
    Family(threat="l2", radius=2.0, share="target", steps=4),
    Family(threat="flow", radius=1.5, share="target", steps=5, rule="sign"),
)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """One change to what `purify` does.

    Args:
        changes: of the config.
        without: families that are left out, by their threat.
        averaged: the weights are the mean of those after every epoch of the second half, at a constant rate.
        twice: a polarizer before an earlier layer is fitted first, and stays.
        sifted: fitted only on what a firm polarizer gives its class back to; None: with few images, as `purify` does.
    """

    about: str
    changes: dict[str, Any] = field(default_factory=dict)
    without: str = ""
    method: str = "npd"
    layer: str = LAYER
    averaged: bool = False
    twice: bool = False
    sifted: bool | None = None


THREATS = list(dict.fromkeys(f.threat for f in USUAL.mixture))
LEADS = {
    "as it is": Lead(about="what `purify` fits"),
    **{f"without {t}": Lead(about="that family left out", without=t) for t in THREATS},
    "first mixture": Lead(about="sample-wise and universal L2, flow, few steps", changes={"mixture": FIRST}),
    "sifted": Lead(about="only what a firm polarizer gives its class back to", sifted=True),
    "not sifted": Lead(about="everything that fools the model", sifted=False),
    "two rounds": Lead(about="perturbed again, against both models", changes={"rounds": 2, "fool": "both"}),
    "no views": Lead(about="clean images as they are, no augmentation", changes={"views": 0}),
    "no mixed views": Lead(about="views of one image each", changes={"mix_views": False}),
    "mixed views": Lead(about="further views mixed with other images", changes={"mix_views": True}),
    "towards labels": Lead(about="cross-entropy on labels, no views", changes={"benign": "label", "views": 0}),
    "towards predictions": Lead(about="L_ce aims at the polarized prediction", changes={"aim": "prediction"}),
    "trust region": Lead(about=f"L_still, weight {STILL:g}", changes={"lambda_still": STILL}),
    "no trust region": Lead(about="no L_still", changes={"lambda_still": 0.0}),
    "twice as long": Lead(about="epochs doubled", changes={"epochs": 30, "least_steps": 480}),
    "weights averaged": Lead(
        about="constant rate, mean over the second half", changes={"schedule": "constant"}, averaged=True
    ),
    "low rank": Lead(about="W of rank 16", changes={"structure": "low-rank", "rank": 16}),
    "diagonal": Lead(about="every channel alone", changes={"structure": "diagonal"}),
    "by position": Lead(about="every channel and place alone", changes={"structure": "position"}),
    "a ReLU": Lead(about="a hidden layer", changes={"structure": "relu"}),
    "r-cnpd": Lead(about="a map per class reached", method="r-cnpd"),
    "e-cnpd": Lead(about="a bias per class reached", method="e-cnpd"),
    "layer4.1.conv1": Lead(about="before the last block's first convolution", layer="layer4.1.conv1"),
    "layer4.0": Lead(about="a block earlier", layer="layer4.0"),
    "layer3.1": Lead(about="two blocks earlier", layer="layer3.1"),
    "two depths": Lead(about="before layer4.0 at half the strength, then before layer4.1", twice=True),
}


class Averaging(Outer):
    """Outer steps whose weights are averaged over the epochs of the second half."""

    last: Averaging

    def __init__(self, polarizer: Polarizer, config: FitConfig, *more: Any) -> None:
        super().__init__(polarizer, config, *more)
        self._of, self._sum, self._times, Averaging.last = polarizer, dict[str, Tensor](), 0, self

    def told(self, epoch: int) -> dict[str, float]:
        if 2 * (epoch + 1) > self._config.epochs:
            self._times += 1
            for name, value in self._of.state_dict().items():
                if value.is_floating_point():
                    self._sum[name] = self._sum.get(name, 0) + value.clone()
        return super().told(epoch)

    def averaged(self) -> None:
        """Put the averages into the polarizer."""
        state = {n: self._sum[n] / self._times if n in self._sum else v for n, v in self._of.state_dict().items()}
        self._of.load_state_dict(state)


def at_strength(config: FitConfig, strength: float) -> FitConfig:
    return replace(config, lambda_ce=strength, lambda_max=strength, lambda_asr=strength)


def differs(lead: Lead, few: bool) -> bool:
    """Whether it is another thing than what `purify` does, with few images or with many; or that itself."""
    config, changes = config_for(few), lead.changes
    same = lead.sifted == few or (bool(changes) and all(getattr(config, k) == v for k, v in changes.items()))
    return not same


def config_for(few: bool) -> FitConfig:
    return replace(USUAL, lambda_still=STILL, mix_views=True) if few else USUAL


def begun(method: str, config: FitConfig, cut: Cut, mean: Tensor, var: Tensor) -> Polarizer:
    return started(method, config, cut, 0, mean, var)


def fits(lead: Lead, model: nn.Module, clean: Split, usual: Attempts) -> Iterator[tuple[float, Cut, Polarizer | None]]:
    """For every strength the polarizer before its cut, fitted as the lead says; None where the losses diverged."""
    images, labels, few = clean.floats(), clean.labels, len(clean) < FEW
    config = replace(config_for(few), **lead.changes)
    attempts = usual
    if lead.without:
        found = [a for a in usual.found if config.mixture[a.family].threat != lead.without]
        attempts = replace(usual, found=found)
    elif config.mixture != USUAL.mixture:
        attempts = attempts_on(model, (images, labels), config=config, progress=False)
    chooser = Chooser(images, labels, withheld(attempts), config, begun, budget=0.01, seed=0, few=few)

    def fit_at(model: nn.Module, layer: str) -> Callable[[float], Chosen]:
        cut = make_cut(model, layer, images[:2], "auto")
        shared = chooser.pool(cut)
        if lead.sifted or (few and lead.sifted is None):
            chooser.sift(cut, shared, lead.method)
        return partial(chooser.fitted, cut, shared, lead.method)

    pool.Outer = Averaging if lead.averaged else Outer  # type: ignore[misc]
    fit = None if config.rounds > 1 else fit_at(model, EARLIER if lead.twice else lead.layer)
    for strength in STRENGTHS[few]:
        try:
            if fit is None:
                own, cut = at_strength(config, strength), make_cut(model, lead.layer, images[:2], "auto")
                begin, rows = partial(begun, lead.method, own, cut), chooser.fitted_on
                polarizer, _ = fit_in_rounds(cut, begin, images[rows], labels[rows], own, seed=0, progress=False)
            else:
                last = fit
                if lead.twice:
                    last = fit_at(with_polarizer(model, EARLIER, fit(strength / 2).polarizer), lead.layer)
                made = last(strength)
                polarizer, cut = made.polarizer, made.cut
            if lead.averaged:
                Averaging.last.averaged()
            yield strength, cut, polarizer
        except FitDiverged:
            yield strength, make_cut(model, lead.layer, images[:2], "auto"), None


def with_polarizer(model: nn.Module, layer: str, polarizer: Polarizer) -> nn.Module:
    """A copy of the network with a polarizer before one of its layers."""
    out = copy.deepcopy(model)
    out.set_submodule(layer, nn.Sequential(copy.deepcopy(polarizer).requires_grad_(False), out.get_submodule(layer)))
    return out.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=LEADS, default=list(LEADS))
    parser.add_argument("--on", nargs="+", choices=ON, default=list(ON), help="networks, by their attack")
    parser.add_argument("--data", type=Path, default=CIFAR10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "leads.json")
    options = parser.parse_args()
    data = load_dataset("cifar10", options.data, progress=False)
    test, clean = some_test_images(data, options.test_images), clean_set(data, options.images)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["network"], row["lead"]) for row in rows}
    for name, found in (one for one in development_networks() if one[0] in options.on):
        attempts = attempts_on(found.model, (clean.floats(), clean.labels), progress=False)
        before = figures(make_cut(found.model, LAYER, clean.floats()[:2], "auto"), None, test, found.attack)
        for lead in options.only:
            if (name, lead) in done or not differs(LEADS[lead], few=len(clean) < FEW):
                continue
            started_at, made = time.perf_counter(), []
            for strength, cut, polarizer in fits(LEADS[lead], found.model, clean, attempts):
                after = None if polarizer is None else figures(cut, polarizer, test, found.attack)
                made.append({
                    "network": name, "lead": lead, "about": LEADS[lead].about, "strength": strength, "before": before,
                    "after": after,
                })  # fmt: skip
            rows += made
            print(name, lead, *(m["after"] for m in made), f"{time.perf_counter() - started_at:.0f} s", flush=True)
            write_record(options.out, images=options.images, test_images=len(test), layer=LAYER, seed=0, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
