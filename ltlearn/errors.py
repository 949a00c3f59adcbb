"""The one exception type that stands for a user's mistake."""

__all__ = ["UserError"]


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
