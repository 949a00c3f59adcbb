"""Text formatting of an inspection."""

import re
from collections.abc import Sequence

from ltlearn.utils.text import clean as _clean

__all__ = [
    "PART_LABELS",
    "MAX_NAMED",
    "TEXT_WIDTH",
    "break_line",
    "name_some",
    "more_line",
    "size_text",
    "share_text",
    "escape_markdown",
]

PART_LABELS = {"train": "training", "valid": "validation", "test": "test"}
MAX_NAMED = 5  # of a list of classes or files, as many are printed; `to_dict` has all
TEXT_WIDTH = 80


def break_line(command: str) -> list[str]:
    """Break a command before options where it is too long for a line."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > TEXT_WIDTH:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def name_some(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    shown = ", ".join(_clean(name) for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return shown + more


def more_line(n: int, shown: int = MAX_NAMED) -> list[str]:
    """Return a line that counts what is not shown, if anything."""
    return [f"  and {n - shown:,} more"] if n > shown else []


def size_text(size: Sequence[int]) -> str:
    """Format a width and a height."""
    return f"{size[0]:,} x {size[1]:,}"


def share_text(n: int, total: int) -> str:
    """Format a share in percent."""
    share = 100 * n / max(total, 1)
    return f"{share:.1f} %" if share >= 0.05 or not n else "<0.1 %"


def escape_markdown(text: str) -> str:
    """Keep Markdown from reading a name as a table border, a link or an emphasis."""
    text = text.replace("\\", "\\\\")
    for mark in "|*_`[]<>":
        text = text.replace(mark, "\\" + mark)
    return text
