"""Where the perturbations of a model end: in a backdoored one, in the attacker's class (ours).

Every perturbation is sent to a random wrong class. Where a backdoor is, whatever comes near its trigger ends in its
class, so one class is reached more often than the others, whichever was asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

STANDS_OUT = 0.1  # of the images that could reach it; docs/results.md has what clean and backdoored networks show


@dataclass(frozen=True)
class Suspicion:
    """How much each class stands out.

    Attributes:
        excess: for every class (K,): of the images of other classes, the share that a family of perturbations sends to
            it, above the median class; of the family where this is largest. In [-1, 1].
        reached: per family and class (F, K), the share of the images of other classes that ends there.
    """

    excess: tuple[float, ...]
    reached: tuple[tuple[float, ...], ...]

    @property
    def score(self) -> float:
        """How suspicious the model is: the excess of the class that stands out most."""
        return max(self.excess)

    @property
    def target(self) -> int | None:
        """The class that stands out, if one does."""
        return self.excess.index(self.score) if self.score >= STANDS_OUT else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "score": self.score, "target": self.target}


def suspicion_of(reached: Tensor, possible: Tensor) -> Suspicion:
    """From counts (F, K): perturbed images of each family that reached each class, and those that could have.

    Example:
        >>> counts = torch.tensor([[30, 2, 1, 0], [9, 8, 7, 8]])
        >>> suspicion_of(counts, torch.full((2, 4), 75)).target
        0
    """
    rates = reached.double() / possible.double().clamp_min(1)
    excess = (rates - rates.median(1, keepdim=True).values).amax(0)
    return Suspicion(tuple(excess.tolist()), tuple(tuple(row) for row in rates.tolist()))
