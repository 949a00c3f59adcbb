"""Names that come from files, as text that can be shown."""

from typing import Any

__all__ = ["clean"]


def clean(text: Any) -> str:
    """Write control characters and undecodable bytes of a file name as escapes."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
