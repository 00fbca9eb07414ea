"""Who does the work: this process, worker processes, or a Ray cluster, all behind `submit` and `next`."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ...errors import InputError
from .store import FAILED
from .work import Outcome, Place, Task, perform

EXECUTORS = ("local", "ray")
TRIES = 3  # of a task whose worker dies: it may have been somebody else's fault


class Executor(ABC):
    """Does tasks, `slots` of them at a time."""

    slots: int

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Begin a task, as soon as a worker is free."""

    @abstractmethod
    def next(self) -> Outcome:
        """Wait for one of the submitted tasks."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers, at once."""


class Inline(Executor):
    """This process, one task at a time."""

    slots = 1

    def __init__(self, place: Place) -> None:
        self.place, self.tasks = place, deque[Task]()

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def next(self) -> Outcome:
        return perform(self.tasks.popleft(), self.place)

    def close(self) -> None:
        self.tasks.clear()


class Processes(Executor):
    """Worker processes of this machine. One that dies takes its neighbours along; their tasks are begun again."""

    def __init__(self, place: Place, jobs: int) -> None:
        self.place, self.slots = place, jobs
        self.running: dict[concurrent.futures.Future[Outcome], Task] = {}
        self.begun: dict[str, int] = {}
        self.pool = self._pool()

    def _pool(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(self.slots, multiprocessing.get_context("spawn"))

    def submit(self, task: Task) -> None:
        self.begun[task.key] = self.begun.get(task.key, 0) + 1
        self.running[self.pool.submit(perform, task, self.place)] = task

    def next(self) -> Outcome:
        while True:
            ready, _ = concurrent.futures.wait(self.running, return_when=concurrent.futures.FIRST_COMPLETED)
            done = ready.pop()
            try:
                outcome = done.result()
            except BrokenProcessPool:
                lost, self.running = list(self.running.values()), {}
                self.pool.shutdown(wait=True)
                self.pool = self._pool()
                # Nobody knows which of them it was: all are begun again, each only so many times.
                dead = [task for task in lost if self.begun[task.key] >= TRIES]
                for task in lost:
                    if task not in dead[:1]:
                        self.submit(task)
                if dead:
                    return Outcome(dead[0].key, FAILED, f"its worker died {TRIES} times")
                continue
            del self.running[done]
            return outcome

    def close(self) -> None:
        workers = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


class Ray(Executor):
    """A Ray cluster that runs already, or one on this machine. Tasks of lost workers are begun again by Ray."""

    def __init__(self, place: Place, jobs: int | None, address: str | None, gpus: float) -> None:
        try:
            import ray
        except ImportError:
            raise InputError('executor: ray is not installed; pip install "neural-polarizer[ray]"') from None
        self.ray: Any = ray
        self.started = not ray.is_initialized()
        if self.started:
            where: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs or os.cpu_count()}
            try:
                ray.init(**where, log_to_driver=False, include_dashboard=False if not address else None)
            except ConnectionError as error:
                raise InputError(f"address: {address!r} is no Ray cluster ({error})") from None
        have = self.ray.cluster_resources()
        if gpus and have.get("GPU", 0) < gpus:
            raise InputError(f"gpus: found {gpus:g} per task, the cluster has {have.get('GPU', 0):g}")
        fits = int(have.get("GPU", 0) / gpus) if gpus else int(have.get("CPU", 1))
        self.slots = max(1, min(fits, jobs or fits))
        # One task per worker: a worker that read a data set for a cell keeps it only as long as it lives.
        self.work = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(perform)
        self.place = ray.put(place)
        self.running: dict[Any, Task] = {}

    def submit(self, task: Task) -> None:
        self.running[self.work.remote(task, self.place)] = task

    def next(self) -> Outcome:
        (done, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        task = self.running.pop(done)
        try:
            outcome: Outcome = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return Outcome(task.key, FAILED, f"its worker was lost: {str(error).splitlines()[0]}")
        return outcome

    def close(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        if self.started:
            self.ray.shutdown()


def executor_of(
    name: str, place: Place, *, jobs: int | None = None, address: str | None = None, gpus: float = 0
) -> Executor:
    """An executor by name.

    Args:
        jobs: tasks at a time; None is one here, and as many as fit on a cluster.
        address: of a Ray cluster, "auto" for the one of this machine; None starts one.
        gpus: GPUs per task on a cluster; may be a share of one.

    Raises:
        InputError: an unknown name, no Ray, no cluster there, more GPUs than it has.
    """
    if name == "ray":
        return Ray(place, jobs, address, gpus)
    return Inline(place) if (jobs or 1) == 1 else Processes(place, jobs or 1)
