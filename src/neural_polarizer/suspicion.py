"""Where the perturbations of a model end: in a backdoored one, in the attacker's class (ours).

A family of universal perturbations is sent to every class, and those classes that it reaches most once more, with all
effort. Where a backdoor is, a small and universal perturbation near its trigger gets nearly all images into one class,
and into no other: from every class, where a texture or a shape gets there from classes that look like it. So what
counts is how far it gets from those classes that it is hardest from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

STANDS_OUT = 0.4  # of the images that could reach it; docs/results.md has what clean and backdoored networks show

ON_AVERAGE = 3.0  # how much more a lead counts that is one on the average of all families

AVERAGED = 0.5  # how much a family must tell to be in the average

HARDEST = 1 / 3  # of the classes that images come from

EVEN = 0.05  # a difference between two shares that is none


@dataclass(frozen=True)
class Suspicion:
    """How much each class stands out.

    Attributes:
        excess: for every class (K,): of the images of those other classes that it is hardest from, the share that a
            family of perturbations sends to it, above the next class; of the family where this is largest, or of the
            average of all, where a lead counts more. Of a faint family the lead from all other classes counts, too. In
            [0, 1], 0 for all but the leaders.
        reached: per family and class (F, K), the share of the images of other classes that ends there.
        hardest: the same of the images of those classes that it is hardest from, which `excess` is made of.
    """

    excess: tuple[float, ...]
    reached: tuple[tuple[float, ...], ...]
    hardest: tuple[tuple[float, ...], ...] = ()

    @property
    def score(self) -> float:
        """How suspicious the model is: the excess of the class that stands out most."""
        return max(self.excess)

    @property
    def target(self) -> int | None:
        """The class that stands out, if one does."""
        return self.excess.index(self.score) if self.score >= STANDS_OUT else None

    def leading(self, suspect: int | None = None) -> Tensor:
        """Per family and class (F, K), whether the family reaches no other class more often, give or take.

        Where one class is suspected, only that one, and where it is ahead of the next: a family that reaches it and
        others alike shows ways into a class that every network has.
        """
        rates = torch.tensor(self.reached, dtype=torch.float64)
        if suspect is None:
            return rates >= rates.amax(1, keepdim=True) - EVEN
        others, alone = rates.clone(), torch.zeros_like(rates, dtype=torch.bool)
        others[:, suspect] = -1.0
        ahead = rates[:, suspect] - others.amax(1) >= EVEN
        alone[:, suspect] = ahead if ahead.any() else True
        return alone

    def leaders(self, suspect: int | None = None) -> list[Tensor]:
        """The same as classes (U,) of every family, the most reached first."""
        rates = torch.tensor(self.reached, dtype=torch.float64)
        orders = (row.argsort(descending=True, stable=True) for row in rates)
        return [order[lead[order]] for order, lead in zip(orders, self.leading(suspect), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "score": self.score, "target": self.target}


def suspicion_of(reached: Tensor, could: Tensor, weights: Tensor | None = None) -> Suspicion:
    """From counts: perturbed images of each family that reached each class, and those that could have.

    Args:
        reached, could: (F, K), or (F, K, S) for each class, or group of classes, that the images are of.
        weights: (F,) how much a lead of one family tells; those of which it tells little are not in the average. None:
            all tell.

    Example:
        >>> counts = torch.tensor([[60, 2, 1, 0], [9, 8, 7, 8]])
        >>> suspicion_of(counts, torch.full((2, 4), 75)).target
        0
    """
    reached, could = (c.double().view(*c.shape[:2], -1) for c in (reached, could))
    rates, hard = reached.sum(2) / could.sum(2).clamp_min(1), _from_the_hardest(reached, could)
    weights = reached.new_ones(len(reached)) if weights is None else weights
    # What is faint reaches so little of a clean network that an uneven lead tells as well: near a trigger, not at it.
    every = torch.cat([hard, hard[weights >= AVERAGED].mean(0, keepdim=True), rates])
    two = every.topk(2, dim=1)
    lead = torch.zeros_like(every).scatter_(1, two.indices[:, :1], two.values[:, :1] - two.values[:, 1:])
    tells = torch.cat([weights, weights.new_tensor([ON_AVERAGE]), (weights == 1).to(weights)])
    excess = (lead * tells[:, None]).amax(0).clamp_max(1)
    return Suspicion(tuple(excess.tolist()), *(tuple(tuple(row) for row in r.tolist()) for r in (rates, hard)))


def _from_the_hardest(reached: Tensor, could: Tensor) -> Tensor:
    """Shares (F, K) of counts (F, K, S), the mean over the third of S from where fewest images get there."""
    rates = torch.where(could > 0, reached / could.clamp_min(1), torch.inf).sort(dim=2).values
    some = ((could > 0).sum(2, keepdim=True) * HARDEST).round().clamp_min(1)
    among = torch.arange(rates.shape[2], device=rates.device) < some
    return torch.where(among & rates.isfinite(), rates, 0.0).sum(2) / some[..., 0]
