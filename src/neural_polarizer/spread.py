"""One fit over several processes: each takes its share of every batch, and all come to the same polarizer.

Every process draws the same random numbers and holds the same polarizer; what is divided are the passes through the
network. Gradients and results are added up by Accelerate (`pip install "neural-polarizer[distributed]"`), whose
`PartialState` reads what `torchrun` puts into the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import InputError


class Part(NamedTuple):
    """A process's rows of a batch.

    `weight` is how much of the batch's mean they are, `times` in how many processes each of them is.
    """

    rows: slice
    weight: float
    times: int


def parts_of(count: int, size: int) -> list[slice]:
    """The passes of at most `size` rows that `count` rows take.

    Example:
        >>> parts_of(5, 3)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(first, min(first + size, count)) for first in range(0, count, max(1, size))]


def rows_of(values: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    """Some rows of a tensor; of nothing nothing."""
    return None if values is None else values[rows]


class Spread:
    """The processes of a fit; this one is number `rank` of `world`.

    Example:
        >>> Spread(1, 4).part(10)
        Part(rows=slice(2, 5, None), weight=0.3, times=1)
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def device_of(self, name: str) -> str:
        """The device of this process where the user said `name`: of several, each has a GPU of its own."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.world > 1 and name == "cuda" else name

    def part(self, count: int) -> Part:
        """Its rows of `count`; of fewer rows than processes everybody takes all, at a share of the weight."""
        if count < self.world:
            return Part(slice(0, count), 1 / self.world, self.world)
        first, last = (r * count // self.world for r in (self.rank, self.rank + 1))
        return Part(slice(first, last), (last - first) / max(1, count), 1)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.world == 1:
            return tensor
        from accelerate.utils import reduce

        out: Tensor = reduce(tensor.detach(), reduction="sum")
        return out

    def whole(self, own: Tensor, count: int) -> Tensor:
        """All rows (count, ...), of which each process has computed those of `part`."""
        if self.world == 1 or count < self.world:
            return own
        wide = own.new_zeros(count, *own.shape[1:], dtype=torch.uint8 if own.dtype == torch.bool else own.dtype)
        wide[self.part(count).rows] = own
        return self.total(wide).to(own.dtype)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the sum over all processes; what no process has a gradient for has none."""
        if self.world == 1:
            return
        every = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in every], dtype=every[0].dtype, device=every[0].device)
        own = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in every]
        flat = self.total(torch.cat([has, *own]))
        sizes = [len(every), *(p.numel() for p in every)]
        has, *sums = flat.split(sizes)
        for p, any_has, grad in zip(every, has.tolist(), sums, strict=True):
            p.grad = grad.view_as(p).clone() if any_has else None


ALONE = Spread()
_now = [ALONE]


def spread() -> Spread:
    """The processes of the fit that runs now; one, unless `spread_out` says otherwise."""
    return _now[-1]


def asked_for() -> bool:
    """Whether `torchrun` has started several of us."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def spread_out(*, cpu: bool) -> Iterator[Spread]:
    """Share the fits inside among the processes that `torchrun` has started; alone where there is one.

    Args:
        cpu: talk through gloo; else through what the accelerators have.

    Raises:
        InputError: several processes, and Accelerate is not installed.
    """
    if not asked_for():
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise InputError(
            'torchrun: found several processes without accelerate; pip install "neural-polarizer[distributed]"'
        ) from None
    state = PartialState(cpu=cpu)
    _now.append(Spread(state.process_index, state.num_processes))
    try:
        yield spread()
    finally:
        _now.pop()
        state.destroy_process_group()
