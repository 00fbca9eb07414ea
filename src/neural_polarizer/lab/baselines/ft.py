"""FT: fine-tune everything on the clean set."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Defended, Job, count
from .tuning import Tuning, cross_entropy


@dataclass(frozen=True, kw_only=True)
class FT(Tuning):
    """Fine-tuning, the simplest defence.

    Settings: those of BackdoorBench (arXiv 2206.12654): SGD 0.01 falling as a cosine, 100 epochs, batches of 256.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> done = FT(epochs=1)(net, (torch.rand(8, 3, 8, 8), torch.arange(8)), progress=False)
        >>> done.parameters
        1562
    """

    name = "ft"
    batch_size: int = 256

    def defend(self, job: Job) -> Defended:
        self.tune(job, job.model, cross_entropy)
        return Defended(job.model, count(job.model), {})
