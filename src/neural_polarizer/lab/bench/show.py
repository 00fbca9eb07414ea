"""How a run looks: a live table on a terminal, a line per event elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .cells import Cell, Network, described
from .run import Status
from .store import DONE, FAILED
from .work import Task


def name_of(task: Task) -> str:
    if isinstance(task.work, Network):
        return f"train {described(task.work)}"
    cell: Cell = task.work
    return (
        f"{cell.labels['defence']} against {cell.labels['attack']} at {cell.poisoning_ratio:g}, "
        f"{cell.network.dataset}, {cell.labels['architecture']}, {cell.clean} clean, seed {cell.seed}"
    )


def result_of(status: Status) -> str:
    last = status.last
    assert last is not None
    if last.outcome != DONE:
        return f"{last.outcome}: {last.error}"
    if last.record is None:
        return "done"
    after = last.record["after"]
    return (
        f"ACC {after['acc']:.1%}, ASR {after['asr']:.1%}, DER {last.record['der']:.3f}, {last.record['seconds']:.1f} s"
    )


class Show:
    """Give `tell` to `run_cells`, within a `with`."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.stream = stream
        self.live: Live | None = None
        self.status: Status | None = None
        self.names: dict[str, str] = {}
        self.lines: list[str] = []
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def __enter__(self) -> Show:
        if self.stream.isatty():
            self.live = Live(get_renderable=self.table, console=Console(file=self.stream), refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def tell(self, status: Status) -> None:
        with self.lock:
            self.status = status
            for key, (task, _) in status.running.items():
                if key not in self.names:
                    self.names[key] = name_of(task)
                    self._line(f"begun: {self.names[key]}")
            if status.last is not None and status.last.key in self.names:
                name = self.names.pop(status.last.key)
                count = f"[{status.cached + status.finished}/{status.cells}]"
                self._line(f"{count} {name}: {result_of(status)}")

    def _line(self, text: str) -> None:
        self.lines = [*self.lines, text][-8:]
        if self.live is None:
            print(text, file=self.stream, flush=True)

    def table(self) -> Table:
        """What a terminal shows."""
        table = Table(title=self._title(), title_justify="left", show_header=False, box=None)
        with self.lock:
            for text in self.lines:
                if not text.startswith("begun"):
                    table.add_row("", text)
            if self.status:
                for key, (_, since) in list(self.status.running.items()):
                    table.add_row(f"{time.monotonic() - since:.0f} s", self.names.get(key, key))
        return table

    def _title(self) -> str:
        s = self.status
        if s is None:
            return "reading the grid"
        parts = [
            f"{s.cached + s.finished} of {s.cells} cells ({s.cached} from earlier runs)",
            f"{s.networks_done} of {s.networks} networks",
        ]
        if s.failed:
            parts.append(f"{s.failed} {FAILED}")
        return f"{', '.join(parts)}; {time.monotonic() - self.started:.0f} s"
