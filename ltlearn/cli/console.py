"""The log, the exit codes and the messages of the command line."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import typer

from ltlearn.errors import UserError
from ltlearn.utils.interrupts import Terminated, deferred_interrupt
from ltlearn.utils.ranks import is_first, may_report, start, world
from ltlearn.utils.system_errors import reason_of
from ltlearn.utils.text import clean

__all__ = [
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_USER",
    "checked_streams",
    "exit_interrupted",
    "exit_with",
    "StderrHandler",
    "configured_log",
    "silenced_ranks",
    "split_names",
    "print_json",
    "print_report",
    "printer",
    "report_interrupt",
    "existing_run",
    "to_json",
]

EXIT_INTERNAL, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130


def exit_with(sentence: str, code: int) -> None:
    """Print a sentence to standard error and exit. If there are several ranks, only one prints.

    Args:
        sentence: The sentence.
        code: The exit code.
    """
    try:
        # `silenced_ranks` redirects the standard error of all ranks but the first.
        stream = sys.stderr if is_first() else sys.__stderr__
        # torchrun terminates all ranks as soon as one has ended.
        with deferred_interrupt():
            if may_report():
                # A sentence quotes names from files, which may hold control characters.
                print(f"ltlearn: {clean(sentence)}", file=stream, flush=True)  # noqa: T201
    except OSError:
        _drop(sys.stderr)  # a full disk behind standard error: the exit code remains
    raise SystemExit(code)


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds to nowhere: Python writes it again at its end, and reports."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_interrupted(sentence: str, error: BaseException) -> None:
    """Print a sentence and exit as the shell expects: 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        sentence: The sentence.
        error: The interrupt.
    """
    code = EXIT_INTERRUPTED
    if isinstance(error, Terminated):
        code = 128 + error.signum
    exit_with(sentence, code)


@contextmanager
def silenced_ranks() -> Iterator[None]:
    """Connect the ranks of a training, and let the first one alone print inside the block."""
    if world() == 1:
        yield
        return
    # Otherwise torch's libraries print a page of text when a rank ends.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    start()
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


class _Output(io.TextIOWrapper):
    """Standard output that remembers why it failed."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = error
            raise


@contextmanager
def checked_streams() -> Iterator[None]:
    """Exit with 1 if standard output is closed or cannot be written to.

    Results would be lost without a word. A closed standard error only loses messages. Inside the
    block, standard output escapes the characters that the terminal cannot encode, which names of
    files and classes may hold.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # files that are opened later would get the number of a closed stream
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        exit_with(
            f"standard output is closed; send it to a file or to {os.devnull}.", EXIT_INTERNAL
        )
    stdout = sys.stdout
    if type(stdout) is not io.TextIOWrapper:  # a test, or a program that imports this one
        yield
        return
    errors = "backslashreplace" if stdout.errors == "strict" else stdout.errors
    sys.stdout = output = _Output(
        stdout.buffer, stdout.encoding, errors,
        line_buffering=stdout.line_buffering, write_through=stdout.write_through,
    )  # fmt: skip
    try:
        try:
            yield
        finally:
            output.flush()
    except OSError as error:
        if error is not output.error:
            raise
        _drop(output)
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has enough
            raise SystemExit(EXIT_INTERNAL) from None
        exit_with(f"standard output cannot be written ({reason_of(error)}).", EXIT_INTERNAL)
    finally:
        output.detach()
        sys.stdout = stdout


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
    """Print the library's warnings to standard error, one line each; hide other libraries'.

    Every command runs inside such a block. A block inside another one changes nothing.

    Args:
        quiet: Whether to print only errors.
    """
    from ltlearn.utils.progress import hide_progress, plain_lines

    log = logging.getLogger("ltlearn")
    if any(isinstance(handler, StderrHandler) for handler in log.handlers):
        yield
        return
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


def print_report(folder: Path, name: str) -> None:
    """Print where the report is: the page, and the same results as text.

    Args:
        folder: The run's folder.
        name: The name of both files without their endings.
    """
    for file in (folder / f"{name}.html", folder / f"{name}.md"):
        if file.is_file():
            print(f"report: {file}", file=sys.stderr)  # noqa: T201


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
    except KeyboardInterrupt as error:
        exit_interrupted(f"stopped{remedy}.", error)


def existing_run(path: Path):
    """Return the run in a folder; raise a `UserError` if there is none."""
    from ltlearn.utils.run_folder import Run

    if not path.is_dir():
        raise UserError(
            f"there is no run {path}; give a folder that `ltlearn recipe` or `ltlearn train` wrote."
        )
    return Run(path)
