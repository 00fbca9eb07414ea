"""What every baseline is: options, and one method that makes a purified copy of a model from a clean set."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...checks import check_choice, check_labels, device_of, dtype_of, usable_device
from ...clean import load_clean
from ...cut import logits_of
from ...metrics import accuracy
from ..augment import augment
from ..loop import Learner, run_loop
from ..options import check_at_least, check_finite
from ..train import Recipe, predict

PRECISIONS = ("float32", "bfloat16")
Loss = Callable[[Tensor, torch.Generator], Tensor]  # of the rows of a batch


class Defended(NamedTuple):
    """What a defence returns.

    Attributes:
        model: a new model, in eval mode, on the device of the given one.
        parameters: how many were trained; masks count as theirs, pruning without training has none.
        notes: what the method found or chose, as plain JSON values.
    """

    model: nn.Module
    parameters: int
    notes: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a baseline works with: a copy of the model that is its own, and the clean set.

    Attributes:
        model: in eval mode, on the device of the work; all parameters want gradients.
        images, labels: (N, C, H, W) in [0, 1] and (N,).
        accuracy: of the model on them, before anything was done.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    classes: int
    accuracy: float
    seed: int
    progress: bool
    precision: str = "float32"

    def autocast(self) -> torch.autocast:
        """The context of a training pass: weights stay as wide as they are."""
        return Recipe(precision=self.precision).autocast(self.images.device)


@dataclass(frozen=True, kw_only=True)
class Baseline(ABC):
    """Options that all baselines share.

    Args:
        batch_size: clean images per step.
        shift, mirror: augmentation of the clean images wherever weights are trained; see `augment`.
    """

    name: ClassVar[str]
    batch_size: int = 128
    shift: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, 1, "batch_size", *(n for n in ("epochs", "iterations", "steps") if hasattr(self, n)))
        check_at_least(self, 0, "shift", *(n for n in ("tolerance", "u") if hasattr(self, n)))

    def __call__(
        self,
        model: nn.Module,
        clean: Any,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        precision: str = "float32",
        progress: bool = True,
    ) -> Defended:
        """A purified copy of `model`, which stays as it is.

        Args:
            model: images (B, C, H, W) in [0, 1] -> logits (B, K), or an output object that has `.logits`.
            clean: as in `purify`; without labels the model's own predictions stand for them.
            seed: same seed, same machine: same bits.
            precision: "bfloat16" autocasts the passes in which something is trained: a network that was trained so
                is fine-tuned so, in half the time. Not on a processor that imitates it, in ten times the time.

        Raises:
            InputError: bad input, or a model that the method cannot work on.
        """
        check_choice("precision", precision, PRECISIONS)
        images, labels = load_clean(clean)
        home = device_of(model)
        where = home if device is None else usable_device("device", device)
        working = copy.deepcopy(model).to(where).eval().requires_grad_(True)
        images = images.to(where, dtype_of(model))
        with torch.no_grad():
            classes = logits_of(working(images[:2])).shape[1]
        said = predict(working, images, batch_size=self.batch_size)
        labels = said if labels is None else check_labels("clean", labels, len(images), classes).to(where)
        done = self.defend(Job(working, images, labels, classes, accuracy(said, labels), seed, progress, precision))
        wanted = {name: p.requires_grad for name, p in model.named_parameters()}
        for name, p in done.model.named_parameters():
            p.requires_grad_(wanted[name])
            p.grad = None
        return done._replace(model=done.model.eval().to(home))

    @abstractmethod
    def defend(self, job: Job) -> Defended:
        """The method's work, on the job's own copy of the model."""

    @abstractmethod
    def passes(self, images: int, classes: int) -> float:
        """About how many images it sends forward and backward, given the size of the clean set."""

    def batches(self, job: Job) -> int:
        """Batches in a pass over the clean set."""
        return -(-len(job.images) // self.batch_size)

    def learn(self, job: Job, learner: Learner, loss: Loss, *, epochs: int, seed: int | None = None) -> None:
        """Minimise `loss(rows, generator)` over the clean set, see `run_loop`."""

        def autocast(rows: Tensor, generator: torch.Generator) -> Tensor:
            with job.autocast():
                return loss(rows, generator)

        run_loop(
            [learner], autocast, len(job.images), epochs=epochs, batch_size=self.batch_size,
            seed=job.seed if seed is None else seed, device=job.images.device, progress=job.progress, name=self.name,
        )  # fmt: skip

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return augment(images, generator, shift=self.shift, mirror=self.mirror)

    def options(self) -> dict[str, Any]:
        """All options as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def accuracy_of(model: nn.Module, job: Job, batch_size: int) -> float:
    """Of a model on the clean set."""
    return accuracy(predict(model, job.images, batch_size=batch_size), job.labels)


def passing(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K) of a pass that leaves nothing behind in running statistics, whatever the mode."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return logits_of(functional_call(model, buffers, (images,)))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
