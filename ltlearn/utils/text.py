"""Convert names from files to printable text."""

from typing import Any

__all__ = ["clean"]


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
