"""LC: images of the target class made hard to recognise, so that the patch in their corners is learned instead."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ...cut import frozen_view
from ...errors import InputError
from ..datasets.base import Split, to_bytes
from .attacker import Attacker
from .base import NO_OPTION, CleanLabelAttack, Poisoned


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(CleanLabelAttack):
    """Label-consistent backdoor attack, clean-label.

    Paper: Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks", arXiv 1912.02771, sections 4.2 and 5. Poisoned
    images are of the target class and keep their label; before they get the trigger they are perturbed adversarially
    against a clean network (untargeted projected gradient descent in an L-infinity ball), so that their own features no
    longer say the class. Trigger: a black-and-white patch of 3x3 pixels in each of the four corners.

    Args:
        epsilon: radius of the perturbation, in units of [0, 1]; the paper uses 8 to 32 of 255.
        steps: of the descent, each of 2.5 epsilon / steps.
        amplitude: contrast of the patch, 1 for pure black and white.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same. `prepare` keeps the clean network at hand for `poison`.

    Example:
        >>> LabelConsistent().trigger(torch.full((1, 3, 8, 8), 0.5))[0, 0, :3, :3].tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """

    name = "lc"
    epsilon: float = 16 / 255
    steps: int = 20
    amplitude: float = 1.0
    network: nn.Module | None = field(default=None, compare=False, repr=False, metadata=NO_OPTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.epsilon <= 1 and 0 < self.amplitude <= 1) or self.steps < 1:
            raise InputError(
                f"epsilon, amplitude, steps: found {self.epsilon}, {self.amplitude}, {self.steps}, "
                "wanted 0 to 1, above 0 and up to 1, at least 1"
            )

    def prepare(self, attacker: Attacker) -> Self:
        return replace(self, network=attacker.clean_model())

    def poison(self, data: Split, classes: int, seed: int) -> Poisoned:
        rows = self.candidates(data, classes, seed, self.poisoning_ratio)
        hardened = data.images.clone()
        for part in rows.to(data.images.device).split(512):
            hardened[part] = to_bytes(self.hardened(data.floats(part), data.labels[part]))
        return self.poison_rows(Split(hardened, data.labels), classes, rows)

    def hardened(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images moved inside the ball to where the clean network no longer sees their class."""
        if self.network is None:
            raise InputError("attack: lc perturbs against a clean network; call prepare() before poison()")
        view, step = frozen_view(self.network), 2.5 * self.epsilon / self.steps
        moved = images.clone()
        for _ in range(self.steps):
            moved.requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(view(moved), labels)
                (slope,) = torch.autograd.grad(loss, moved)
            moved = (
                (moved.detach() + step * slope.sign()).clamp(images - self.epsilon, images + self.epsilon).clamp(0, 1)
            )
        return moved.detach()

    def trigger(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < 6:
            raise InputError(f"images: found {tuple(images.shape)}, too small for a patch in each corner")
        board = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]).to(images)
        out = images.clone()
        for rows in (slice(0, 3), slice(-3, None)):
            for columns in (slice(0, 3), slice(-3, None)):
                corner = out[:, :, rows, columns]
                out[:, :, rows, columns] = corner + self.amplitude * (board - corner)
        return out
