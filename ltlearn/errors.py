"""What a user is told: the one exception type of a mistake, its commonest checks, warnings once."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Integral

__all__ = ["UserError", "check_choice", "check_whole", "said_once", "unsaid"]


class UserError(ValueError):
    """A mistake the user can mend: one sentence that says what was wrong, where, and what to do.

    The command line prints the sentence and exits with 2. The text is kept apart from `args`,
    because fastai rewrites `args` of any exception that leaves a callback.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self):
        return type(self), (self.message,)


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise a `UserError` unless the value of the parameter `name` is among those allowed."""
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise a `UserError` unless the value of `name` is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}.")


@contextmanager
def unsaid() -> Iterator[None]:
    """Inside the block, let no message of the library's log through: they will be said later."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("ltlearn")
    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


@contextmanager
def said_once() -> Iterator[None]:
    """Inside the block, let a message of the library's log through once.

    What is odd about the data is so for every method and seed.
    """
    log, seen = logging.getLogger("ltlearn"), set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        found = text not in seen
        seen.add(text)
        return found

    log.addFilter(new)
    try:
        yield
    finally:
        log.removeFilter(new)
