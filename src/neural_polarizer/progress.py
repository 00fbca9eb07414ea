"""Progress of long work: a bar on a terminal (where tqdm is installed), plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


class Progress:
    """Iterate over ``range(total)`` and say how far it is, on standard error.

    Args:
        total: steps.
        name: what is being done.
        enabled: False says nothing.
        lines: how many plain lines at most where there is no terminal.
    """

    def __init__(self, total: int, name: str, *, enabled: bool = True, lines: int = 5) -> None:
        self.total, self.name, self.enabled = total, name, enabled
        self._every = max(1, -(-total // max(1, lines)))
        self._note = ""

    def note(self, text: str) -> None:
        """What to show beside the bar, or at the end of the next line."""
        self._note = text

    def __iter__(self) -> Iterator[int]:
        bar = self._bar() if self.enabled and sys.stderr.isatty() else None
        for i in range(self.total):
            yield i
            if bar is not None:
                bar.set_postfix_str(self._note, refresh=False)
                bar.update()
            elif self.enabled and ((i + 1) % self._every == 0 or i + 1 == self.total):
                print(f"{self.name}: {i + 1}/{self.total} {self._note}".rstrip(), file=sys.stderr, flush=True)
        if bar is not None:
            bar.close()

    def _bar(self) -> Any:
        try:
            from tqdm import tqdm
        except ImportError:
            return None
        return tqdm(total=self.total, desc=self.name, file=sys.stderr, leave=False)
