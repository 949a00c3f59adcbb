"""Tables for a terminal of any width and for a pipe. Nothing here imports torch."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ltlearn.utils.text import clean

__all__ = [
    "render_rows",
    "fitting_blocks",
    "print_block",
    "render_stages",
    "render_recipes",
    "one_line",
]

# Characters of a table's frame at its sides and between two columns.
_EDGES, _BETWEEN = 2, 3
_PROSE = 40  # the least width of a column of sentences, in characters


def render_rows(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    file: TextIO | None = None,
    title: str = "",
    turn: bool = False,
) -> None:
    """Write a table: formatted on a terminal, tab-separated lines elsewhere.

    If the terminal is too narrow, the columns are split into several tables that repeat the first
    column. A row of long sentences becomes a paragraph instead.

    Args:
        head: One heading per column. The first column names the row.
        rows: The cells, anything `str` takes.
        file: Where to write; standard output if None.
        title: Printed above the table.
        turn: Whether a table that is too wide gets a column per row and a row per heading; where
            that is too wide, too, each row becomes a paragraph.

    Example:
        >>> render_rows(["key", "value"], [["device", "cpu"]])
        key     value
        device  cpu
    """
    file = sys.stdout if file is None else file
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not (hasattr(file, "isatty") and file.isatty()):
        lines = [title] if title else []
        lines += ["\t".join(row) for row in [list(head), *cells]]
        file.write("\n".join(lines) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False)
    blocks = _blocks(head, cells, console.width)
    if turn and cells and (blocks is None or len(blocks) > 1):
        turned_head, *turned = zip(head, *cells, strict=True)
        blocks = _blocks(turned_head, turned, console.width)
        if blocks is not None and len(blocks) == 1:
            head, cells = turned_head, turned
        else:
            blocks = None
    if title:
        console.print(Text(title, style="bold"))
    if blocks is None:
        for row in cells:
            _print_record(console, head, row)
        return
    for block in blocks:
        print_block(console, head, cells, block)


def _blocks(
    head: Sequence[str], cells: Sequence[Sequence[str]], width: int
) -> list[list[int]] | None:
    """Return the columns of each table; None if the rows must become paragraphs."""
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    blocks = fitting_blocks([min(w, _PROSE) for w in widths], width)
    if max(widths, default=0) > _PROSE and blocks is not None and len(blocks) > 1:
        return None
    return blocks


def fitting_blocks(widths: Sequence[int], room: int) -> list[list[int]] | None:
    """Split columns into groups that fit the terminal, repeating column 0 in each.

    Args:
        widths: Width of each column, in characters.
        room: Width of the terminal.

    Returns:
        The numbers of the columns in each group; None if a column does not fit beside column 0.
    """
    blocks: list[list[int]] = [[0]]
    left = room - widths[0] - _EDGES
    for i, width in enumerate(widths[1:], start=1):
        if left < width + _BETWEEN and len(blocks[-1]) > 1:
            blocks.append([0])
            left = room - widths[0] - _EDGES
        if left < width + _BETWEEN:
            return None
        blocks[-1].append(i)
        left -= width + _BETWEEN
    return blocks


def print_block(
    console, head: Sequence[str], lines: Sequence[Sequence[str]], block: Sequence[int],
    right: bool = False,
) -> None:  # fmt: skip
    """Print some columns of a table.

    Args:
        console: The rich console.
        head: The headings of all columns.
        lines: The cells of each row.
        block: The numbers of the columns to print.
        right: Whether all columns except the first hold numbers, which are never folded.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i in block:
        if right and i:
            table.add_column(head[i], justify="right", no_wrap=True)
        else:
            table.add_column(head[i], overflow="fold")
    for line in lines:
        # rich would read a str such as "[x]" as markup.
        table.add_row(*(Text(line[i]) for i in block))
    console.print(table)


def _print_record(console, head: Sequence[str], row: Sequence[str]) -> None:
    """Print a row as a paragraph."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(row[0], style="bold"))
    text = Text()
    for heading, cell in zip(head[1:], row[1:], strict=True):
        if cell:
            text.append("; " if text else "").append(f"{heading}: ", style="dim").append(cell)
    console.print(Padding(text, (0, 0, 0, 2)))


def render_stages(stages: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Write how each stage was trained. Seeds with equal stages share a row.

    Args:
        stages: The "stages" of the manifest.
        file: Where to write; standard output if None.
    """
    keys = ("method", "stage", "trained", "bn", "on", "batch", "sampler", "loss", "epochs", "lr")
    keys += ("weight_decay",)
    # A correction trains nothing, and neither does stage 1 where a given model is kept.
    trained = [
        stage
        for stage in stages
        if stage.get("stage") != "post hoc"
        and (stage.get("stage"), stage.get("epochs")) != ("stage 1", 0)
    ]
    rows = list(dict.fromkeys(tuple(str(stage.get(key, "")) for key in keys) for stage in trained))
    head = ["wd" if key == "weight_decay" else key for key in keys]
    render_rows(head, rows, file, "what was trained", turn=True)


def render_recipes(
    recipes: Sequence[Any], measured: Sequence[Any] = (), file: TextIO | None = None
) -> None:
    """Write the list of recipes with methods, published and measured figures, and status.

    Args:
        recipes: `Recipe` objects.
        measured: `MeasuredResult` objects.
        file: Where to write; standard output if None.
    """
    rows: dict[bool, list[tuple[str, ...]]] = {False: [], True: []}
    for recipe in recipes:
        expected = "; ".join(f"{e.describe(e.method)} ({e.protocol})" for e in recipe.published())
        ours = "; ".join(r.describe() for r in measured if r.recipe == recipe.name)
        rows[recipe.is_pretrained].append(
            (
                recipe.name,
                recipe.title,
                ", ".join(recipe.methods),
                expected or "none",
                ours or "none",
                recipe.status,
            )
        )
    head = ("recipe", "title", "methods", "published top-1 in %", "measured here", "status")
    # Accuracies of the two do not compare, so they never share a table.
    render_rows(head, rows[False], file, title="Trained from random weights")
    if rows[True]:
        render_rows(head, rows[True], file, title="Trained from pre-trained weights")


def one_line(text: Any) -> str:
    """Return a text without line breaks, double spaces and control characters.

    Names from files could otherwise move the cursor, or clear the screen.

    Args:
        text: Anything `str` takes.
    """
    return clean(" ".join(str(text).split()))
