"""What an attacker has at hand when the attack is prepared: data, the architecture, the recipe, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..datasets.base import Split
from ..loop import adam, run_loop
from ..train import Recipe, train


@dataclass
class Attacker:
    """Means of an attack.

    Args:
        data: the clean training images and labels, on `device`.
        classes: their number K.
        build: a fresh network of the architecture under attack, from a seed.
        recipe: how networks are trained.
        folder: for checkpoints of what is learned on the way; None keeps none.
        clean: a network of that architecture trained on clean data, where one is at hand already.
    """

    data: Split
    classes: int
    build: Callable[[int], nn.Module]
    recipe: Recipe
    seed: int = 0
    device: torch.device | str = "cpu"
    folder: Path | None = None
    progress: bool = True
    clean: nn.Module | None = field(default=None, repr=False)

    def clean_model(self) -> nn.Module:
        """The network trained on clean data: as given, or trained now, once."""
        if self.clean is None:
            model = self.build(self.seed).to(self.device)
            train(
                model,
                self.data,
                self.recipe,
                seed=self.seed,
                checkpoint=self.checkpoint("clean"),
                progress=self.progress,
                name="train a clean network",
            )
            self.clean = model
        return self.clean

    def learn(
        self,
        modules: Sequence[nn.Module],
        loss: Callable[[Tensor, torch.Generator], Tensor],
        *,
        steps: int,
        batch_size: int,
        lr: float,
        seed: int,
        file: str,
        setting: str,
        name: str,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Train networks of the attack's own on the data with Adam, for whole epochs of about that many steps in all.

        Args:
            loss: see `run_loop`.
            file: the checkpoint's name.
        """
        per_epoch = -(-len(self.data) // batch_size)
        epochs = max(1, round(steps / per_epoch))
        run_loop(
            [adam(module, lr, epochs * per_epoch, betas) for module in modules],
            loss,
            len(self.data),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=self.device,
            checkpoint=self.checkpoint(file),
            setting=setting,
            progress=self.progress,
            name=name,
        )

    def checkpoint(self, name: str) -> Path | None:
        return self.folder / f"{name}.pt" if self.folder else None
