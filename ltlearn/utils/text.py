"""Names from files and lists of classes, as text for messages and plots."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clean", "name_classes"]

_MAX_NAMED = 10


def clean(text: Any) -> str:
    """Write control characters and undecodable bytes of a file name as escapes."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def name_classes(mask: "Tensor") -> str:
    """List the classes that a mask marks, at most ten of them, for a message.

    Args:
        mask: Marks the classes; (C,), bool.
    """
    classes = mask.nonzero().flatten().tolist()
    more = " ..." if len(classes) > _MAX_NAMED else ""
    return ", ".join(map(str, classes[:_MAX_NAMED])) + more
