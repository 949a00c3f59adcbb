"""A progress bar on the terminal for what takes over two seconds; silent when piped or told so."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["ProgressLine", "quiet", "track"]

_T = TypeVar("_T")
_DELAY_S = 2.0
_quiet = False


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress inside the block."""
    global _quiet
    before, _quiet = _quiet, on
    try:
        yield
    finally:
        _quiet = before


class ProgressLine:
    """One rich progress bar on standard error that appears after two seconds.

    Args:
        description: What is being done.
        total: Steps there are.
    """

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done = description, total, 0
        self._start = time.perf_counter()
        self._off = _quiet or not sys.stderr.isatty()
        self._bar = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` stands behind the bar."""
        self.done += steps
        if self._off:
            return
        if self._bar is None:
            if time.perf_counter() - self._start < _DELAY_S:
                return
            self._open()
        self._bar.update(self._task, completed=self.done, note=note)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=self.total, note="")

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def track(items: Iterable[_T], total: int, description: str) -> Iterator[_T]:
    """Yield the items and show how many of `total` are done."""
    line = ProgressLine(description, total)
    try:
        for item in items:
            yield item
            line.advance()
    finally:
        line.close()
