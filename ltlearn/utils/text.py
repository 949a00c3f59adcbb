"""Convert names from files to printable text."""

from typing import Any

__all__ = ["clean", "escape_markdown"]


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
