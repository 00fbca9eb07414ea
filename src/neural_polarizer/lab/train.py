"""Train a classifier: the one recipe for attacked networks and their clean twins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, device_of
from ..cut import logits_of
from ..errors import InputError
from ..precision import native_bfloat16
from ..rounds import fastest_layout
from .augment import augment
from .datasets.base import Split, to_floats
from .loop import Learner, one_cycle, run_loop

PRECISIONS = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained: one-cycle schedule, shifts and mirroring.

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: the highest learning rate of the cycle.
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw", which networks with attention need.
        shift, mirror: augmentation, see `augment`.
        precision: "bfloat16" autocasts the passes, weights stay float32; "auto" is that on a GPU and float32 elsewhere.
            Neither is where the processor would imitate it, in ten times the time.
        channels_last: memory layout of weights and images; faster wherever convolutions dominate.
    """

    epochs: int = 24
    batch_size: int = 64
    lr: float = 0.2
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    shift: int = 1
    mirror: bool = False
    precision: str = "auto"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, wanted at least 1")
        if not self.lr > 0:
            raise InputError(f"lr: found {self.lr}, wanted a number above 0")

    def steps(self, count: int) -> int:
        """Training steps over that many images."""
        return self.epochs * -(-count // self.batch_size)

    def retraining(self) -> Recipe:
        """The same for a network that is already trained: a third of the epochs at a quarter of the rate."""
        return replace(self, epochs=max(1, self.epochs // 3), lr=self.lr / 4)

    def optimizer_for(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay, nesterov=True
        )

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision_on(device) == "bfloat16")

    def precision_on(self, device: torch.device) -> str:
        """What that is there, "float32" or "bfloat16"."""
        wanted = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        return "bfloat16" if wanted and native_bfloat16(device) else "float32"


class Tampering:
    """What an attack does during training, beyond the poisoned images in the data. The base does nothing."""

    learners: Sequence[Learner] = ()

    def enter(self, model: nn.Module) -> None:
        """The network that is about to be trained; called once, before `learners` and the first batch."""

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch of float images (B, C, H, W) and labels (B,) as the attacker wants it, and a loss of its own."""
        return images, labels, None


def train(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    *,
    seed: int = 0,
    tampering: Tampering | None = None,
    checkpoint: Path | None = None,
    setting: str = "",
    progress: bool = True,
    name: str = "train",
) -> None:
    """Train `model` in place and leave it in eval mode.

    Args:
        data: on the model's device.
        seed: of order, augmentation and tampering; the weights are the model's own.
        tampering: what a training-time attack does to each batch.
        checkpoint, setting: see `run_loop`.

    Raises:
        InputError: see `run_loop`.

    Example:
        >>> train(net, data.train, Recipe(epochs=10, mirror=True))  # doctest: +SKIP
    """
    device = device_of(model)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = recipe.optimizer_for(model)
    acts = tampering or Tampering()

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        images, labels, extra = acts.batch(data.floats(rows), data.labels[rows], generator)
        images = augment(images, generator, shift=recipe.shift, mirror=recipe.mirror)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with recipe.autocast(device):
            logits = logits_of(model(images))
        value = F.cross_entropy(logits.float(), labels)
        return value if extra is None else value + extra

    acts.enter(model)
    model.train()
    run_loop(
        [Learner(model, optimizer, one_cycle(optimizer, recipe.lr, recipe.steps(len(data)))), *acts.learners],
        loss,
        len(data),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        setting=f"{setting} {json.dumps(asdict(recipe))} seed {seed}",
        progress=progress,
        name=name,
    )
    model.eval()


def logits_over(
    model: nn.Module, images: Tensor, change: Callable[[Tensor], Tensor] | None = None, batch_size: int | None = None
) -> Iterator[Tensor]:
    """Logits (B, K) of `model` as it is, batch by batch, in the layout that it is fastest with.

    Args:
        images, change: see `predict`.
        batch_size: None: on a CPU as many as its caches hold, in a third of the time of 512.
    """
    layout = torch.contiguous_format
    for i, batch in enumerate(images.split(batch_size or (64 if images.device.type == "cpu" else 512))):
        floats = batch if batch.is_floating_point() else to_floats(batch)
        if i == 0:
            layout = fastest_layout(lambda x: logits_of(model(x)), floats)
        yield logits_of(model((change(floats) if change else floats).contiguous(memory_format=layout)))


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, *, change: Callable[[Tensor], Tensor] | None = None, batch_size: int | None = None
) -> Tensor:
    """Predicted classes (N,) of `model`, in eval mode, its mode restored.

    Args:
        images: (N, C, H, W), uint8 or floats in [0, 1].
        change: what is done to each batch of float images first: a trigger.
        batch_size: see `logits_over`.
    """
    was = model.training
    model.eval()
    out = [logits.argmax(1) for logits in logits_over(model, images, change, batch_size)]
    model.train(was)
    return torch.cat(out)
