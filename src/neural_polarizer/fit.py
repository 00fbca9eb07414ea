"""The bi-level problem: `purify` starts here.

Sources: NPD (arXiv 2306.16697), algorithm 1; CNPD (arXiv 2502.18520). The outer losses are in `losses`, the inner
problem in `perturb`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attempts import Attempts, attempt
from .build import METHOD_STRUCTURE, build_polarizer
from .capture import make_cut
from .checks import check_choice, check_labels, check_number, device_of, dtype_of, usable_device
from .choose import Chosen, choose, whole_forward
from .clean import load_clean
from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut, first_pass, frozen_view
from .errors import InputError
from .history import History
from .kept import Kept, mean_and_variance
from .losses import without_class
from .methods import METHODS
from .outer import Entered, FitDiverged, Outer, batches, condition_for, warm_up, wrong_targets
from .perturb import descend
from .polarized import PolarizedModel
from .polarizers import Polarizer
from .progress import Progress
from .rounds import fastest_layout, fit_in_rounds
from .spread import parts_of, rows_of, spread

AUTO = "auto"  # as a method or a layer

__all__ = ["FitDiverged", "attempts_on", "condition_for", "fit_per_batch", "measure", "purify"]


def purify(
    model: nn.Module,
    clean: Any,
    *,
    method: str = "auto",
    layer: str = "auto",
    config: FitConfig | None = None,
    max_accuracy_drop: float = 0.01,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    capture: str = "auto",
    attempts: Attempts | None = None,
) -> PolarizedModel:
    """Insert a neural polarizer into a frozen, possibly backdoored classifier, and train it on a few clean images.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K), or an output object that has `.logits`. Never changed.
        clean: (images, labels) tensors, images alone (labels then come from the model), a Dataset, or a DataLoader of
            such items. Images are float in [0, 1], labels integers in 0..K-1.
        method: "npd", or class-conditional: "r-cnpd" (one polarizer per class), "e-cnpd" (an embedding of the class),
            "a-cnpd" (the class attends to the channels); "auto": NPD, or against a suspected class r-CNPD.
        layer: path in `model.named_modules()`; the polarizer acts on what enters it. "auto" chooses.
        config: hyper-parameters. None: `FitConfig.in_rounds()` with a strength that is chosen, too.
        max_accuracy_drop: where anything is chosen, the clean accuracy that may be lost, in [0, 1], on a fifth of the
            clean images, which are held back for judging. Nothing that loses more, luck aside, is returned: at worst
            the polarizer is the identity, and `purified.choice.within_budget` is False.
        seed: same seed, same machine: same bits. No global generator is touched.
        device: where to work. If it is not the model's, the work happens on a copy there, and the polarizer comes
            back to where the model is. A model in half precision is worked on as a copy in float32.
        progress: show a bar on a terminal, plain lines otherwise.
        capture: "auto", "graph" or "hooks"; see `make_cut`.
        attempts: where anything is chosen, the perturbed images, which do not depend on what is chosen: those that
            `attempts_on` found with the same model, clean images, seed and mixture. None: they are found anew.

    Returns:
        The purified model around `model`, with `history`, and, where anything was chosen, `choice`: what was tried
        and how it was judged (`choose.Choice`).

    Raises:
        InputError: bad input, with the name of the argument.
        FitDiverged: losses that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> config = FitConfig(epochs=1, warmup_epochs=0)
        >>> purified = purify(net, torch.rand(16, 3, 8, 8), method="npd", layer="3", config=config, progress=False)
        >>> purified(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_choice("method", method, (AUTO, *METHODS))
    check_number("max_accuracy_drop", max_accuracy_drop, least=0, most=1)
    if config is not None and config.target == "none" and method not in (AUTO, "npd"):
        raise InputError(f"target: found 'none' for {method}, wanted targets, since they are the conditions")
    if spread().world > 1 and config is not None and config.statistics == "batch":
        raise InputError(
            f"statistics: found 'batch' on {spread().world} processes, wanted 'running': those of a batch do not add up"
        )
    if spread().world > 1 and config is not None and config.loop == "batch" and config.share != "sample":
        raise InputError(f"share: found {config.share!r} on {spread().world} processes, wanted 'sample'")
    if config is not None and config.mergeable and method not in (AUTO, "npd"):
        raise InputError(
            f"mergeable: found True for {method}, wanted 'npd': what depends on the class cannot be merged"
        )
    if attempts is not None and config is not None and AUTO not in (method, layer):
        raise InputError("attempts: found some where nothing is chosen, wanted None")
    working, images, labels = _brought(model, clean, device, config)
    home, shape = device_of(model), (images.shape[1], images.shape[2], images.shape[3])

    def finished(c: Chosen) -> PolarizedModel:
        return PolarizedModel(
            model, c.polarizer.to(home), c.layer, image_shape=shape, method=c.method, config=c.config,
            history=c.history, clean_images=len(images), capture=capture, cut=c.cut if working is model else None,
        )  # fmt: skip

    def start(method: str, config: FitConfig, cut: Cut, mean: Tensor, var: Tensor) -> Polarizer:
        return started(method, config, cut, seed, mean, var)

    if config is None or AUTO in (method, layer):
        taken, choice, outside = choose(
            working, images, labels, method=method, layer=layer, config=config, max_accuracy_drop=max_accuracy_drop,
            start=start, seed=seed, capture=capture, progress=progress, attempts=attempts,
        )  # fmt: skip
        purified = finished(taken)
        purified.choice, purified.outside_budget = choice, None if outside is None else finished(outside)
        return purified
    cut = make_cut(working, layer, images[:2], capture)
    if config.loop == "rounds":
        begin = partial(start, method, config, cut)
        polarizer, history = fit_in_rounds(cut, begin, images, labels, config, seed=seed, progress=progress)
    else:
        mean, var, original = measure(cut, images, config.pass_size(images.shape[1:], images.device.type))
        polarizer = start(method, config, cut, mean, var)
        labels = original.argmax(1) if labels is None else labels
        history = fit_per_batch(cut, polarizer, images, labels, original, config, seed=seed, progress=progress)
    return finished(Chosen(polarizer, layer, method, config, history, cut))


def attempts_on(
    model: nn.Module,
    clean: Any,
    *,
    config: FitConfig | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Attempts:
    """Perturb the clean images as `purify` does where it chooses: for several calls of it, on one model.

    Arguments and errors are those of `purify`.
    """
    working, images, labels = _brought(model, clean, device, config)
    whole, config = whole_forward(working, images), config or FitConfig.in_rounds()
    return attempt(whole, images, labels, config, seed=seed + 1, progress=progress)


def _brought(
    model: nn.Module, clean: Any, device: torch.device | str | None, config: FitConfig | None
) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The model to work with, and the clean images and labels, where the work is done."""
    images, labels = load_clean(clean)
    home = device_of(model)
    where = home if device is None else usable_device("device", device)
    # Half precision has no room for the gradients of the inner problem; such a model is worked on as a wide copy.
    narrow = torch.finfo(dtype_of(model)).bits < 32
    working = model if where == home and not narrow else copy.deepcopy(model).to(where)
    working = working.float() if narrow else working
    images = images.to(where, dtype_of(working))
    with torch.no_grad():
        classes = first_pass(frozen_view(working), images[:2]).shape[1]
    if labels is not None:
        labels = check_labels("clean", labels, len(images), classes).to(where)
    if config is not None and isinstance(config.target, int) and config.target >= classes:
        raise InputError(f"target: found {config.target}, wanted 0 to {classes - 1}")
    return working, images, labels


def started(method: str, config: FitConfig, cut: Cut, seed: int, mean: Tensor, var: Tensor) -> Polarizer:
    """A polarizer for the cut at the identity, on the device of the statistics (C,) of the clean images there."""
    structure, options = _structure(method, config, cut, seed)
    polarizer = build_polarizer(structure, channels=cut.channels, channel_dim=cut.channel_dim, **options)
    polarizer = polarizer.to(mean.device)
    if config.mergeable:
        polarizer.hold_linear()
    polarizer.start(mean, var)
    return polarizer


def _structure(method: str, config: FitConfig, cut: Cut, seed: int) -> tuple[str, dict[str, Any]]:
    """The structure behind a method, and the options that `build_polarizer` wants for it."""
    if method in METHOD_STRUCTURE:
        structure = METHOD_STRUCTURE[method]
        small = {} if structure == "replicated" else {"dim": config.embedding, "seed": seed}
        return structure, {"classes": cut.classes, **small}
    options: dict[str, dict[str, Any]] = {
        "low-rank": {"rank": config.rank, "seed": seed},
        "relu": {"hidden": config.hidden, "seed": seed},
        "position": {"shape": cut.shape},
    }
    return config.structure, options.get(config.structure, {})


@torch.no_grad()
def measure(cut: Cut, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of the activations at the cut over all images and positions; original logits (N, K)."""
    logits, seen = list[Tensor](), list[Tensor]()

    def note(m: Tensor) -> Tensor:
        seen.append(m)
        return m

    def entering() -> Iterator[Tensor]:
        for batch in images.split(batch_size):
            logits.append(cut.edited(batch, note))
            yield seen.pop()

    return *mean_and_variance(entering(), cut.channel_dim), torch.cat(logits)


def fit_per_batch(
    cut: Cut,
    polarizer: Polarizer,
    images: Tensor,
    labels: Tensor,
    original: Tensor,
    config: FitConfig,
    *,
    seed: int,
    progress: bool,
) -> History:
    """The schedule of the papers: for every batch, perturb it against the model as it is, then step.

    `images` (N, C, H, W), `labels` (N,) and the `original` logits (N, K) are on the cut's device. Trains `polarizer`
    in place. For CNPD clean images carry the original prediction as their condition, perturbed ones their target.
    """
    order, layout = torch.Generator().manual_seed(seed), fastest_layout(cut.original, images)
    cut, size = cut.lean(images[:2], config.compile), config.pass_size(images.shape[1:], images.device.type)
    conditional = isinstance(polarizer, ConditionalPolarizer)
    rule = config.target if config.target is not None else "random" if conditional else "runner-up"
    history, predictions = History(), original.argmax(1)

    def standing(natural: Tensor, y: Tensor) -> Tensor:
        return condition_for(config.conditioning, natural, y, cut.classes, order)

    # What enters the layer on clean images is the same in every epoch.
    kept = Kept(cut, images[:1].contiguous(memory_format=layout), len(images), size)
    for some in images.split(config.batch_size):
        _, tensors = kept.look(some.contiguous(memory_format=layout))
        kept.add(tensors, torch.arange(len(some), device=images.device))

    warm_up(
        polarizer, kept.forward, labels,
        lambda rows: standing(predictions[rows], labels[rows]), config, order, progress,
    )  # fmt: skip
    outer = Outer(polarizer, config, ["mismatch"] if conditional else [])
    stepper = outer.stepper
    threat, how = config.threat(images.shape[1:]), config.descent(images.shape[1:], images.device.type)
    epochs = Progress(config.epochs, "fit", enabled=progress)
    for epoch in epochs:
        outer.begin(epoch, images.device)
        for batch in batches(len(images), config.batch_size, order, images.device):
            # What is random or tells which copies are needed is known for the whole batch; what runs is this process's.
            mine, weight, _ = spread().part(len(batch))
            rows = batch[mine]
            x, y = images[rows].contiguous(memory_format=layout), labels[rows]
            stands = standing(predictions[batch], labels[batch]) if conditional else None
            condition = None if stands is None else stands[mine]
            passes, parts = parts_of(len(rows), size), kept.parts(len(rows), config)
            clean_logits: Tensor | None = None
            # Copies are handed out once it is known which a step needs: until then a look, without gradients. What
            # takes several passes is only looked at, too.
            once = len(parts) == 1 and not stepper.by_rows
            if rule == "runner-up" or once:
                own = config.statistics == "batch" and not stepper.by_rows
                with polarizer.batch_statistics(own), torch.set_grad_enabled(once):
                    looks = [kept.forward(polarizer, rows[p], rows_of(condition, p)) for p in parts]
                clean_logits = looks[0] if len(looks) == 1 else torch.cat(looks)
            if rule == "runner-up":
                target = wrong_targets(rule, clean_logits, y, cut.classes, order)
                every = None if target is None or not conditional else spread().whole(target, len(batch))
            else:
                every = wrong_targets(rule, None, labels[batch], cut.classes, order)
                target = None if every is None else every[mine]
            aims = standing(every, labels[batch]) if conditional and every is not None else None
            sent = None if aims is None else aims[mine]
            passed: dict[int, Entered] = {}  # by where a part starts

            def at(
                part: slice, passed: dict[int, Entered] = passed, sent: Tensor | None = sent
            ) -> Callable[[Tensor], Tensor | Sequence[Tensor]]:
                def attacked(images: Tensor) -> Tensor | Sequence[Tensor]:
                    passed[part.start] = Entered(cut, images)
                    return passed[part.start].fooled(polarizer, config.fool, rows_of(sent, part))

                return attacked

            polarizer.requires_grad_(False)
            whole, aim = at(slice(0, len(rows))), y if target is None else target
            found = descend(threat, whole, x, aim, how, away=target is None, at=at)
            polarizer.requires_grad_(True)
            with torch.no_grad():  # the pass that said that they succeed has brought them to the layer already
                perturbed = (
                    [passed[p.start].detached() for p in passes]
                    if found.seen
                    else [Entered(cut, found.images[p]) for p in passes]
                )
            mismatch: list[Tensor] = []
            if sent is not None and target is not None:
                with torch.no_grad():
                    reached = torch.cat([p.original().argmax(1) for p in perturbed])
                mismatch = [reached.ne(target).double()]
                if config.condition == "reached":
                    aims = standing(spread().whole(reached, len(batch)), labels[batch])
                    sent = aims[mine]

            if stepper.by_rows and stands is not None and aims is not None:
                g, local = stepper.take(torch.cat([stands, aims]))
                assert local is not None
                condition, sent = (part[mine] for part in local.split(len(batch)))
            else:
                g, _ = stepper.take(None)
            for part in parts:
                if not once:
                    with g.batch_statistics(config.statistics == "batch"):
                        clean_logits = kept.forward(g, rows[part], rows_of(condition, part))
                assert clean_logits is not None
                own_passes = [
                    (p, e) for p, e in zip(passes, perturbed, strict=True) if part.start <= p.start < part.stop
                ]
                logits = torch.cat([e.polarized(g, rows_of(sent, p)) for p, e in own_passes])
                # Untargeted: push away the wrong class that came out strongest.
                aim = without_class(logits.detach(), y[part]).argmax(1) if target is None else target[part]
                share = weight * len(logits) / len(rows)
                outer.add(
                    clean_logits, original[rows[part]], y[part], logits, aim, extra=[e[part].mean() for e in mismatch],
                    weights=(share, share),
                )  # fmt: skip
            outer.step()
        row = outer.told(epoch)
        history.append(row)
        epochs.note(f"loss {row['loss']:.3f}, clean {row['clean_accuracy']:.3f}, reached {row['reached']:.3f}")
    return history
