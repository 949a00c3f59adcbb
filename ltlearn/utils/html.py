"""Tables for notebooks, as HTML. Everything that is passed in is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

from ltlearn.utils.text import clean

__all__ = ["html_code", "html_details", "html_paragraph", "html_table"]

# Notebooks style tables themselves. These keep numbers aligned, and long texts readable.
_RIGHT = ' style="text-align: right"'
_LEFT = ' style="text-align: left"'
_NUMBER = ' style="text-align: right; white-space: nowrap"'  # "31.0 ± 0.2" stays in one line


def html_table(
    head: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    bold: int | None = None,
    left: int = 1,
) -> str:
    """Return a table.

    Args:
        head: One heading per column; no headings if it is empty.
        rows: The cells of each row, anything `str` takes.
        caption: Printed above the table.
        bold: Number of a row in bold print, from 0; None for none.
        left: Number of columns at the left that hold texts. The others are aligned to the right.

    Example:
        >>> html_table(["class", "%"], [["a<b", 50.0]]).count("a&lt;b")
        1
    """
    parts = ['<table class="dataframe">']
    if caption:
        parts.append(
            '<caption style="caption-side: top; text-align: left; white-space: nowrap">'
            f"<b>{_text(caption)}</b></caption>"
        )
    if head:
        parts.append(f"<thead><tr>{_cells('th', head, left)}</tr></thead>")
    parts.append("<tbody>")
    for i, row in enumerate(rows):
        weight = ' style="font-weight: bold"' if i == bold else ""
        parts.append(f"<tr{weight}>{_cells('td', row, left)}</tr>")
    return "".join([*parts, "</tbody></table>"])


def html_paragraph(*lines: Any) -> str:
    """Return a paragraph in small print, a line each.

    Args:
        *lines: The lines, anything `str` takes.
    """
    return f'<p style="font-size: smaller">{"<br>".join(map(_text, lines))}</p>'


def html_code(code: Any) -> str:
    """Return code with its line breaks and spaces.

    Args:
        code: The code.
    """
    return f"<pre>{escape(str(code))}</pre>"


def html_details(summary: Any, content: str) -> str:
    """Return content that unfolds at a click.

    Args:
        summary: The text that is always visible.
        content: The HTML that unfolds.
    """
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _cells(tag: str, cells: Sequence[Any], left: int) -> str:
    right = _NUMBER if tag == "td" else _RIGHT
    return "".join(
        f"<{tag}{_LEFT if i < left else right}>{_text(cell)}</{tag}>"
        for i, cell in enumerate(cells)
    )


def _text(value: Any) -> str:
    return "<br>".join(escape(clean(line)) for line in str(value).split("\n"))
