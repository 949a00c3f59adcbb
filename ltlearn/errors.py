"""The one exception type that stands for a user's mistake, and the commonest checks for one."""

from collections.abc import Collection
from numbers import Integral

__all__ = ["UserError", "check_choice", "check_whole"]


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
