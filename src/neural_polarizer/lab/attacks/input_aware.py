"""Input-Aware: a generator, trained together with the network, draws each image a trigger of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ...errors import InputError
from ..loop import adam
from ..train import Tampering
from .attacker import Attacker
from .base import TrainingTimeAttack
from .modules import restored, seeded

LR, BETAS = 1e-2, (0.5, 0.9)  # of Adam, as in the paper


class Generator(nn.Module):
    """Images (B, C, H, W) -> maps (B, out, H, W) in (0, 1): two halvings, a bottleneck, two enlargements."""

    def __init__(self, channels: int, out: int, width: int = 16) -> None:
        super().__init__()

        def stage(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU())

        self.down1, self.down2 = stage(channels, width, 2), stage(width, 2 * width, 2)
        self.middle = stage(2 * width, 2 * width)
        self.up2, self.up1 = stage(4 * width, width), stage(2 * width, width)
        self.last = nn.Conv2d(width + channels, out, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        images = images - 0.5
        half = self.down1(images)
        quarter = self.down2(half)
        up = self.up2(torch.cat([self.middle(quarter), quarter], 1))
        up = self.up1(torch.cat([F.interpolate(up, size=half.shape[2:]), half], 1))
        out = self.last(torch.cat([F.interpolate(up, size=images.shape[2:]), images], 1))
        return torch.sigmoid(out)


@dataclass(frozen=True, kw_only=True)
class InputAware(TrainingTimeAttack):
    """Input-aware dynamic attack, poisoned batch by batch during the training.

    Paper: Nguyen, Tran, "Input-Aware Dynamic Backdoor Attack", arXiv 2010.08138, section 3. Trigger: x + m(x) (p(x) -
    x) with a pattern p(x) and a sparse mask m(x), both drawn by small networks from the image itself. First the mask
    network is trained for masks that are sparse (at most `density`) and differ between images; then pattern network and
    classifier are trained together. In every batch `poisoning_ratio` of the images get their own trigger and the
    attacker's label; `cross_ratio` times as many get the trigger *of another image* and keep their label; a diversity
    loss (distance of images over distance of their patterns) keeps the patterns apart. As in the paper, no image is
    poisoned for good.

    Args:
        density: mean value of the mask that is free of charge; the paper's 0.032.
        cross_ratio: images with another image's trigger per poisoned image.
        diversity: weight of the diversity loss.
        mask_steps: training steps of the mask network, of `batch_size` images each.

    Shapes:
        images (B, C, H, W) in [0, 1] -> the same. Learns the tensors `mask.*` and `pattern.*`.

    Example:
        >>> attack = InputAware().prepare(attacker)  # doctest: +SKIP
    """

    name = "input_aware"
    density: float = 0.032
    cross_ratio: float = 1.0
    diversity: float = 1.0
    mask_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density < 1 or self.cross_ratio < 0 or self.diversity < 0 or self.mask_steps < 1:
            raise InputError(
                f"density, cross_ratio, diversity, mask_steps: found {self.density}, {self.cross_ratio}, "
                f"{self.diversity}, {self.mask_steps}, wanted a share, at least 0, at least 0, at least 1"
            )
        if self.poisoning_ratio * (1 + self.cross_ratio) > 1:
            raise InputError(
                f"poisoning_ratio: {self.poisoning_ratio} and cross_ratio {self.cross_ratio} exceed a batch"
            )

    def prepare(self, attacker: Attacker) -> Self:
        data = attacker.data
        mask = seeded(Generator, self.seed, data.images.shape[1], 1).to(attacker.device)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            images = data.floats(rows)
            maps = hardened(mask(images))
            dense = F.relu(maps.mean((1, 2, 3)) - self.density).mean()
            return self.diversity * apart(images, maps) + 100 * dense

        attacker.learn(
            [mask],
            loss,
            steps=self.mask_steps,
            batch_size=attacker.recipe.batch_size,
            lr=LR,
            seed=self.seed,
            file="mask",
            setting=str(self),
            name="train the mask network",
            betas=BETAS,
        )
        return self.with_learned({f"mask.{k}": v for k, v in mask.state_dict().items()})

    def tampering(self, attacker: Attacker, steps: int) -> Tampering:
        channels = attacker.data.images.shape[1]
        pattern = seeded(Generator, self.seed + 1, channels, channels).to(attacker.device)
        return Drawing(self, self.network("mask", channels, attacker.device), pattern, attacker, steps)

    def finished(self, tampering: Tampering) -> Self:
        assert isinstance(tampering, Drawing)
        learned = {f"pattern.{k}": v for k, v in tampering.pattern.state_dict().items()}
        return self.with_learned({**self.learned, **learned})

    def network(self, part: str, channels: int, device: torch.device | str) -> nn.Module:
        """The learned mask or pattern network, in eval mode."""
        self.need(f"{part}.last.weight")
        net = seeded(Generator, 0, channels, 1 if part == "mask" else channels)
        return restored(net, self.learned, f"{part}.").to(device)

    @torch.no_grad()
    def trigger(self, images: Tensor) -> Tensor:
        mask, pattern = (self.network(p, images.shape[1], images.device) for p in ("mask", "pattern"))
        return worn(images, hardened(mask(images)), pattern(images))


class Drawing(Tampering):
    """Own triggers for the first images of each shuffled batch, other images' triggers for the next ones."""

    def __init__(self, attack: InputAware, mask: nn.Module, pattern: nn.Module, attacker: Attacker, steps: int) -> None:
        self.attack, self.mask, self.pattern, self.classes = attack, mask, pattern, attacker.classes
        self.learners = [adam(pattern, LR, steps, BETAS)]

    def batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        poisoned = round(len(images) * self.attack.poisoning_ratio)
        crossed = min(round(poisoned * self.attack.cross_ratio), len(images) - poisoned)
        bad, cross, rest = images.split([poisoned, crossed, len(images) - poisoned - crossed])
        drawn = torch.cat([bad, torch.cat([rest, bad])[:crossed]])  # cross images wear the triggers of yet others
        patterns = self.pattern(drawn)
        with torch.no_grad():
            masks = hardened(self.mask(drawn))
        out = worn(torch.cat([bad, cross])[: len(drawn)], masks, patterns)
        unchanged = torch.cat([cross[len(drawn) - poisoned :], rest])
        wanted = self.attack.relabel(labels[:poisoned], self.classes)
        extra = self.attack.diversity * apart(drawn, patterns)
        return torch.cat([out, unchanged]), torch.cat([wanted, labels[poisoned:]]), extra


def hardened(maps: Tensor) -> Tensor:
    """Mask values pushed towards 0 and 1."""
    return torch.tanh(10 * (2 * maps - 1)) / 2 + 0.5


def worn(images: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    return images + masks * (patterns - images)


def apart(images: Tensor, maps: Tensor) -> Tensor:
    """Distance of images over distance of their maps, mean over neighbouring pairs (the paper's diversity loss)."""
    near = (images - images.roll(1, 0)).square().mean((1, 2, 3)).sqrt()
    far = ((maps - maps.roll(1, 0)).square().mean((1, 2, 3)) + 1e-12).sqrt()
    return (near / (far + 1e-3)).mean()
