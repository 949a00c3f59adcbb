"""Log, exit codes and messages of the command line."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltlearn.errors import UserError

__all__ = [
    "exit_with",
    "StderrHandler",
    "configured_log",
    "split_names",
    "printer",
    "report_interrupt",
    "existing_run",
]

EXIT_OURS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


def exit_with(sentence: str, code: int) -> None:
    """Print a sentence to standard error and exit."""
    print(f"ltlearn: {sentence}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


class StderrHandler(logging.Handler):
    """Standard error as it is when a line is said: a progress bar puts the line above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line."""
        print(self.format(record), file=sys.stderr)  # noqa: T201


@contextmanager
def configured_log(quiet: bool) -> Iterator[None]:
    """Send the library's warnings to standard error, a line each, and hide third parties' ones."""
    from ltlearn.utils.progress import plain_lines
    from ltlearn.utils.progress import quiet as silence

    log = logging.getLogger("ltlearn")
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("ltlearn: %(message)s"))
    level = os.environ.get("LTLEARN_LOG", "ERROR" if quiet else "WARNING").upper()
    before = log.level
    log.addHandler(handler)
    log.setLevel(level if level in ("DEBUG", "INFO", "WARNING", "ERROR") else "WARNING")
    try:
        with silence(quiet), plain_lines(printer(quiet)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def split_names(flag: str, text: str | None) -> list[str] | None:
    """Return the names between the commas of an option; None where it was not given."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UserError(f"{flag} {text!r} names nothing; give a name or more, or leave it out.")
    return names


def printer(quiet: bool):
    """Return the function that prints progress lines; one that prints nothing if quiet."""
    return (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))  # noqa: T201


@contextmanager
def report_interrupt(then: str = "") -> Iterator[None]:
    """Say on Ctrl-C that the command has stopped: typer ends without a word."""
    try:
        yield
    except KeyboardInterrupt:
        exit_with(f"stopped{then}.", EXIT_INTERRUPTED)


def existing_run(path: Path):
    """Return the run in a folder; raise a `UserError` if there is none."""
    from ltlearn.utils.run_folder import Run

    if not path.is_dir():
        raise UserError(
            f"there is no run {path}; give the folder that `ltlearn recipe` or `train` wrote."
        )
    return Run(path)
