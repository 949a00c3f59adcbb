"""The log, the exit codes and the messages of the command line."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ltlearn.errors import UserError
from ltlearn.utils.text import clean

__all__ = [
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_USER",
    "exit_with",
    "StderrHandler",
    "configured_log",
    "split_names",
    "print_json",
    "printer",
    "report_interrupt",
    "existing_run",
    "to_json",
]

EXIT_INTERNAL, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


def exit_with(sentence: str, code: int) -> None:
    """Print a sentence to standard error and exit.

    Args:
        sentence: The sentence.
        code: The exit code.
    """
    # A sentence quotes names from files, which may hold control characters.
    print(f"ltlearn: {clean(sentence)}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


class StderrHandler(logging.Handler):
    """Print log records to the current standard error.

    The stream is looked up for each record, because a progress bar replaces it while it is shown.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record.

        Args:
            record: The record.
        """
        print(clean(self.format(record)), file=sys.stderr)  # noqa: T201


@contextmanager
def configured_log(quiet: bool) -> Iterator[None]:
    """Print the library's warnings to standard error, one line each; hide other libraries'."""
    from ltlearn.utils.progress import hide_progress, plain_lines

    log = logging.getLogger("ltlearn")
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("ltlearn: %(message)s"))
    level = os.environ.get("LTLEARN_LOG", "ERROR" if quiet else "WARNING").upper()
    before = log.level
    log.addHandler(handler)
    log.setLevel(level if level in ("DEBUG", "INFO", "WARNING", "ERROR") else "WARNING")
    try:
        with hide_progress(quiet), plain_lines(printer(quiet)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def split_names(flag: str, text: str | None) -> list[str] | None:
    """Return the names in an option, separated by commas; None if it was not given.

    Args:
        flag: The flag of the option, for messages.
        text: The value of the option.
    """
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UserError(f"{flag} {text!r} names nothing; give at least one name, or leave it out.")
    return names


def to_json(value: Any, **options: Any) -> str:
    """Return a value as JSON; the options are those of `json.dumps`."""
    import json  # the import takes milliseconds that help does not need

    return json.dumps(value, **options)


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    typer.echo(to_json(value, indent=1))


def printer(quiet: bool):
    """Return a function that prints a line of progress, or nothing if `quiet`."""
    return (lambda text: None) if quiet else (lambda text: print(clean(text), file=sys.stderr))  # noqa: T201


@contextmanager
def report_interrupt(remedy: str = "") -> Iterator[None]:
    """Report on Ctrl-C that the command has stopped. typer itself prints nothing.

    Args:
        remedy: How to continue, appended to the sentence.
    """
    try:
        yield
    except KeyboardInterrupt:
        exit_with(f"stopped{remedy}.", EXIT_INTERRUPTED)


def existing_run(path: Path):
    """Return the run in a folder; raise a `UserError` if there is none."""
    from ltlearn.utils.run_folder import Run

    if not path.is_dir():
        raise UserError(
            f"there is no run {path}; give a folder that `ltlearn recipe` or `ltlearn train` wrote."
        )
    return Run(path)
