"""Candidates of a comparison: registered methods, rows that are not registered, and functions."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ltlearn.errors import UserError
from ltlearn.methods.base import Method
from ltlearn.methods.registry import METHODS, find_method, find_methods, registered_method

__all__ = ["Candidate", "as_registered", "offered"]


@dataclass(frozen=True)
class Candidate:
    """A method in a comparison.

    Args:
        name: The method's name, which is registered while the comparison runs.
        call: A function of the user's that changes the classifier of the learner it gets. None: the
            row of the method describes what to do.
    """

    name: str
    call: Callable | None = None

    @property
    def draws(self) -> bool:
        """Return whether the outcome depends on the seed."""
        if self.call is None:
            return METHODS[self.name].draws
        return "seed" in inspect.signature(self.call).parameters

    def run(self, learn: Any, seed: int) -> None:
        """Call the function of the user's.

        Args:
            learn: The learner.
            seed: The seed, for a function with a parameter of this name.
        """
        self.call(learn, **({"seed": seed} if self.draws else {}))


@contextmanager
def as_registered(method: Any) -> Iterator[Any]:
    """Yield the name of a method. A row that is not registered has one inside the block.

    Args:
        method: A `Method`, or a name (or None), which is yielded as it is.

    Raises:
        UserError: If name or label of the row belong to another method.
    """
    if not isinstance(method, Method):
        yield method
        return
    with offered([method]) as (candidate,):
        yield candidate.name


@contextmanager
def offered(methods: Any, stage1: str | None = None) -> Iterator[list[Candidate]]:
    """Yield the candidates of a comparison. Rows of the user's are registered inside the block.

    Args:
        methods: Names as a list or with commas between them; a list may also hold a `Method`, a
            pair of a name and a `Method`, and a pair of a name and a function of the learner. None
            takes all methods that go with the stage 1.
        stage1: The method of stage 1, by name. None: any.

    Raises:
        UserError: If a name is unknown or taken, or a method belongs to another stage 1.
    """
    if methods is None or isinstance(methods, str):
        yield [Candidate(name) for name in find_methods(methods, stage1)]
        return
    entries = [methods] if isinstance(methods, Method) or _is_pair(methods) else methods
    if not isinstance(entries, Sequence):
        raise UserError(f"methods must be a list, or names with commas, got {methods!r}.")
    with ExitStack() as brief:
        candidates = [_offer(brief, entry) for entry in entries]
        by_name = {candidate.name: candidate for candidate in candidates}
        yield [by_name[name] for name in find_methods([c.name for c in candidates], stage1)]


def _is_pair(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and not isinstance(entry[1], str)
    )


def _offer(brief: ExitStack, entry: Any) -> Candidate:
    """Return a candidate; register its row if it is the user's own."""
    if isinstance(entry, Method):
        for name, row in METHODS.items():
            if row is entry:
                return Candidate(name)
        label, what = entry.label, entry
    elif _is_pair(entry):
        label, what = entry
    else:
        find_method(entry)
        return Candidate(entry)
    name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    if name in METHODS or not name or not name[0].isalpha():
        raise UserError(
            f"the method {label!r} of your own needs another name: letters first, and not the name "
            'of a registered method. Give the pair ("my_name", method).'
        )
    if isinstance(what, Method):
        # Tables show labels, so two rows must not share one.
        taken = any(row.label == what.label for row in METHODS.values())
        row, call = replace(what, label=label) if taken else what, None
    elif callable(what):
        row, call = Method(label, "stage 2", "a function of the user's", "own", head="any"), what
    else:
        raise UserError(
            f"the method {label!r} must be a Method, or a function that takes the learner, got "
            f"{what!r}."
        )
    brief.enter_context(registered_method(name, row))
    return Candidate(name, call)
