"""The bi-level problem: `purify` starts here.

Sources: NPD (arXiv 2306.16697), algorithm 1; the spec of the losses is in `losses`, of the inner problem in `perturb`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import losses
from .checks import check_choice, check_labels, device_of, dtype_of, usable_device
from .clean import load_clean
from .config import FitConfig
from .cut import Cut
from .errors import InputError
from .history import History
from .methods import METHODS
from .perturb import descend
from .polarized import PolarizedModel, applied
from .polarizers import Polarizer, build_polarizer
from .progress import Progress

PARTS = ("loss_bn", "loss_ce", "loss_max", "loss_asr")


class FitDiverged(RuntimeError):
    """The losses of a fit stopped being finite; the user's model is as it was."""


def purify(
    model: nn.Module,
    clean: Any,
    *,
    method: str = "npd",
    layer: str,
    config: FitConfig | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PolarizedModel:
    """Insert a neural polarizer into a frozen, possibly backdoored classifier, and train it on a few clean images.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K), or an output object that has `.logits`. Never changed.
        clean: (images, labels) tensors, images alone (labels then come from the model), a Dataset, or a DataLoader of
            such items. Images are float in [0, 1], labels integers in 0..K-1.
        method: "npd".
        layer: path in `model.named_modules()`; the polarizer acts on what enters it.
        config: hyper-parameters; `FitConfig()` by default.
        seed: same seed, same machine: same bits. No global generator is touched.
        device: where to work. If it is not the model's, the work happens on a copy there, and the polarizer comes
            back to where the model is.
        progress: show a bar on a terminal, plain lines otherwise.

    Returns:
        The purified model around `model`, with `history`.

    Raises:
        InputError: bad input, with the name of the argument.
        FitDiverged: losses that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> config = FitConfig(epochs=1, warmup_epochs=0)
        >>> purified = purify(net, torch.rand(16, 3, 8, 8), layer="3", config=config, progress=False)
        >>> purified(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_choice("method", method, METHODS)
    config = FitConfig() if config is None else config
    images, labels = load_clean(clean)
    home = device_of(model)
    where = home if device is None else usable_device("device", device)
    working = model if where == home else copy.deepcopy(model).to(where)
    images = images.to(where, dtype_of(model))
    cut = Cut(working, layer, images[:1].expand(2, -1, -1, -1))
    if labels is not None:
        labels = check_labels("clean", labels, len(images), cut.classes).to(where)
    if isinstance(config.target, int) and config.target >= cut.classes:
        raise InputError(f"target: found {config.target}, wanted 0 to {cut.classes - 1}")

    mean, var, predictions = measure(cut, images, config.batch_size)
    options: dict[str, Any] = {}
    if config.structure == "low-rank":
        options = {"rank": config.rank, "seed": seed}
    elif config.structure == "relu":
        options = {"hidden": config.hidden, "seed": seed}
    elif config.structure == "position":
        options = {"shape": cut.shape}
    polarizer = build_polarizer(config.structure, channels=cut.channels, channel_dim=cut.channel_dim, **options).to(
        where
    )
    polarizer.start(mean, var)
    history = fit_per_batch(
        cut,
        polarizer,
        images,
        predictions if labels is None else labels,
        config,
        seed=seed,
        progress=progress,
    )
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return PolarizedModel(
        model, polarizer.to(home), layer, image_shape=shape, method=method, config=config, history=history
    )


@torch.no_grad()
def measure(cut: Cut, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of the activations at the cut over all images and positions; predictions (N,)."""
    total = square = torch.zeros(cut.channels, dtype=torch.float64, device=images.device)
    count, predictions = 0, []

    def note(m: Tensor) -> Tensor:
        nonlocal total, square, count
        rows = m.movedim(cut.channel_dim, -1).reshape(-1, cut.channels).double()
        total, square, count = total + rows.sum(0), square + rows.square().sum(0), count + len(rows)
        return m

    for batch in images.split(batch_size):
        predictions.append(cut.edited(batch, note).argmax(1))
    mean = total / count
    return mean.float(), (square / count - mean.square()).clamp_min(0).float(), torch.cat(predictions)


def fit_per_batch(
    cut: Cut,
    polarizer: Polarizer,
    images: Tensor,
    labels: Tensor,
    config: FitConfig,
    *,
    seed: int,
    progress: bool,
) -> History:
    """The schedule of the papers: for every batch, perturb it against the model as it is, then step.

    `images` (N, C, H, W) and `labels` (N,) are on the cut's device. Trains `polarizer` in place.
    """
    order = torch.Generator().manual_seed(seed)
    history = History()
    warm_up(cut, polarizer, images, labels, config, order, progress)
    optimizer = _sgd(polarizer, config.lr, config)
    threat, how = config.threat(images.shape[1:]), config.descent()
    weights = {
        "loss_bn": config.lambda_bn, "loss_ce": config.lambda_ce,
        "loss_max": config.lambda_max, "loss_asr": config.lambda_asr,
    }  # fmt: skip

    def forward(x: Tensor) -> Tensor:
        return cut.edited(x, lambda m: applied(polarizer, m))

    epochs = Progress(config.epochs, "fit", enabled=progress)
    for epoch in epochs:
        sums = torch.zeros(len(PARTS) + 2, dtype=torch.float64, device=images.device)
        for rows in _batches(len(images), config.batch_size, order, images.device):
            x, y = images[rows], labels[rows]
            with polarizer.batch_statistics(config.statistics == "batch"):
                clean_logits = forward(x)
            prediction = clean_logits.detach().argmax(1)
            target = _targets(config, clean_logits.detach(), y, order)
            polarizer.requires_grad_(False)
            perturbed = descend(threat, forward, x, y if target is None else target, how, away=target is None)
            polarizer.requires_grad_(True)

            logits = forward(perturbed.images)
            if target is None:  # untargeted: push away the wrong class that came out strongest
                target = losses.without_class(logits.detach(), y).argmax(1)
            aim = y if config.aim == "label" else prediction
            parts = {
                "loss_bn": losses.bn_loss(clean_logits, y),
                "loss_ce": losses.ce_loss(logits, aim),
                "loss_max": losses.max_loss(logits, y),
                "loss_asr": losses.asr_loss(logits, target),
            }
            loss = torch.stack([weights[name] * parts[name] for name in PARTS]).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            told = [*(parts[name].detach() for name in PARTS)]
            told += [(prediction == y).double().mean(), (logits.argmax(1) == target).double().mean()]
            sums += torch.stack([t.double() for t in told]) * len(rows)
        means = (sums / len(images)).tolist()  # the one time per epoch that the host waits for the device
        row: dict[str, float] = {"epoch": epoch + 1, "loss": 0.0, **dict(zip(PARTS, means, strict=False))}
        row["loss"] = sum(weights[name] * row[name] for name in PARTS)
        row["clean_accuracy"], row["reached"] = means[-2:]
        if not all(map(_finite, means)):
            raise FitDiverged(f"the losses of epoch {epoch + 1} are not finite; try a smaller lr than {config.lr:g}")
        history.append(row)
        epochs.note(f"loss {row['loss']:.3f}, clean accuracy {row['clean_accuracy']:.3f}, reached {row['reached']:.3f}")
    return history


def warm_up(
    cut: Cut,
    polarizer: Polarizer,
    images: Tensor,
    labels: Tensor,
    config: FitConfig,
    order: torch.Generator,
    progress: bool,
) -> None:
    """First on clean images alone, at a small rate, BatchNorm in train mode."""
    if not config.warmup_epochs:
        return
    optimizer = _sgd(polarizer, config.warmup_lr, config)
    for _ in Progress(config.warmup_epochs, "warm-up", enabled=progress, lines=1):
        for rows in _batches(len(images), config.batch_size, order, images.device):
            with polarizer.batch_statistics():
                loss = losses.bn_loss(cut.edited(images[rows], lambda m: applied(polarizer, m)), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def _targets(config: FitConfig, clean_logits: Tensor, labels: Tensor, order: torch.Generator) -> Tensor | None:
    """The wrong class to send each image to (B,); None where untargeted."""
    if config.target == "none":
        return None
    if config.target == "random":
        classes = clean_logits.shape[1]
        shift = torch.randint(1, classes, labels.shape, generator=order).to(labels.device)
        return (labels + shift) % classes
    runner_up = losses.without_class(clean_logits, labels).argmax(1)
    if config.target == "runner-up":
        return runner_up
    given = torch.full_like(labels, config.target)
    return torch.where(labels == given, runner_up, given)  # T must not be y


def _batches(count: int, size: int, order: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    return torch.randperm(count, generator=order).to(device).split(size)


def _sgd(polarizer: Polarizer, lr: float, config: FitConfig) -> torch.optim.SGD:
    return torch.optim.SGD(polarizer.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _finite(value: float) -> bool:
    return value - value == 0
