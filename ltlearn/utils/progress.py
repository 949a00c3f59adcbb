"""Progress on standard error: a bar on a terminal, and lines elsewhere if a program asks for them.

Both wait two seconds, and are silent where told so.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["quiet", "plain_lines", "duration", "ProgressLine", "track"]

_T = TypeVar("_T")
_DELAY_S = 2.0  # before the first sign of a bar
_SHOW_S = 0.5  # between two looks at what a bar shows, which may wait for a device
_LINE_S = 30.0  # between two lines where there is no terminal
_LEAST_BAR, _MOST_BAR = 6, 40  # columns
_quiet = False
_notify: Callable[[str], None] | None = None


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress inside the block."""
    global _quiet
    before, _quiet = _quiet, on
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def plain_lines(notify: Callable[[str], None] | None) -> Iterator[None]:
    """Inside the block, give progress to `notify` as lines where standard error is no terminal."""
    global _notify
    before, _notify = _notify, notify
    try:
        yield
    finally:
        _notify = before


def duration(seconds: float) -> str:
    """Say a time in its two largest units."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = round(seconds / 60), seconds // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{round(hours / 24)} days"


class ProgressLine:
    """One bar on a terminal that appears after two seconds; or a line every half minute.

    Nothing but `advance`, or `due` and `show`, draws: there is no thread, which a loader's workers
    would inherit.

    Attributes: `on` (whether anybody looks), `notify` (takes a line; None on a terminal).

    Args:
        description: What is being done.
        total: Steps there are.
    """

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done = description, total, 0
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.notify = None if _quiet or terminal else _notify
        self.on = not _quiet and (terminal or self.notify is not None)
        self._start = time.perf_counter()
        self._next = self._start + (_DELAY_S if self.notify is None else _LINE_S)
        self._first: tuple[float, int] | None = None
        self._live = None

    def due(self) -> bool:
        """Tell whether it is time to show, or say, how things are."""
        if not self.on:
            return False
        now = time.perf_counter()
        if now < self._next:
            return False
        self._next = now + (_SHOW_S if self.notify is None else _LINE_S)
        return True

    def last(self) -> bool:
        """Tell whether what is done now is worth a last line: it took long enough."""
        return self.notify is not None and time.perf_counter() - self._start >= _DELAY_S

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.done += steps
        if self._first is None:  # may be what was done before this process, so no rate is its
            self._first = (time.perf_counter(), self.done)
        if not self.due():
            return
        seconds, steps = time.perf_counter() - self._first[0], self.done - self._first[1]
        left = f", {duration(seconds / steps * (self.total - self.done))} left" if steps else ""
        tail = f"{self.done}/{self.total}{left}"
        if self.notify is not None:
            self.notify(f"{self.description}: {tail}")
        else:
            self.show(self.description, [tail])

    def show(self, head: str, tails: Sequence[str], notes: Sequence[str] = ()) -> None:
        """Draw the bar between `head` and a tail, with a note below.

        Args:
            head: What stands before the bar.
            tails: What stands behind it, from long to short: the first that fits is taken.
            notes: The second line, likewise.
        """
        if self._live is None:
            self._open()
        self._live.update(_Bar(self.done, self.total, head, tails, notes), refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self._live.start()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()


class _Bar:
    """A bar between two texts, and a line below; each at most as wide as the terminal."""

    def __init__(self, done, total, head, tails, notes):
        self.done, self.total, self.head, self.tails, self.notes = done, total, head, tails, notes

    def __rich_console__(self, console, options):
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # The last column stays free: some terminals wrap when it is written.
        width = options.max_width - 1
        room = width - len(self.head) - 2
        tail = _fitting(self.tails, room - _LEAST_BAR)
        bar = min(_MOST_BAR, room - len(tail))
        if bar >= _LEAST_BAR:
            line = Table.grid(padding=(0, 1), pad_edge=False)
            for _ in range(3):
                line.add_column(no_wrap=True)
            done = ProgressBar(max(self.total, 1), self.done, width=bar)
            line.add_row(Text(self.head), done, Text(tail))
            yield line
        else:
            yield _cut(Text(f"{self.head}, {tail}"), width)
        if self.notes:
            yield _cut(Text(_fitting(self.notes, width)), width)


def _fitting(texts: Sequence[str], width: int) -> str:
    """Return the first text that is not wider, or the last."""
    return next((text for text in texts if len(text) <= width), texts[-1])


def _cut(text, width: int):
    text.no_wrap, text.overflow = True, "ellipsis"
    text.truncate(max(width, 1), overflow="ellipsis")
    return text


def track(items: Iterable[_T], total: int, description: str) -> Iterator[_T]:
    """Yield the items and show how many of `total` are done."""
    line = ProgressLine(description, total)
    try:
        for item in items:
            yield item
            line.advance()
    finally:
        line.close()
