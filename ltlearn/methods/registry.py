"""The registry of methods: built-in rows, registered rows and rows of installed packages."""

import difflib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from ltlearn.errors import UserError
from ltlearn.methods.base import Method
from ltlearn.methods.table import BUILT_IN
from ltlearn.names import DEFAULT_STAGE1, DEFAULT_STAGE2, DEFAULT_WITH_RESET

__all__ = [
    "DEFAULT_STAGE1",
    "ENTRY_POINT_GROUP",
    "METHODS",
    "MethodRegistry",
    "find_method",
    "find_methods",
    "is_built_in",
    "prior_of",
    "register_method",
    "registered_method",
    "stage1_methods",
    "unregister_method",
]

_log = logging.getLogger("ltlearn")
ENTRY_POINT_GROUP = "ltlearn.methods"


class MethodRegistry(Mapping):
    """All methods by name: the built-in rows, then those registered, in their order.

    The first look-up loads the methods of installed packages: each entry point of the group
    "ltlearn.methods" has the method's name and loads to a `Method`.
    """

    def __init__(self):
        self._rows: dict[str, Method] = dict(BUILT_IN)
        self._loaded = False

    def __getitem__(self, name: str) -> Method:
        self._load_packages()
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        self._load_packages()
        return iter(list(self._rows))

    def __len__(self) -> int:
        self._load_packages()
        return len(self._rows)

    def __repr__(self) -> str:
        return f"MethodRegistry({', '.join(self)})"

    def add(self, name: str, method: Method, replace: bool = False) -> None:
        """Add a row after checking it.

        Args:
            name: The method's name.
            method: The row.
            replace: Whether the name may be taken already.

        Raises:
            UserError: If the row is no `Method`, or the name is not allowed or taken.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(
                "the name of a method must consist of small letters, digits and underscores and "
                f"begin with a letter, got {name!r}."
            )
        if not isinstance(method, Method):
            raise UserError(f"the method {name} must be a Method, got {method!r}.")
        if name in self and not replace:
            raise UserError(
                f"there is a method {name!r} already; take another name, or pass replace=True."
            )
        for other, row in self.items():
            # Tables and plots show only the label.
            if other != name and row.label == method.label:
                raise UserError(
                    f"the method {other} has the label {row.label!r} already; give {name} another."
                )
        for field, kind in (("post", "post hoc"), ("after", "stage 1")):
            needed = getattr(method, field)
            if needed is not None and (needed not in self or self[needed].kind != kind):
                raise UserError(
                    f"{field} of the method {name} must name a method of the kind {kind!r}, got "
                    f"{needed!r}."
                )
        self._rows[name] = method

    def remove(self, name: str) -> None:
        """Remove a row; a built-in row that was replaced comes back.

        Args:
            name: The method's name.

        Raises:
            UserError: If the name is unknown, or the row is built in.
        """
        row = find_method(name)
        if BUILT_IN.get(name) is row:
            raise UserError(f"the method {name} is built in and cannot be removed.")
        if name in BUILT_IN:
            self._rows[name] = BUILT_IN[name]
        else:
            del self._rows[name]

    def _load_packages(self) -> None:
        if self._loaded:
            return
        # Set before loading, because a package may look up methods while it is loaded.
        self._loaded = True
        rows = []
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            try:
                rows.append((entry, entry.load()))
            except Exception as e:  # a broken package must not break the others
                _warn_left_out(entry, e)
        # A row may name others of its package, in any order: stage 2 names post-hoc methods, and
        # both name methods of stage 1.
        rows.sort(key=lambda pair: [_is_given(pair[1], field) for field in ("post", "after")])
        for entry, method in rows:
            try:
                if self._rows.get(entry.name) is not method:
                    self.add(entry.name, method)
            except UserError as e:
                _warn_left_out(entry, e)


def _is_given(method: object, field: str) -> bool:
    return getattr(method, field, None) is not None


def _warn_left_out(entry: EntryPoint, error: Exception) -> None:
    package = entry.dist.name if entry.dist is not None else entry.value
    _log.warning(
        "the method %s of the package %s cannot be loaded and is left out: %s; update or remove "
        "the package",
        entry.name, package, str(error).rstrip("."),
    )  # fmt: skip


METHODS = MethodRegistry()


def register_method(name: str, method: Method, *, replace: bool = False) -> None:
    """Register a method, so that everything that takes a method's name takes this one.

    Args:
        name: The method's name: small letters, digits and underscores.
        method: The row.
        replace: Whether to replace a method of that name.

    Raises:
        UserError: If the row is no `Method`, or the name or the label is taken.

    Example:
        >>> register_method("mine", Method("mine", "stage 2", "me, 2026", "own", loss=MyLoss))
        >>> learn.retrain_classifier(method="mine")
    """
    METHODS.add(name, method, replace)


def unregister_method(name: str) -> None:
    """Remove a registered method; a built-in method that was replaced comes back.

    Args:
        name: The method's name.

    Raises:
        UserError: If the name is unknown, or the method is built in.
    """
    METHODS.remove(name)


@contextmanager
def registered_method(name: str, method: Method, *, replace: bool = False) -> Iterator[Method]:
    """Register a method inside the block.

    Args:
        name: The method's name.
        method: The row.
        replace: Whether to replace a method of that name.
    """
    before = METHODS.get(name)
    register_method(name, method, replace=replace)
    try:
        yield method
    finally:
        unregister_method(name)
        if before is not None and METHODS.get(name) is not before:
            register_method(name, before, replace=True)


def is_built_in(name: str | None) -> bool:
    """Return whether the row of a name is the library's own.

    Args:
        name: A method's name.
    """
    return name in BUILT_IN and METHODS[name] is BUILT_IN[name]


def find_method(name: str) -> Method:
    """Return the method of a name.

    Args:
        name: The method's name.

    Raises:
        UserError: If the name is unknown; the message suggests close names.
    """
    if isinstance(name, Method):
        raise UserError(
            f"the name of a method is needed here, got the row {name.label!r}; register_method "
            "gives it one."
        )
    if not isinstance(name, str):
        if inspect.isroutine(name):
            raise UserError(
                f"a function among the methods needs a name: give the pair ('mine', function), got "
                f"{name.__name__!r} alone."
            )
        raise UserError(
            f"a method must be a name, such as 'samn', or a Method, got {name!r}; "
            "callbacks belong in cbs and losses in loss."
        )
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=3)
        names = ", ".join(close or METHODS)
        hint = f"did you mean {names}?" if close else f"choose from {names}."
        raise UserError(f"there is no method {name!r}; {hint}")
    return METHODS[name]


def stage1_methods() -> tuple[str, ...]:
    """Return the names of the methods of stage 1."""
    return tuple(name for name, method in METHODS.items() if method.kind == "stage 1")


def usual_stage2(stage1: str) -> str:
    """Return the method that follows a stage 1 if the user names none.

    Args:
        stage1: The method of stage 1, by name.

    Raises:
        UserError: If the name is unknown.
    """
    fits = METHODS[DEFAULT_STAGE2].fits(find_method(stage1))
    return DEFAULT_STAGE2 if fits else DEFAULT_WITH_RESET


def find_methods(names, stage1: str | None = None) -> list[str]:
    """Return the methods of a list of names, or of a string with commas, each once.

    Args:
        names: The names. None: all methods that go with the stage 1.
        stage1: The method of stage 1, by name. None: any.

    Raises:
        UserError: If a name is unknown, or its method belongs to another stage 1.
    """
    if names is None:
        return [name for name in METHODS if stage1 is None or _goes_with(name, stage1)]
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"give at least one method: {', '.join(METHODS)}.")
    for name in names:
        find_method(name)
        if stage1 is None or _goes_with(name, stage1):
            continue
        needed, label = _stage1_of(name), METHODS[stage1].label
        if needed == name:
            raise UserError(
                f"{name} is a method of stage 1, and stage 1 is trained with {stage1}; leave it "
                f"out here, or train stage 1 with {name}."
            )
        if needed not in (None, stage1):
            raise UserError(
                f"the method {name} needs a stage 1 of {METHODS[needed].label}, and this one is "
                f"{label}; leave it out, or train stage 1 with {needed}."
            )
        others = [other for other in find_methods(None, stage1) if other != stage1]
        raise UserError(
            f"the method {name} needs {_classifier(name)}, and {label} leaves "
            f"{_classifier(stage1)}; choose from {', '.join(others)}."
        )
    return names


def prior_of(name: str, stage1: str = DEFAULT_STAGE1) -> str:
    """Return the class prior that a method's logits assume: "train" or "uniform".

    Args:
        name: The method.
        stage1: The method of the stage 1 before it.
    """
    prior = find_method(name).prior
    return METHODS[stage1].prior if prior == "stage 1" else prior


def _classifier(name: str) -> str:
    head = METHODS[name].head
    return "a classifier of several experts" if head == "experts" else f"a {head} classifier"


def _goes_with(name: str, stage1: str) -> bool:
    needed = _stage1_of(name)
    return needed == stage1 or (needed is None and METHODS[name].fits(METHODS[stage1]))


def _stage1_of(name: str) -> str | None:
    """Return the stage-1 method that a method needs; None: any."""
    return name if METHODS[name].kind == "stage 1" else METHODS[name].after
