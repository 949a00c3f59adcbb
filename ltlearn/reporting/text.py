"""Markdown and number formatting of reports."""

import re
from collections.abc import Sequence

from ltlearn.utils.terminal import one_line

__all__ = ["DASH", "percent_text", "as_sentence", "markdown_table", "markdown_list"]

DASH = "–"


def percent_text(value: float | None) -> str:
    """Format a share in percent."""
    return DASH if value is None else f"{100 * value:.1f}"


def as_sentence(text: str) -> str:
    """Return a text with a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def markdown_table(head: list[str], align: list[str], lines: list[list[str]]) -> str:
    """Format rows as a Markdown table."""
    rows = [head, align, *([_escape_cell(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escape_cell(cell: str) -> str:
    return one_line(cell).replace("|", "\\|")


def markdown_list(lines: Sequence[str]) -> str:
    """Format lines as a Markdown list."""
    # "<" before a letter would open an HTML tag; "<20" stays as it is.
    return "\n".join(f"- {re.sub('<(?=[A-Za-z/!?])', '&lt;', one_line(line))}" for line in lines)
