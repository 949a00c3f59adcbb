"""The one table of methods, which the command line, the recipes and the tests read."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from ltlearn.errors import UserError

__all__ = ["METHODS", "Method", "find_method"]


def _samn() -> list:
    from ltlearn.callbacks import SAMN

    return [SAMN()]


@dataclass(frozen=True)
class Method:
    """A way to get from a finished stage 1 to a classifier.

    Args:
        label: What a table prints.
        stage: 1: the classifier of stage 1 as it is. 2: a classifier retrained on the frozen
            backbone.
        source: Where the method and its values are from.
        callbacks: Makes the callbacks of stage 2.
        sampler: Sampler of stage 2.
        reset: Whether stage 2 begins with a new classifier.
    """

    label: str
    stage: int
    source: str
    callbacks: Callable[[], list] = field(default=list)
    sampler: str = "instance"
    reset: bool = False


METHODS = {
    "ce": Method("CE", 1, "cross-entropy, the classifier of stage 1"),
    "samn": Method("CE + SAMN", 2, "Zhang, Li, Zhu, CVPR 2026, arXiv:2606.02526", callbacks=_samn),
}


def find_method(name: str) -> Method:
    """Return the method of that name; an unknown one is a `UserError` that suggests close names."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there is {', '.join(METHODS)}."
        raise UserError(f"there is no method {name!r}; {hint}")
    return METHODS[name]
