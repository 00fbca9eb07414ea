"""How long a grid will take: image passes of each task, times what a pass costs, over what a machine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...config import FitConfig
from ...models.sketch import sketch
from ...models.zoo import build_model, sized
from ...pool import views_for
from ...rounds import MOST_TRIED
from ...sweep import FOCUS_BATCH, GROUP
from ..baselines.registry import BASELINES, build_baseline
from ..datasets.registry import CLASSES
from .cells import Cell, Network
from .defences import AUTO, NONE

# Floating-point operations per second that the training of such networks reaches, by one core and by one data-centre
# GPU: the first measured here (preact_resnet18 at width 16, float32: 350 images/s on one core), the second assumed at
# a twentieth of an H100's peak in bf16. Orders of magnitude, not promises.
CPU_CORE = 7.5e10
GPU = 5e13
TRIALS = 10  # of `auto`, each a few passes behind the cut
BACKWARD = 3  # a pass forward and backward costs about three forward ones

# Images and sides where no file is to be opened for an estimate: (training, test, side).
SIZES = {
    "digits": (1438, 359, 16),
    "cifar10": (50000, 10000, 32),
    "cifar100": (50000, 10000, 32),
    "gtsrb": (39209, 12630, 32),
    "tiny_imagenet": (100000, 10000, 64),
}
UNKNOWN = (50000, 10000, 32)  # an image folder
USUAL = 10  # classes of a data set that has no number of its own


@dataclass(frozen=True)
class Estimate:
    """Hours of one CPU core, and hours of one GPU."""

    cpu_hours: float
    gpu_hours: float

    @classmethod
    def of(cls, operations: float) -> Estimate:
        return cls(operations / CPU_CORE / 3600, operations / GPU / 3600)


def estimate(networks: Sequence[Network], cells: Sequence[Cell]) -> Estimate:
    """What those networks and cells will cost."""
    return Estimate.of(sum(map(training_cost, networks)) + sum(map(cell_cost, cells)))


def training_cost(network: Network) -> float:
    train, test, _ = SIZES.get(network.dataset, UNKNOWN)
    images = (train - network.hold_back) * network.recipe["epochs"] * BACKWARD + 4 * test
    return images * forward_cost(network)


def cell_cost(cell: Cell) -> float:
    """Passes of the defence, and two of the test images."""
    _, test, _ = SIZES.get(cell.network.dataset, UNKNOWN)
    counted = min(test, cell.test_images or test)
    return (passes(cell) * BACKWARD + 2 * counted) * forward_cost(cell.network)


def passes(cell: Cell) -> float:
    """Images that a defence sends forward and backward."""
    name, options = cell.defence["name"], cell.defence["options"]
    if name == NONE:
        return 0
    if name in BASELINES:
        return build_baseline(name, options).passes(cell.clean, CLASSES.get(cell.network.dataset, USUAL))
    if name == AUTO:
        return rounds_passes(cell, FitConfig.in_rounds()) + TRIALS * cell.clean * 2
    config = FitConfig.from_dict(options)
    if config.loop == "rounds":
        return rounds_passes(cell, config)
    # Per batch: the inner steps, then the clean and the perturbed images.
    return cell.clean * (config.warmup_epochs + config.epochs * (config.steps + 2))


def rounds_passes(cell: Cell, config: FitConfig) -> float:
    """Perturbing, and looking at clean and perturbed images once; the fit itself runs behind the cut alone."""
    classes = CLASSES.get(cell.network.dataset, USUAL)
    # Few images have several views, up to this number (fewer where they are too small to be moved so often).
    tried = MOST_TRIED if config.views else min(MOST_TRIED, cell.clean)
    steps = 0.0
    for family in config.mixture:
        shared = family.share == "target"
        steps += family.steps * config.batch_size * -(-classes // GROUP) if shared else family.steps * tried
        steps += family.steps * family.focus * min(config.batch_size, FOCUS_BATCH)
    looked = cell.clean * (1 + views_for(config.views, cell.clean)) + tried * config.rounds * config.copies()
    return config.rounds * steps + looked / BACKWARD


def forward_cost(network: Network) -> float:
    """Operations of one image through a network."""
    _, _, side = SIZES.get(network.dataset, UNKNOWN)
    options = tuple(sorted(network.arch_options.items()))
    return _forward_cost(network.arch, options, CLASSES.get(network.dataset, USUAL), network.size or side)


@cache
def _forward_cost(arch: str, options: tuple[tuple[str, Any], ...], classes: int, side: int) -> float:
    model = sketch(partial(build_model, arch, classes=classes, **sized(arch, dict(options), side)), 0)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())
