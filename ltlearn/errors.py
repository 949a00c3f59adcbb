"""User errors, the checks that raise them, and how messages spell a parameter."""

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Integral, Real

__all__ = [
    "Spelling",
    "UserError",
    "check_choice",
    "check_number",
    "check_whole",
    "log_once",
    "mute_log",
    "spell",
    "spell_call",
    "spelled_by",
]


class UserError(ValueError):
    """A mistake that the user can correct: one sentence with the fault, its place and the remedy.

    The command line prints the sentence and exits with 2. The text is kept apart from `args`,
    because fastai rewrites `args` of any exception that leaves a callback.

    Args:
        message: The sentence.

    Example:
        >>> raise UserError("epochs must be a whole number of at least 0, got -1.")
        Traceback (most recent call last):
        ltlearn.errors.UserError: epochs must be a whole number of at least 0, got -1.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self):
        return type(self), (self.message,)


class Spelling:
    """How messages spell a parameter and a call: here as Python does.

    The command line has a spelling of its own, with its flags and commands. So no module below
    the command line knows a flag.
    """

    def parameter(self, name: str, value: object = None) -> str:
        """Spell a parameter, or a parameter with a value.

        Args:
            name: The parameter, such as "skip_bad", or a recipe key, such as "stage1.lr".
            value: Its value. None spells the name alone.
        """
        return name if value is None else f"{name}={value!r}"

    def call(self, name: str, /, **arguments: object) -> str:
        """Spell a call of a public function.

        Args:
            name: The function.
            **arguments: Its arguments by name.
        """
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"


# One for the whole process, because threads that read images build messages too.
_spelling = Spelling()


def spell(name: str, value: object = None) -> str:
    """Spell a parameter for a message: `skip_bad=True` in Python, a flag on the command line.

    Args:
        name: The parameter, such as "skip_bad", or a recipe key, such as "stage1.lr".
        value: Its value. None spells the name alone.

    Example:
        >>> spell("skip_bad", True)
        'skip_bad=True'
    """
    return _spelling.parameter(name, value)


def spell_call(name: str, /, **arguments: object) -> str:
    """Spell a call of a public function for a message; a command on the command line.

    Args:
        name: The function.
        **arguments: Its arguments by name.

    Example:
        >>> spell_call("check_benchmark", name="inat2018", root="/data")
        "check_benchmark(name='inat2018', root='/data')"
    """
    return _spelling.call(name, **arguments)


@contextmanager
def spelled_by(spelling: Spelling) -> Iterator[None]:
    """Use another spelling inside the block, in all threads of the process.

    Args:
        spelling: The spelling.
    """
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise a `UserError` unless the value of the parameter `name` is among those allowed.

    Args:
        name: The parameter.
        value: Its value.
        allowed: The values that it may have.
    """
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise a `UserError` unless the value of `name` is a whole number of at least `least`.

    Args:
        name: The parameter.
        value: Its value.
        least: The smallest value allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def check_number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise a `UserError` unless the value of `name` is a finite number in a range.

    Args:
        name: The parameter.
        value: Its value.
        least: The lower limit.
        most: The upper limit.
        above: Whether the lower limit itself is excluded.
        below: Whether the upper limit itself is excluded.

    Raises:
        UserError: If the value is no number, not finite, or outside the range.
    """
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if good:
        good = (value > least if above else value >= least) and (
            value < most if below else value <= most
        )
    if not good:
        limits = []
        if least > -math.inf:
            limits.append(f"above {least:g}" if above else f"of at least {least:g}")
        if most < math.inf:
            limits.append(f"below {most:g}" if below else f"of at most {most:g}")
        where = f" {' and '.join(limits)}" if limits else ""
        raise UserError(f"{name} must be a finite number{where}, got {value!r}.")


@contextmanager
def mute_log() -> Iterator[None]:
    """Suppress the library's log records inside the block."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("ltlearn")
    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


@contextmanager
def log_once() -> Iterator[None]:
    """Pass each distinct message of the library's log once inside the block.

    A warning about the data holds for every method and seed, so once is enough.
    """
    log, seen = logging.getLogger("ltlearn"), set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in seen
        seen.add(text)
        return is_new

    log.addFilter(new)
    try:
        yield
    finally:
        log.removeFilter(new)
