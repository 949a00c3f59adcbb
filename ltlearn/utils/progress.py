"""Progress: a bar in a notebook or on a terminal; elsewhere lines, if a program takes them.

A bar appears after two seconds (in a notebook after half a second), a line after half a minute.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TypeVar

from ltlearn.utils.ranks import is_first

__all__ = [
    "ProgressLine",
    "brief_progress",
    "duration",
    "hide_progress",
    "plain_lines",
    "runs_in_notebook",
    "track",
]

_T = TypeVar("_T")
_DELAY_S = 2.0  # before a bar appears
_SHOW_S = 0.5  # between two updates of a bar, which may wait for a device
_LINE_S = 30.0  # between two lines
_MIN_BAR, _MAX_BAR = 6, 40  # width in characters
_hidden = False
_notify: Callable[[str], None] | None = None
_shared: "_Cell | None" = None  # where all bars of a `brief_progress` stand


def runs_in_notebook() -> bool:
    """Return whether this process is a Jupyter kernel, whose output a notebook shows as HTML."""
    # IPython is a module of every kernel, so nothing is imported here.
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def hide_progress(hide: bool = True) -> Iterator[None]:
    """Show no progress inside the block.

    Args:
        hide: False shows it.
    """
    global _hidden
    before, _hidden = _hidden, hide
    try:
        yield
    finally:
        _hidden = before


@contextmanager
def plain_lines(notify: Callable[[str], None] | None) -> Iterator[None]:
    """Pass progress to `notify` as lines inside the block, if standard error is no terminal.

    Args:
        notify: Called with each line; None passes nothing.
    """
    global _notify
    before, _notify = _notify, notify
    try:
        yield
    finally:
        _notify = before


@contextmanager
def brief_progress() -> Iterator[None]:
    """Show the bars of a notebook in one place inside the block, and no tables of epochs.

    For work of many fits, whose tables would fill the notebook.
    """
    global _shared
    if _shared is not None or not runs_in_notebook():
        yield
        return
    _shared = _Cell()
    try:
        yield
    finally:
        _shared.clear()
        _shared = None


def duration(seconds: float) -> str:
    """Format a time in its one or two largest units.

    Args:
        seconds: The time. A negative time counts as 0.

    Example:
        >>> duration(4320)
        '1 h 12 min'
    """
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = round(seconds / 60), seconds // 3600
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{round(hours / 24)} days"


class _Cell:
    """The place below a notebook's cell that is written again and again."""

    def __init__(self):
        self._handle = None

    def write(self, html: str, text: str) -> None:
        from IPython.display import display

        content = {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def clear(self) -> None:
        if self._handle is not None:
            self.write("", "")


class ProgressLine:
    """A bar in a notebook or on a terminal, or a line every half minute.

    Only `advance`, `show` and `close` draw. There is no thread, because the workers of a loader
    would inherit it.

    Attributes: `on` (whether progress is shown at all), `notify` (takes a line; None where there is
    a bar), `takes_table` (whether `table` is shown), `table` (HTML that a notebook shows below the
    bar and keeps when the bar is gone).

    Args:
        description: Name of the work.
        total: Number of steps.
    """

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done = description, total, 0
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        hidden = _hidden or not is_first()
        self.notify = None if hidden or terminal else _notify
        self._cell = None
        if not hidden and not terminal and self.notify is None and runs_in_notebook():
            self._cell = _shared or _Cell()
        self.takes_table, self.table = self._cell is not None and self._cell is not _shared, ""
        self.on = not hidden and (terminal or self.notify is not None or self._cell is not None)
        self._start = time.perf_counter()
        delay = _LINE_S if self.notify is not None else _SHOW_S if self._cell else _DELAY_S
        self._next = self._start + delay
        self._first: tuple[float, int] | None = None
        self._live = None

    def due(self) -> bool:
        """Return whether it is time for the next update."""
        if not self.on:
            return False
        now = time.perf_counter()
        if now < self._next:
            return False
        self._next = now + (_SHOW_S if self.notify is None else _LINE_S)
        return True

    def last(self) -> bool:
        """Return whether the work took long enough for a final line."""
        return self.notify is not None and time.perf_counter() - self._start >= _DELAY_S

    def advance(self, steps: int = 1) -> None:
        """Count steps as done, and show it if it is time.

        Args:
            steps: Number of steps.
        """
        self.done += steps
        # The first steps may have been done before this process, so they do not count as speed.
        if self._first is None:
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
        """Draw the bar, with a text on each side and a note below.

        Args:
            head: The text on the left.
            tails: Texts for the right, from long to short. The first that fits is shown.
            notes: Texts for the line below, likewise.
        """
        if self._cell is not None:
            text = ", ".join([head, tails[0], *notes[:1]])
            self._cell.write(_html_bar(self.done, self.total, text) + self.table, text)
            return
        if self._live is None:
            self._open()
        self._live.update(_Bar(self.done, self.total, head, tails, notes), refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self._live.start()

    def close(self, text: str = "") -> None:
        """Remove the bar. The table of a notebook stays.

        Args:
            text: What stands for the table where no HTML is shown.
        """
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
        if self._cell is not None:
            if self.table:
                self._cell.write(self.table, text)
            else:
                self._cell.clear()


def _html_bar(done: int, total: int, text: str) -> str:
    from fastprogress.core import html_progress_bar

    return html_progress_bar(min(done, total), max(total, 1), escape(text))


class _Bar:
    """A bar between two texts, and a line below. Neither is wider than the terminal."""

    def __init__(self, done, total, head, tails, notes):
        self.done, self.total, self.head, self.tails, self.notes = done, total, head, tails, notes

    def __rich_console__(self, console, options):
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # Some terminals wrap when the last column is written, so it stays free.
        width = options.max_width - 1
        room = width - len(self.head) - 2
        tail = _fitting(self.tails, room - _MIN_BAR)
        bar = min(_MAX_BAR, room - len(tail))
        if bar >= _MIN_BAR:
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
    """Return the first text that fits the width, or the last text."""
    return next((text for text in texts if len(text) <= width), texts[-1])


def _cut(text, width: int):
    text.no_wrap, text.overflow = True, "ellipsis"
    text.truncate(max(width, 1), overflow="ellipsis")
    return text


def track(items: Iterable[_T], total: int, description: str) -> Iterator[_T]:
    """Yield the items, and show how many of `total` are done.

    Args:
        items: The items.
        total: Number of items.
        description: Name of the work.
    """
    line = ProgressLine(description, total)
    try:
        for item in items:
            yield item
            line.advance()
    finally:
        line.close()
