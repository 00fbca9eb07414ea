"""One image at a time: what the model says of it before and after, and how that compares with clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checks import device_of, dtype_of
from ..errors import InputError, in_short
from ..polarized import PolarizedModel
from .attacks.base import Attack
from .datasets.base import to_bytes, to_floats
from .datasets.images import read_image, resized

TOP = 5  # classes that are shown
BATCH = 64


@dataclass(frozen=True)
class Judgement:
    """What is said of one image.

    Attributes:
        shown: (C, H, W) in [0, 1], what the model was given: resized, with the trigger where it was asked for.
        original, purified: the likeliest classes with their probabilities in [0, 1], by name, likeliest first.
        suspect: the two disagree on the class.
        score: how much of the original class's probability the polarizer took, in [-1, 1].
        place: share of the clean images whose score is lower, in [0, 1]; None where there are no clean images.
    """

    shown: Tensor
    original: dict[str, float]
    purified: dict[str, float]
    suspect: bool
    score: float
    place: float | None


class Judge:
    """Judges images with a purified model.

    Args:
        purified: the model.
        names: of its classes, in order; those that have none are numbers.
        clean: clean images (N, C, H, W) uint8 of any size, whose scores the others are compared with.
        attack: whose trigger can be put on an image.

    Raises:
        InputError: an attack whose trigger does not fit the images of this model.

    Example:
        >>> Judge(purified, names=("cat", "dog")).judge(Path("upload.png")).suspect     # doctest: +SKIP
        False
    """

    def __init__(
        self,
        purified: PolarizedModel,
        *,
        names: Sequence[str] = (),
        clean: Tensor | None = None,
        attack: Attack | None = None,
    ) -> None:
        self.purified, self.attack = purified, attack
        self.names = [name if name not in names[:i] else f"{name} ({i})" for i, name in enumerate(names)]
        self.scores = None if clean is None else self._scores(clean)
        if attack is not None:
            try:
                self.triggered(torch.zeros(purified.image_shape))
            except (InputError, RuntimeError) as error:
                shape = "x".join(map(str, purified.image_shape))
                raise InputError(
                    f"attack: the trigger of {attack.name} does not fit images of {shape} ({in_short(error)}); wanted "
                    "the folder of an attack on this model"
                ) from None

    def judge(self, path: Path, *, polarized: bool = True, triggered: bool = False) -> Judgement:
        """What is said of the image in a file.

        Args:
            polarized: False: with the polarizer switched off, so that both answers are the original model's.
            triggered: put the attack's trigger on it first.

        Raises:
            InputError: no image, a damaged or an enormous one; a trigger without an attack.
        """
        image = read_image(path, self.purified.image_shape)
        if triggered:
            image = self.triggered(image)
        batch = image[None].to(device_of(self.purified.base), dtype_of(self.purified.base))
        if polarized:
            said = self.purified.predict(batch)
        else:
            with self.purified.disabled():
                said = self.purified.predict(batch)
        score = float(said.score[0])
        place = None if self.scores is None else float((self.scores < score).float().mean())
        original, purified = self._likeliest(said.original[0]), self._likeliest(said.logits[0])
        return Judgement(image, original, purified, bool(said.suspect[0]), score, place)

    def triggered(self, image: Tensor) -> Tensor:
        """A (C, H, W) image with the trigger, as an 8-bit file would keep it."""
        if self.attack is None:
            raise InputError("attack: found none, wanted the folder of an attack, whose trigger this is")
        return to_floats(to_bytes(self.attack.trigger(image[None])))[0]

    def class_name(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else str(index)

    def _likeliest(self, logits: Tensor) -> dict[str, float]:
        values, classes = logits.float().softmax(0).cpu().topk(min(TOP, len(logits)))
        return {self.class_name(int(c)): float(v) for v, c in zip(values, classes, strict=True)}

    def _scores(self, clean: Tensor) -> Tensor:
        """Of the clean images (N,), ascending."""
        _, height, width = self.purified.image_shape
        batches = [to_floats(torch.stack([resized(i, height, width) for i in part])) for part in clean.split(BATCH)]
        return torch.cat([self.purified.detect(batch).score for batch in batches]).sort().values
