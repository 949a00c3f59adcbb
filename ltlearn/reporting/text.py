"""Tables and lists as plain text and Markdown."""

import re
from collections.abc import Sequence

from ltlearn.utils.terminal import one_line
from ltlearn.utils.text import percent_text

__all__ = [
    "aligned_lines",
    "as_sentence",
    "markdown_list",
    "markdown_table",
    "mean_sd_text",
]


def as_sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def aligned_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows under headings as plain lines; all columns but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *rest in [head, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def markdown_table(head: Sequence[str], align: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows under headings as a Markdown table.

    Args:
        head: The headings.
        align: "---" (left) or "---:" (right) for each column.
        rows: The cells of each row.
    """
    cells = [[_harmless(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, align, *cells])


def markdown_list(lines: Sequence[str]) -> str:
    """Format lines as a Markdown list."""
    return "\n".join(f"- {_harmless(line)}" for line in lines)


def mean_sd_text(mean: float, sd: float | None) -> str:
    """Format a mean and its standard deviation in percent.

    Args:
        mean: A fraction.
        sd: A fraction; None for a single value.
    """
    return percent_text(mean) if sd is None else f"{percent_text(mean)} ± {percent_text(sd)}"


def _harmless(text: str) -> str:
    """Return a text in one line that opens no HTML tag and no link, whatever names it quotes."""
    # "<" before a letter would open a tag; "<20" stays unchanged.
    return re.sub("<(?=[A-Za-z/!?])", "&lt;", one_line(text)).replace("](", "]\\(")
