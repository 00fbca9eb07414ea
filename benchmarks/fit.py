"""What a fit costs: `python benchmarks/fit.py [--images 2500] [--repeats 5] [--rounds [--chosen] [--whole]] [--der]`.

A backdoored PreAct-ResNet18 of width 16 on CIFAR-10 (or on random images, where the data is not at hand), cut at
`layer4.1.conv1`, NPD, batches of 128. In one run the sides alternate, and ratios are taken within one turn; printed are
medians:

- per batch: epochs of `fit_per_batch` with the published settings over the same of the plain loop (`plain_loop.py`),
  from the same start on the same few batches; the same without the early exit, where both sides take both inner steps,
  and that over its floor: the same passes run bare, folded and in the fastest layout as the fit has them;
- `--rounds`: `purify` in rounds at one layer, with `--chosen` also with everything chosen, once each; 50 epochs of the
  plain loop over their time, and the share of it that is not spent on perturbing and its checks (a record of its own,
  `fit_rounds.json`); with `--whole` these 50 epochs are run to their end, and both defences judged on 2,000 test images
  (wants the data);
- `--der`: both sides fitted on 500 images and judged on 2,000 test images (wants the data).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import DATA, Table, clean_images, network, seconds
from plain_loop import PlainLoop
from torch import Tensor, nn

from neural_polarizer import FitConfig, PolarizedModel, purify, rounds
from neural_polarizer.capture import make_cut
from neural_polarizer.cut import Cut
from neural_polarizer.fit import attempts_on, fit_per_batch, measure, started
from neural_polarizer.lab.backdoor import Backdoored
from neural_polarizer.lab.datasets.registry import load_dataset
from neural_polarizer.lab.evaluate import Evaluation, evaluate
from neural_polarizer.metrics import defence_effectiveness
from neural_polarizer.polarizers import Polarizer
from neural_polarizer.rounds import fastest_layout
from neural_polarizer.sweep import Sweep

LAYER, BATCH, EPOCHS = "layer4.1.conv1", 128, 50
BATCHES, TURN = 2, 8  # batches of an epoch here, and epochs of a turn; what is kept is kept once in each
JUDGED, FITTED, DER_EPOCHS = 2000, 500, 5


def bare(cut: Cut, images: Tensor, steps: int) -> None:
    """The passes that cannot be avoided: inner steps, the prefix of perturbed images, the tail of all.

    The prefix of the clean images runs once for all epochs.
    """
    entered = []
    for x in images.split(BATCH):
        with torch.no_grad():
            entered.append(cut.prefix(x))
    for _ in range(TURN):
        for x, clean in zip(images.split(BATCH), entered, strict=True):
            for _ in range(steps):
                wanted = x.clone().requires_grad_()
                torch.autograd.grad(cut.edited(wanted, lambda m: m).sum(), wanted)
            with torch.no_grad():
                perturbed = cut.prefix(x)
            for kept in (clean, perturbed):
                m = kept.m.clone().requires_grad_()
                torch.autograd.grad(cut.tail(kept._replace(m=m)).sum(), m)


def ours(cut: Cut, polarizer: Polarizer, clean: tuple[Tensor, Tensor], original: Tensor, config: FitConfig) -> None:
    fit_per_batch(cut, polarizer, *clean, original, config, seed=0, progress=False)


def plain(net: nn.Module, polarizer: Polarizer, clean: tuple[Tensor, Tensor], config: FitConfig) -> None:
    loop, order = PlainLoop(net, LAYER, polarizer.eval(), config), torch.Generator().manual_seed(0)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(clean[0]), generator=order).split(config.batch_size):
            loop.step(clean[0][rows], clean[1][rows])


def per_batch(net: nn.Module, few: tuple[Tensor, Tensor], repeats: int, table: Table) -> float:
    """Rows on the per-batch loop; returns the plain loop's seconds per image and epoch, as published."""
    published = FitConfig(epochs=TURN, warmup_epochs=0, batch_size=BATCH)
    whole = FitConfig(epochs=TURN, warmup_epochs=0, batch_size=BATCH, early_exit=None)
    cut = make_cut(net, LAYER, few[0][:2], "graph")
    mean, var, original = measure(cut, few[0], BATCH)
    lean, fast = cut.lean(few[0][:2]), few[0].contiguous(memory_format=fastest_layout(cut.original, few[0]))

    def start() -> Polarizer:
        return started("npd", published, cut, 0, mean, var)

    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(cut, start(), few, original, published),
        "plain": lambda: plain(net, start(), few, published),
        "ours, both steps": lambda: ours(cut, start(), few, original, whole),
        "plain, both steps": lambda: plain(net, start(), few, whole),
        "floor": lambda: bare(lean, fast, whole.steps),
    }
    for side in sides.values():
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            taken[name].append(seconds(side))

    def over(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(taken[a], taken[b], strict=True)]

    table.tell("per-batch fit as published / plain loop", over("ours", "plain"), 0.5)
    table.tell("per-batch fit, no early exit / plain loop", over("ours, both steps", "plain, both steps"), 0.5)
    table.tell("per-batch fit, no early exit / floor", over("ours, both steps", "floor"), 1.25)
    return statistics.median(taken["plain"]) / TURN / len(few[0])


