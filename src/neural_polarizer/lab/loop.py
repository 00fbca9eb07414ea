"""The one training loop of the lab: classifiers, encoders and generators all go through it.

It owns what every training needs and no attack should write again: the order of the batches, the schedule, the bar,
checkpoints from which an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import write_atomically
from ..progress import Progress

Optimizer = torch.optim.Optimizer
Schedule = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True)
class Learner:
    """Something that learns: a module, its optimizer, and a schedule stepped once per batch."""

    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None = None

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])


def one_cycle(optimizer: Optimizer, lr: float, steps: int) -> Schedule:
    """Up to `lr` over the first 30 % of the steps, then down to nearly nothing."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)


def adam(module: nn.Module, lr: float, steps: int, betas: tuple[float, float] = (0.9, 0.999)) -> Learner:
    """A module that learns with Adam on a one-cycle schedule of that many steps."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, betas=betas)
    return Learner(module, optimizer, one_cycle(optimizer, lr, steps))


def run_loop(
    learners: Sequence[Learner],
    loss: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    checkpoint: Path | None = None,
    setting: str = "",
    progress: bool = True,
    name: str = "train",
) -> None:
    """Minimise `loss(rows, generator)` over the rows 0..count-1, batch by batch, all learners at once, in place.

    Args:
        loss: from the rows of a batch (on `device`) and the generator of everything random in it, the mean loss.
        checkpoint: file written after each epoch, and gone on from when it is there; removed by nobody.
        setting: what the run is; a checkpoint of another setting is refused.

    Raises:
        InputError: a checkpoint that is damaged or of another setting; a loss that is not finite.
    """
    used = torch.device(device)
    with torch.random.fork_rng(devices=[used] if used.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout and the like draw from the global generator: they get a lent one
        generator = torch.Generator().manual_seed(seed)
        first = _resume(checkpoint, learners, generator, setting) if checkpoint else 0
        if first >= epochs:
            return
        bar = Progress(epochs - first, name, enabled=progress)
        for epoch in (first + done + 1 for done in bar):
            mean = _epoch(learners, loss, count, batch_size, generator, used)
            if not math.isfinite(mean):
                raise InputError(f"lr: {name} lost its way in epoch {epoch} (loss {mean}); wanted a smaller one")
            bar.note(f"loss {mean:.3f}")
            if checkpoint:
                _save(checkpoint, learners, generator, setting, epoch)


def _epoch(
    learners: Sequence[Learner],
    loss: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
) -> float:
    """One pass over the rows; the mean loss."""
    total = torch.zeros((), device=device)
    batches = list(torch.randperm(count, generator=generator).to(device).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm in train mode cannot take one image alone
        batches[-2:] = [torch.cat(batches[-2:])]
    for rows in batches:
        value = loss(rows, generator)
        for learner in learners:
            learner.optimizer.zero_grad()
        value.backward()
        for learner in learners:
            learner.optimizer.step()
            if learner.schedule:
                learner.schedule.step()
        total += value.detach() * len(rows)
    return total.item() / count


def _save(path: Path, learners: Sequence[Learner], generator: torch.Generator, setting: str, epochs: int) -> None:
    state = {
        "setting": setting,
        "epochs": epochs,
        "generator": generator.get_state(),
        "global": torch.get_rng_state(),
        "learners": [learner.state() for learner in learners],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(path: Path, learners: Sequence[Learner], generator: torch.Generator, setting: str) -> int:
    """Bring everything to where the checkpoint was written; the epochs that are done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["setting"] != setting:
            raise InputError(f"checkpoint: {path} is of another setting; remove it, or choose another folder")
        for learner, saved in zip(learners, state["learners"], strict=True):
            learner.load(saved)
        generator.set_state(state["generator"])
        torch.set_rng_state(state["global"])
        return int(state["epochs"])
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes of itself
        raise InputError(f"checkpoint: {path} cannot be gone on from ({error}); remove it") from None
