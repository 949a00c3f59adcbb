"""Convert names from files to printable text, and list classes for messages."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clean", "escape_markdown", "name_classes"]

_MAX_NAMED = 10


def clean(text: Any) -> str:
    r"""Replace control characters and undecodable bytes of a file name by escapes.

    Args:
        text: Anything `str` takes.

    Example:
        >>> print(clean("two\nlines"))
        two\nlines
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def escape_markdown(text: Any) -> str:
    """Return a text in one line in which Markdown reads no table border, link or emphasis.

    Args:
        text: Anything `str` takes.
    """
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for mark in "|*_`[]<>":
        text = text.replace(mark, "\\" + mark)
    return text


def name_classes(mask: "Tensor") -> str:
    """List the classes that a mask marks, at most ten of them, for a message.

    Args:
        mask: Marks the classes; (C,), bool.
    """
    classes = mask.nonzero().flatten().tolist()
    more = " ..." if len(classes) > _MAX_NAMED else ""
    return ", ".join(map(str, classes[:_MAX_NAMED])) + more
