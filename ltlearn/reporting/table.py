"""`ResultTable`: the results of a run as text, Markdown and JSON."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from ltlearn.errors import UserError
from ltlearn.metrics.report import ShotReport, mean_and_sd
from ltlearn.metrics.shots import FEW_RULES, shot_thresholds_text
from ltlearn.reporting.text import DASH, markdown_list, markdown_table, percent_text
from ltlearn.utils.terminal import fitting_blocks, one_line, print_block

__all__ = ["PROTOCOLS", "ResultRow", "ResultTable"]

# What each protocol means: every table says it in these words.
_CARVED = "validation images carved from the training set"
PROTOCOLS = {
    "clean": f"clean: chosen on {_CARVED}; test read once",
    "paper": "paper: best epoch selected on test, flip-averaged logits",
    # What becomes of "clean" where the data has no test set.
    "untested": (
        "clean, but there is no test set: figures are of the validation images, which choices were "
        "made on, and so optimistic"
    ),
}
_LABEL = 12  # characters that a method's name gets at the least
# field of ShotReport -> heading; all in %
_COLUMNS = {
    "all": "all",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "balanced": "balanced",
    "ece": "ECE",
}


@dataclass
class ResultRow:
    """Hold what one method reached.

    Args:
        method: Its name in the method table, e.g. "samn".
        label: What to print, e.g. "CE + SAMN"; the method's name if empty.
        reports: One report per seed, at least one.
        selected: Which weights were tested, e.g. "last epoch" or "epoch 7 on validation".
        seconds: Training time, the mean over seeds; None if unknown.
        extra: More columns, heading to cell; the same headings in every row of a table.
    """

    method: str
    label: str
    reports: list[ShotReport]
    selected: str
    seconds: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class ResultTable:
    """Compare methods on one test set, and say under which protocol.

    Args:
        rows: One per method, in printing order.
        protocol: "clean", "paper", or "untested" where there is no test set.
        split_name: The name of the data split.
        fingerprint: Its fingerprint.
        few_rule: The few-shot convention, "<20" or "<=20".
        seeds: The seeds the rows were run with.
        dataset: The dataset's name.
        note: A remark to print below the table.
        valid_from: Where the validation images are from, as in `SplitInfo`.

    Raises:
        UserError: If `protocol` or `few_rule` is not allowed, a row has no report, or a row was
            evaluated with another few-shot convention.
    """

    rows: list[ResultRow]
    protocol: str
    split_name: str
    fingerprint: str
    few_rule: str
    seeds: Sequence[int]
    dataset: str
    note: str = ""
    valid_from: str = "training images"
    _values: list[dict] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        """Check the arguments and average each row once."""
        if self.protocol not in PROTOCOLS:
            allowed = " or ".join(f'"{name}"' for name in PROTOCOLS)
            raise UserError(f"`protocol` is {self.protocol!r}; it must be {allowed}.")
        if self.few_rule not in FEW_RULES:
            allowed = " or ".join(f'"{rule}"' for rule in FEW_RULES)
            raise UserError(f"`few_rule` is {self.few_rule!r}; it must be {allowed}.")
        for row in self.rows:
            if not row.reports:
                raise UserError(f"The row {_label(row)!r} has no report.")
            rule = row.reports[0].few_rule
            if rule != self.few_rule:
                raise UserError(
                    f"The row {_label(row)!r} was evaluated with few {rule} but the table says "
                    f"few {self.few_rule}."
                )
        self._values = [mean_and_sd(row.reports) for row in self.rows]

    def render(
        self,
        console_width: int | None = None,
        file: TextIO | None = None,
        plain: bool | None = None,
    ) -> None:
        """Write the table: boxes and colour on a terminal, aligned plain lines elsewhere.

        Args:
            console_width: Columns of the terminal; asked from it if None.
            file: Where to write; standard output if None.
            plain: Whether to write plain lines; if None, when file is not a terminal. A terminal
                too narrow for the numbers gets plain lines too.
        """
        file = sys.stdout if file is None else file
        encoding = getattr(file, "encoding", None) or "utf-8"
        text = self.to_text()
        encodable = _can_encode(text, encoding)
        if plain is None:
            plain = not (hasattr(file, "isatty") and file.isatty())
        if plain or not encodable or not self._render_rich(console_width, file):
            if not encodable:
                text = text.replace(DASH, "-").replace("±", "+-")
                text = text.encode(encoding, "replace").decode(encoding)
            file.write(text + "\n")

    def to_text(self) -> str:
        """Return the table as plain aligned lines, without a trailing newline."""
        head = ["method", *self._heads()]
        body = [[_label(row), *cells] for row, cells in zip(self.rows, self._cells(), strict=True)]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [self._title()]
        for line in [head, *body]:
            first = line[0].ljust(widths[0])
            rest = (cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))
            lines.append("  ".join([first, *rest]).rstrip())
        return "\n".join([*lines, *self._footer()])

    def to_markdown(self) -> str:
        """Return a Markdown table with its protocol lines, for report.md.

        It has two more columns than the terminal's: which weights were tested, and the time.
        """
        timed = any(row.seconds is not None for row in self.rows)
        more = self._heads()[len(_COLUMNS) :]
        head = ["method", *(f"{h} %" for h in _COLUMNS.values()), *more, "tested"]
        align = ["---", *["---:"] * (len(head) - 2), "---"]
        if timed:
            head.append("seconds")
            align.append("---:")
        lines = []
        for row, cells in zip(self.rows, self._cells(), strict=True):
            line = [_label(row), *cells, row.selected]
            if timed:
                line.append(DASH if row.seconds is None else _seconds(row.seconds))
            lines.append(line)
        about = [self._title(), *self._about()]
        return markdown_table(head, align, lines) + "\n\n" + markdown_list(about)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, as `json.dump` wants them."""
        rows = []
        for row, values in zip(self.rows, self._values, strict=True):
            summary = {
                name: None if value is None else {"mean": value[0], "sd": value[1]}
                for name, value in values.items()
            }
            rows.append(
                {
                    "method": row.method,
                    "label": _label(row),
                    "selected": row.selected,
                    "seconds": row.seconds,
                    "summary": summary,
                    "reports": [report.to_dict() for report in row.reports],
                }
            )
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "protocol_text": self.protocol_text,
            "split": self.split_name,
            "fingerprint": self.fingerprint,
            "few_rule": self.few_rule,
            "shots": shot_thresholds_text(self.few_rule),
            "seeds": [int(s) for s in self.seeds],
            "note": self.note,
            "rows": rows,
        }

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.to_text()

    @property
    def protocol_text(self) -> str:
        """Return what the protocol means, in the words of `PROTOCOLS`."""
        text = PROTOCOLS[self.protocol]
        return text if self._is_carved else text.replace(_CARVED, "the set's validation images")

    @property
    def _is_carved(self) -> bool:
        return self.valid_from == "training images"

    def _render_rich(self, width: int | None, file: TextIO) -> bool:
        """Write a rich table; return False, and write nothing, if a column does not fit."""
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file, width=width, highlight=False)
        heads = self._heads()
        lines = [[_label(row), *cells] for row, cells in zip(self.rows, self._cells(), strict=True)]
        numbers = [
            max(map(len, column)) for column in zip(heads, *(x[1:] for x in lines), strict=True)
        ]
        names = max([len("method"), *(len(line[0]) for line in lines)])
        # A name may be folded, a number may not.
        blocks = fitting_blocks([min(names, _LABEL), *numbers], console.width)
        if blocks is None:
            return False
        console.print(Text(self._title(), style="bold"))
        for block in blocks:
            print_block(console, ["method", *heads], lines, block, right=True)
        for line in self._footer():
            console.print(Text(line, style="dim"))
        return True

    def _cells(self) -> list[list[str]]:
        return [
            [*(_mean_sd(values[name]) for name in _COLUMNS), *row.extra.values()]
            for row, values in zip(self.rows, self._values, strict=True)
        ]

    def _heads(self) -> list[str]:
        return [*_COLUMNS.values(), *(self.rows[0].extra if self.rows else {})]

    def _title(self) -> str:
        plus_minus = ", mean ± standard deviation over seeds" if self._several_seeds() else ""
        where = "validation" if self.protocol == "untested" else "test"
        return f"{self.dataset}: {where} accuracy in %{plus_minus}"

    def _several_seeds(self) -> bool:
        return any(len(row.reports) > 1 for row in self.rows)

    def _about(self) -> list[str]:
        sizes = self.rows[0].reports[0].group_sizes if self.rows else None
        counts = {len(row.reports) for row in self.rows}
        seeds = ", ".join(str(s) for s in self.seeds)
        lines = [
            f"protocol: {self.protocol_text}",
            f"split: {self.split_name} ({self.fingerprint})",
            f"training images per class: {shot_thresholds_text(self.few_rule, sizes)}",
            f"{'seed' if len(self.seeds) == 1 else 'seeds'}: {seeds}",
        ]
        if len(counts) > 1:
            # A row with fewer runs than seeds must not pass for a mean over all of them.
            runs = ", ".join(f"{_label(row)} {len(row.reports)}" for row in self.rows)
            lines.append(f"runs: {runs}")
        if self.note:
            lines.append(self.note)
        return lines

    def _footer(self) -> list[str]:
        chosen: dict[str, list[str]] = {}
        for row in self.rows:
            chosen.setdefault(row.selected, []).append(_label(row))
        if len(chosen) == 1:
            tested = [f"tested: {next(iter(chosen))}"]
        else:
            tested = [f"tested: {which} ({', '.join(who)})" for which, who in chosen.items()]
        times = [
            f"{_label(row)} {_seconds(row.seconds)} s"
            for row in self.rows
            if row.seconds is not None
        ]
        return [*self._about(), *tested, *([f"time: {', '.join(times)}"] if times else [])]


def _label(row: ResultRow) -> str:
    return one_line(row.label or row.method)


def _mean_sd(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return DASH
    mean, sd = value
    return percent_text(mean) if sd is None else f"{percent_text(mean)} ± {percent_text(sd)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
