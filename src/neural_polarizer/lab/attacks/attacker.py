"""What an attacker has at hand when the attack is prepared: data, the architecture, the recipe, time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..datasets.base import Split
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

    def checkpoint(self, name: str) -> Path | None:
        return self.folder / f"{name}.pt" if self.folder else None
