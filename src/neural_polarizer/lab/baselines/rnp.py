"""RNP, Reconstructive Neuron Pruning: unlearn what is clean, see which neurons are wanted back, prune the others."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cut import logits_of
from ..loop import Learner
from ..options import check_above, check_at_least, check_shares
from .base import Baseline, Defended, Job, accuracy_of, count
from .neurons import Masked, Masks, prune_within


@dataclass(frozen=True, kw_only=True)
class RNP(Baseline):
    """Reconstructive Neuron Pruning.

    Paper: Li et al., "Reconstructive Neuron Pruning for Backdoor Defense" (ICML 2023), arXiv 2305.14876. A copy of the
    network unlearns the clean set by gradient ascent until its accuracy is at most `floor`; masks over the neurons of
    that copy then learn to bring it back; the neurons of the network whose masks became small are pruned, up to the
    largest threshold that keeps clean-set accuracy within `tolerance` (ours, in place of a fixed one).

    Args:
        epochs: at most so many of unlearning, and so many of recovering.
        lr: of unlearning; recover_lr: of the masks, SGD with momentum 0.9.
        floor: accuracy on the clean set at which unlearning stops.
        tolerance: share of clean accuracy that pruning may cost.

    Example:
        >>> RNP().passes(images=500, classes=10)
        20000.0
    """

    name = "rnp"
    epochs: int = 20
    lr: float = 0.01
    recover_lr: float = 0.2
    floor: float = 0.2
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "floor")
        check_above(self, 0, "lr", "recover_lr")
        check_at_least(self, 0, "tolerance")

    def passes(self, images: int, classes: int) -> float:
        return 2.0 * self.epochs * images

    def defend(self, job: Job) -> Defended:
        unlearned = copy.deepcopy(job.model)
        ascent = Learner(unlearned, torch.optim.SGD(unlearned.parameters(), lr=self.lr, momentum=0.9))

        def forget(rows: Tensor, generator: torch.Generator) -> Tensor:
            logits = logits_of(unlearned(self.augmented(job.images[rows], generator))).float()
            return -F.cross_entropy(logits, job.labels[rows])

        reached = job.accuracy
        done = 0
        while done < self.epochs and reached > self.floor:
            unlearned.train()
            self.learn(job, ascent, forget, epochs=1, seed=job.seed + done)
            done += 1
            reached = accuracy_of(unlearned.eval(), job, self.batch_size)

        masks, network = Masks(unlearned), Masked(unlearned)
        recovery = Learner(masks, torch.optim.SGD(masks.parameters(), lr=self.recover_lr, momentum=0.9))

        def recover(rows: Tensor, generator: torch.Generator) -> Tensor:
            masks.clamp_()
            logits = network(self.augmented(job.images[rows], generator), masks.by_name())
            return F.cross_entropy(logits.float(), job.labels[rows])

        unlearned.train()
        self.learn(job, recovery, recover, epochs=self.epochs)
        masks.clamp_()
        model, threshold, pruned = prune_within(job.model, masks.by_name(), job, self.tolerance, self.batch_size)
        notes = {"unlearned_to": reached, "unlearning_epochs": done, "threshold": threshold, "pruned": pruned}
        return Defended(model, count(masks), notes)
