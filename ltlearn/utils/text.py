"""Numbers, class names and values from files as short printable text."""

import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DASH",
    "clean",
    "epochs_text",
    "escape_markdown",
    "name_classes",
    "percent_text",
    "short_repr",
    "validation_reason",
]

DASH = "–"
_MAX_NAMED = 10
_MAX_REPR = 300
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 20


def clean(text: Any, keep: str = "") -> str:
    r"""Replace control characters and undecodable bytes of a file name by escapes.

    Args:
        text: Anything `str` takes.
        keep: Characters to leave unchanged.

    Example:
        >>> print(clean("two\nlines"))
        two\nlines
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def escape_markdown(text: Any) -> str:
    """Return a text in one line in which Markdown reads no table border, link or emphasis.

    Args:
        text: Anything `str` takes.
    """
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for mark in "|*_`[]<>":
        text = text.replace(mark, "\\" + mark)
    return text


def percent_text(value: float | None) -> str:
    """Format a fraction in percent; a dash for None."""
    return DASH if value is None else f"{100 * value:.1f}"


def epochs_text(count: int) -> str:
    """Return a number of epochs in words: "1 epoch", "20 epochs"."""
    return "1 epoch" if count == 1 else f"{count} epochs"


def name_classes(mask: "Tensor") -> str:
    """List the classes that a mask marks, at most ten of them, for a message.

    Args:
        mask: Marks the classes; (C,), bool.
    """
    classes = mask.nonzero().flatten().tolist()
    more = " ..." if len(classes) > _MAX_NAMED else ""
    return ", ".join(map(str, classes[:_MAX_NAMED])) + more


def short_repr(value: Any) -> str:
    """Return `repr` of a value from a file, cut where it is long or nested, for a message.

    Args:
        value: Any value.
    """
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else "a value"
    return text if len(text) <= _MAX_REPR else f"{text[:_MAX_REPR]}..."


def validation_reason(error: Mapping[str, Any]) -> str:
    """Return why pydantic refuses a value, as the end of a sentence.

    Args:
        error: One of the errors of a `pydantic.ValidationError`.

    Example:
        >>> validation_reason({"msg": "Input should be greater than 0"})
        'it must be greater than 0'
    """
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    return message.replace("Input should", "it must", 1)