def in_rounds(
    net: nn.Module, clean: tuple[Tensor, Tensor], plain_fit: float, chosen: bool, table: Table
) -> PolarizedModel:
    """Rows on rounds, against the seconds of a whole plain fit; returns what one layer's rounds made."""
    perturbing, made = 0.0, list[PolarizedModel]()

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal perturbing
            result: list[Any] = []
            perturbing += seconds(lambda: result.append(method(*args, **kwargs)))
            return result[0]

        return run

    own = {(Sweep, "run"): Sweep.run, (rounds, "scan"): rounds.scan}
    for (place, name), method in own.items():
        setattr(place, name, timed(method))
    config = FitConfig.in_rounds()
    one = seconds(
        lambda: made.append(purify(net, clean, method="npd", layer="layer4.1", config=config, progress=False))
    )
    for (place, name), method in own.items():
        setattr(place, name, method)
    table.tell(f"{EPOCHS} epochs of the plain loop / rounds at one layer", [plain_fit / one], 10, at_most=False)
    table.tell("of that, time outside the perturbing", [1 - perturbing / one], 0.25)
    if not chosen:
        return made[0]
    found: list[Any] = []
    perturbing = seconds(lambda: found.append(attempts_on(net, clean, progress=False)))
    whole = perturbing + seconds(lambda: purify(net, clean, attempts=found[0], progress=False))
    table.tell(f"{EPOCHS} epochs of the plain loop / everything chosen", [plain_fit / whole], 10, at_most=False)
    table.tell("of that, time outside the perturbing", [1 - perturbing / whole], 0.25)
    return made[0]


def whole_plain_fit(net: nn.Module, clean: tuple[Tensor, Tensor]) -> tuple[PolarizedModel, float]:
    """The plain loop's 50 epochs, to their end, and its seconds; without a warm-up, as it is timed."""
    config = replace(FitConfig.published("cifar10"), epochs=EPOCHS, warmup_epochs=0, batch_size=BATCH)
    cut = make_cut(net, LAYER, clean[0][:2], "graph")
    mean, var, _ = measure(cut, clean[0], BATCH)
    polarizer = started("npd", config, cut, 0, mean, var)
    spent = seconds(lambda: plain(net, polarizer, clean, config))
    return PolarizedModel(net, polarizer.eval(), LAYER, image_shape=(3, 32, 32), cut=cut), spent


def judge_of(victim: Backdoored, data: Path) -> Callable[[nn.Module], Evaluation]:
    """What measures a defence, on some of the test images."""
    held = load_dataset("cifar10", data, progress=False).test
    rows = torch.randperm(len(held), generator=torch.Generator().manual_seed(1))[:JUDGED]
    assert victim.attack is not None
    return partial(evaluate, test=held.take(rows), attack=victim.attack, classes=10)


def der(data: Path, table: Table) -> None:
    """Both sides from the same start, with the same batches: the same defence."""
    victim, clean = network(), clean_images(FITTED, data)[:2]
    config = FitConfig(epochs=DER_EPOCHS, warmup_epochs=0, batch_size=BATCH)
    cut = make_cut(victim.model, LAYER, clean[0][:2], "graph")
    mean, var, original = measure(cut, clean[0], BATCH)
    judge = judge_of(victim, data)
    before, found = judge(victim.model), []
    for fit in (lambda g: ours(cut, g, clean, original, config), lambda g: plain(victim.model, g, clean, config)):
        polarizer = started("npd", config, cut, 0, mean, var)
        fit(polarizer)
        found.append(judge(PolarizedModel(victim.model, polarizer.eval(), LAYER, image_shape=(3, 32, 32), cut=cut)))
    a, b = (der_of(before, after) for after in found)
    print(f"before {before}\nours {found[0]}\nplain {found[1]}\nDER {a:.4f} and {b:.4f}")
    table.tell(f"DER of the per-batch fit ({a:.3f}) and of the plain loop: difference", [abs(a - b)], 0.005)


def der_of(before: Evaluation, after: Evaluation) -> float:
    return defence_effectiveness(acc_before=before.acc, acc_after=after.acc, asr_before=before.asr, asr_after=after.asr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", action="store_true")
    parser.add_argument("--chosen", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--der", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("docs/results/fit.json"))
    options = parser.parse_args()
    images, labels, kind = clean_images(options.images, options.data)
    net, table = network().model, Table()
    rate = per_batch(net, (images[: BATCHES * BATCH], labels[: BATCHES * BATCH]), options.repeats, table)
    setting = {
        "network": "PreActResNet18 width 16, BadNets", "layer": LAYER, "data": kind, "images": len(images),
        "batch": BATCH, "batches of an epoch": BATCHES, "epochs of a turn": TURN, "turns": options.repeats,
        "warm-up": "left out on both sides", "plain epoch of all images, seconds": round(rate * len(images), 2),
    }  # fmt: skip
    if options.der:
        der(options.data, table)
        setting["DER"] = f"{FITTED} images, {DER_EPOCHS} epochs, {JUDGED} test images"
    status = table.write(options.out, **setting)
    if options.rounds:
        of_rounds = Table()
        plain_fit, other = EPOCHS * rate * len(images), None
        if options.whole:
            other, plain_fit = whole_plain_fit(net, (images, labels))
        made = in_rounds(net, (images, labels), plain_fit, options.chosen, of_rounds)
        if other is not None:
            judge = judge_of(network(), options.data)
            a, b = (der_of(judge(net), judge(defended)) for defended in (made, other))
            of_rounds.tell(f"DER of rounds ({a:.3f}) less that of the plain loop ({b:.3f})", [a - b], 0, at_most=False)
            setting |= {"plain loop": f"run to its end, {plain_fit:.0f} s", "DER": f"{JUDGED} test images"}
        status |= of_rounds.write(options.out.with_name("fit_rounds.json"), **setting)
    return status


if __name__ == "__main__":
    sys.exit(main())
