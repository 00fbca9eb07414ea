"""Run a grid: every network once, then every cell that is not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from filelock import FileLock, Timeout

from ...errors import InputError
from .cells import Cell, Network, networks_of, twins_of
from .executors import Executor
from .store import DONE, FAILED, REFUSED, Store
from .work import Outcome, Task, failed


@dataclass
class Status:
    """How far a run is."""

    cells: int
    cached: int
    networks: int
    outcomes: dict[str, int] = field(default_factory=lambda: {DONE: 0, REFUSED: 0, FAILED: 0})
    networks_done: int = 0
    networks_lost: int = 0
    running: dict[str, tuple[Task, float]] = field(default_factory=dict)  # by key, with the time of its beginning
    last: Outcome | None = None

    @property
    def finished(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return self.outcomes[FAILED]


def open_cells(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """The cells that have no record, or whose record says that something failed."""
    return [c for c in cells if store.outcome(c) not in (DONE, REFUSED)]


def open_networks(cells: Sequence[Cell], store: Store) -> list[Network]:
    """The networks that those cells need and that are not there, twins first."""
    needed = [*twins_of(cells).values(), *networks_of(cells).values()]
    return [n for n in needed if not store.has_network(n)]


def tasks_of(cells: Sequence[Cell], store: Store) -> list[Task]:
    """What is left to do, in an order in which everything has what it needs; each with its needs."""
    missing = open_networks(cells, store)
    keys = {n.key for n in missing}
    training = [Task(n, (n.twin.key,) if n.attack and n.twin.key in keys else ()) for n in missing]
    measuring = [Task(c, (c.network.key,) if c.network.key in keys else ()) for c in cells]
    return training + measuring


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    executor: Executor,
    *,
    minutes: float | None = None,
    tell: Callable[[Status], None] = lambda status: None,
) -> Status:
    """Run what is missing; whatever was finished before an interruption is on disk.

    Args:
        minutes: begin nothing new after so long; None has no limit.
        tell: called whenever something begins or ends.

    Raises:
        InputError: another run is at work in the same folder.
    """
    store.make()
    lock = FileLock(store.root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"out: another run is at work in {str(store.root)!r}; wait for it, or stop it") from None
    try:
        return _run(cells, store, executor, minutes, tell)
    finally:
        executor.close()
        lock.release()


def _run(
    cells: Sequence[Cell], store: Store, executor: Executor, minutes: float | None, tell: Callable[[Status], None]
) -> Status:
    wanted = open_cells(cells, store)
    waiting = tasks_of(wanted, store)
    networks = sum(isinstance(t.work, Network) for t in waiting)
    status = Status(cells=len(cells), cached=len(cells) - len(wanted), networks=networks)
    lost: set[str] = set()  # networks that could not be trained
    done: set[str] = set()
    stop = None if minutes is None else time.monotonic() + 60 * minutes
    tell(status)
    while waiting or status.running:
        late = stop is not None and time.monotonic() >= stop
        for task in list(waiting):
            if lost.intersection(task.needs):
                waiting.remove(task)
                _settle(status, _given_up(task, store), lost, network=isinstance(task.work, Network))
                tell(status)
            elif not late and len(status.running) < executor.slots and done.issuperset(task.needs):
                waiting.remove(task)
                status.running[task.key] = (task, time.monotonic())
                tell(status)
                executor.submit(task)
        if not status.running:
            if late:
                break
            continue
        outcome = executor.next()
        task, _ = status.running.pop(outcome.key)
        if isinstance(task.work, Cell) and outcome.record is None:  # its worker died: the record is ours to write
            record = failed(task.work, outcome.error)
            store.write(record)
            outcome = Outcome(task.key, FAILED, outcome.error, record)
        done.add(task.key)
        _settle(status, outcome, lost, network=isinstance(task.work, Network))
        tell(status)
    return status


def _given_up(task: Task, store: Store) -> Outcome:
    error = f"its network {task.needs[0]} could not be trained; see {store.log(task.needs[0])}"
    if isinstance(task.work, Cell):
        store.write(failed(task.work, error))
    return Outcome(task.key, FAILED, error)


def _settle(status: Status, outcome: Outcome, lost: set[str], *, network: bool) -> None:
    status.last = outcome
    if network:
        status.networks_done += 1
        if outcome.outcome == FAILED:
            lost.add(outcome.key)
            status.networks_lost += 1
    else:
        status.outcomes[outcome.outcome] += 1
