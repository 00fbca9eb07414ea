"""ACC, ASR and RA of a model under an attack, in one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from ..metrics import accuracy, attack_success_rate, attackable, robust_accuracy
from .attacks.base import Attack
from .datasets.base import Split
from .train import predict


@dataclass(frozen=True)
class Evaluation:
    """Rates in [0, 1], with the number of images behind ACC (`images`) and behind ASR and RA (`triggered`)."""

    acc: float
    asr: float
    ra: float
    images: int
    triggered: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate(model: nn.Module, test: Split, attack: Attack, classes: int) -> Evaluation:
    """Metrics as in the papers: ASR and RA over the triggered test images whose true class is not the target."""
    clean = predict(model, test.images)
    triggered = predict(model, test.images, change=attack.trigger)
    return evaluation_of(clean, triggered, test.labels, attack, classes)


def evaluation_of(clean: Tensor, triggered: Tensor, labels: Tensor, attack: Attack, classes: int) -> Evaluation:
    """The same from predictions (N,) on clean and on triggered images."""
    return Evaluation(
        acc=accuracy(clean, labels),
        asr=attack_success_rate(triggered, labels, target=attack.target, classes=classes),
        ra=robust_accuracy(triggered, labels, target=attack.target),
        images=len(labels),
        triggered=int(attackable(labels, attack.target).sum()),
    )
