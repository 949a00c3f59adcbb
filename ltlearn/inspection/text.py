"""Format numbers, names and commands of an inspection."""

import re
from collections.abc import Sequence

from ltlearn.utils.text import clean

__all__ = [
    "MAX_NAMED",
    "TEXT_WIDTH",
    "break_line",
    "more_line",
    "name_some",
    "share_text",
    "size_text",
]

MAX_NAMED = 5  # classes or files that are printed; `to_dict` has all of them
TEXT_WIDTH = 80


def break_line(command: str) -> list[str]:
    """Break a long command before its options.

    Args:
        command: The command.

    Returns:
        Lines that a shell reads as one command.
    """
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > TEXT_WIDTH:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def name_some(names: Sequence[str]) -> str:
    """Return the first few names and the number of the others.

    Args:
        names: All names.
    """
    shown = ", ".join(clean(name) for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return shown + more


def more_line(n: int, shown: int = MAX_NAMED) -> list[str]:
    """Return a line with the number of entries that are not shown, or no line.

    Args:
        n: Number of all entries.
        shown: Number of entries that are shown.
    """
    return [f"  and {n - shown:,} more"] if n > shown else []


def size_text(size: Sequence[int]) -> str:
    """Format a width and a height."""
    return f"{size[0]:,} x {size[1]:,}"


def share_text(n: int, total: int) -> str:
    """Format a share in percent."""
    share = 100 * n / max(total, 1)
    return f"{share:.1f} %" if share >= 0.05 or not n else "<0.1 %"
