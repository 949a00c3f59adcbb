"""`ResultTable`: the results of a run as plain text, Markdown and JSON."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from ltlearn.errors import UserError, check_choice
from ltlearn.metrics.report import ShotReport, mean_and_sd, mean_and_sd_of
from ltlearn.metrics.shots import shot_thresholds_text
from ltlearn.names import FEW_RULES, SHOTS, tested_images
from ltlearn.reporting.scores import ScoreTable, group_score_table
from ltlearn.reporting.text import (
    aligned_lines,
    markdown_list,
    markdown_table,
    mean_sd_text,
)
from ltlearn.utils.html import html_paragraph, html_table
from ltlearn.utils.terminal import fitting_blocks, one_line, print_block
from ltlearn.utils.text import DASH, clean

__all__ = ["LAST_EPOCH", "PROTOCOL_TEXTS", "ResultRow", "ResultTable"]

_CARVED = "validation images carved from the training set"
_FLIPS = ", flip-averaged logits"
# The description of each protocol, which stands below every table.
PROTOCOL_TEXTS = {
    "clean": f"clean: chosen on {_CARVED}; test read once",
    "paper": f"paper: best epoch selected on test{_FLIPS}",
    # The clean protocol on data without a test set.
    "untested": (
        "clean, but there is no test set: the figures are measured on the validation images, on "
        "which the choices were made, so they are optimistic"
    ),
}
# The name of the accuracy after the last epoch, in `ResultTable.to_dict`.
LAST_EPOCH = "last_epoch"
_MIN_LABEL = 12  # the smallest width of the column of methods, in characters
# Field of ShotReport -> heading; all in %.
_COLUMNS = {
    "all": "all",
    **{group: group for group in SHOTS},
    "balanced": "balanced",
    "ece": "ECE",
}


@dataclass
class ResultRow:
    """The results of one method.

    Args:
        method: The name of the method, such as "samn".
        label: The printed name, such as "CE + SAMN"; the method's name if empty.
        reports: One report per seed, at least one.
        selected: Which weights were tested, such as "last epoch" or "epoch 7 on validation".
        seconds: Training time, the mean over seeds; None if unknown.
        extra: More columns, heading to cell; all rows of a table have the same headings.
        last_epoch: Accuracy on all images after the last epoch, from 0 to 1, of each seed. Empty
            where no epoch was selected on the tested images.
    """

    method: str
    label: str
    reports: list[ShotReport]
    selected: str
    seconds: float | None = None
    extra: dict[str, str] = field(default_factory=dict)
    last_epoch: list[float] = field(default_factory=list)


@dataclass
class ResultTable:
    """The results of several methods on one test set, with the protocol.

    Args:
        rows: One row per method, in printing order.
        protocol: "clean", "paper", or "untested" without a test set.
        split_name: The name of the data split.
        fingerprint: The fingerprint of the split.
        few_rule: The few-shot rule, "<20" or "<=20".
        seeds: The seeds of the runs.
        dataset: The name of the dataset.
        note: A remark to print below the table.
        valid_from: The origin of the validation images, as in `SplitInfo`.
        stage1_seeds: The seeds of stage 1, if `seeds` are the seeds of the later stages.
        averages_flips: For the paper protocol, whether the logits of each image and its mirror
            image were averaged.

    Raises:
        UserError: If `protocol` or `few_rule` is not allowed, a row has no report, or a row has
            another few-shot rule.

    Example:
        >>> report = shot_report(9 * torch.eye(3), torch.arange(3), class_counts=[500, 50, 5])
        >>> row = ResultRow("ce", "CE", [report], "last epoch")
        >>> print(ResultTable([row], "clean", "my split", "3f9a11c0", "<20", [0], "my data"))
        my data: test accuracy in %
        method    all   many  medium    few  balanced  ECE
        CE      100.0  100.0   100.0  100.0     100.0  0.0
        ...
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
    stage1_seeds: Sequence[int] = ()
    averages_flips: bool = True
    _values: list[dict] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        """Check the arguments and average each row once."""
        check_choice("protocol", self.protocol, PROTOCOL_TEXTS)
        check_choice("few_rule", self.few_rule, FEW_RULES)
        for row in self.rows:
            if not row.reports:
                raise UserError(f"the row {_label(row)!r} has no report.")
            rule = row.reports[0].few_rule
            if rule != self.few_rule:
                raise UserError(
                    f"the row {_label(row)!r} was evaluated with few {rule}, but the table has "
                    f"few {self.few_rule}."
                )
        self._values = [mean_and_sd(row.reports) for row in self.rows]
        for row, values in zip(self.rows, self._values, strict=True):
            if row.last_epoch:
                values[LAST_EPOCH] = mean_and_sd_of(row.last_epoch)

    def render(
        self,
        console_width: int | None = None,
        file: TextIO | None = None,
        plain: bool | None = None,
    ) -> None:
        """Print the table: boxes and colour on a terminal, aligned plain lines elsewhere.

        Args:
            console_width: Width of the terminal in characters. None asks the terminal.
            file: The stream to write to; standard output if None.
            plain: Whether to write plain lines. None: unless file is a terminal. A terminal that is
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
        lines = aligned_lines(self._heads(), self._lines())
        return "\n".join([self._title(), *lines, *self._footer()])

    def to_markdown(self) -> str:
        """Return a Markdown table with its protocol lines, for report.md.

        It has two more columns than `to_text`: the tested weights, and the time.
        """
        timed = any(row.seconds is not None for row in self.rows)
        head = [
            "method",
            *(f"{h} %" for h in self._columns().values()),
            *self._extra_heads(),
            "tested",
        ]
        align = ["---", *["---:"] * (len(head) - 2), "---"]
        lines = [[*line, row.selected] for row, line in zip(self.rows, self._lines(), strict=True)]
        if timed:
            head.append("seconds")
            align.append("---:")
            for row, line in zip(self.rows, lines, strict=True):
                line.append(DASH if row.seconds is None else _seconds(row.seconds))
        about = [self._title(), *self._about()]
        return markdown_table(head, align, lines) + "\n\n" + markdown_list(about)

    def scores(self) -> ScoreTable:
        """Return precision, recall and F1 of each method over all classes and each shot group.

        It is a table of its own, because a row with all figures would be too wide.
        """
        return group_score_table({_label(row): row.reports for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
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
            "averages_flips": self.averages_flips,
            "split": self.split_name,
            "fingerprint": self.fingerprint,
            "few_rule": self.few_rule,
            "shots": shot_thresholds_text(self.few_rule),
            "tested": self._tested(),
            "warnings": self.rows[0].reports[0].warnings() if self.rows else [],
            "seeds": [int(s) for s in self.seeds],
            "stage1_seeds": [int(s) for s in self.stage1_seeds],
            "note": self.note,
            "rows": rows,
        }

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.to_text()

    def __repr__(self) -> str:
        """Return the title and the methods."""
        return f"ResultTable: {self._title()}: {'; '.join(_label(row) for row in self.rows)}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the table that a notebook shows."""
        table = html_table(self._heads(), self._lines(), self._title())
        return table + html_paragraph(*self._footer())

    @property
    def protocol_text(self) -> str:
        """Return the description of the protocol, from `PROTOCOL_TEXTS`."""
        text = PROTOCOL_TEXTS[self.protocol]
        text = text if self.averages_flips else text.replace(_FLIPS, "")
        return text if self.is_carved else text.replace(_CARVED, "the set's validation images")

    @property
    def is_carved(self) -> bool:
        """Return whether the validation images were taken from the training images."""
        return self.valid_from == "training images"

    def _render_rich(self, width: int | None, file: TextIO) -> bool:
        """Print a rich table; return False, and print nothing, if a column does not fit."""
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file, width=width, highlight=False)
        head, lines = self._heads(), self._lines()
        names, *numbers = (max(map(len, column)) for column in zip(head, *lines, strict=True))
        # A name may be folded, a number may not.
        blocks = fitting_blocks([min(names, _MIN_LABEL), *numbers], console.width)
        if blocks is None:
            return False
        console.print(Text(self._title(), style="bold"))
        for block in blocks:
            print_block(console, head, lines, block, right=True)
        for line in self._footer():
            console.print(Text(line, style="dim"))
        return True

    def _lines(self) -> list[list[str]]:
        """Return the cells of each row, the method first."""
        return [
            [
                _label(row),
                *(_mean_sd(values.get(name)) for name in self._columns()),
                *row.extra.values(),
            ]
            for row, values in zip(self.rows, self._values, strict=True)
        ]

    def _heads(self) -> list[str]:
        return ["method", *self._columns().values(), *self._extra_heads()]

    def _columns(self) -> dict[str, str]:
        """Return the heading of each figure, by name."""
        has_last = any(row.last_epoch for row in self.rows)
        return _COLUMNS | ({LAST_EPOCH: "last epoch"} if has_last else {})

    def _extra_heads(self) -> list[str]:
        return list(self.rows[0].extra) if self.rows else []

    def _title(self) -> str:
        over = "runs" if len(self.stage1_seeds) > 1 and len(self.seeds) > 1 else "seeds"
        plus_minus = f", mean ± standard deviation over {over}" if self._several_seeds() else ""
        return clean(f"{self.dataset}: {self._tested_on()} accuracy in %{plus_minus}")

    def _tested_on(self) -> str:
        return tested_images(self.protocol)

    def _several_seeds(self) -> bool:
        return any(len(row.reports) > 1 for row in self.rows)

    def _tested(self) -> dict[str, dict[str, int]]:
        """Return on how many classes and images each group rests; all rows have the same images."""
        groups = self.rows[0].reports[0].groups if self.rows else {}
        return {name: {"classes": g.classes, "images": g.images} for name, g in groups.items()}

    def _about(self) -> list[str]:
        first = self.rows[0].reports[0] if self.rows else None
        sizes = first.group_sizes if first else None
        counts = {len(row.reports) for row in self.rows}
        lines = [
            f"protocol: {self.protocol_text}",
            f"split: {self.split_name} ({self.fingerprint})",
            f"training images per class: {shot_thresholds_text(self.few_rule, sizes)}",
        ]
        if first:
            lines += [first.tested_text(f"{self._tested_on()} images"), *first.warnings()]
        if self.stage1_seeds:
            lines.append(_seeds_text("of stage 1", self.stage1_seeds))
            lines.append(_seeds_text("of later stages", self.seeds))
        else:
            lines.append(_seeds_text("", self.seeds))
        if LAST_EPOCH in self._columns():
            lines.append(
                "last epoch: accuracy on all images after the last epoch; stage 2 starts from the "
                "kept epoch of stage 1"
            )
        if len(counts) > 1:
            # Some rows are not a mean over all seeds, so list the number of runs.
            runs = "; ".join(f"{_label(row)} {len(row.reports)}" for row in self.rows)
            lines.append(f"runs: {runs}")
        if self.note:
            lines.append(self.note)
        return lines

    def _footer(self) -> list[str]:
        # Lists of methods have semicolons, because a label can hold a comma.
        labels_of: dict[str, list[str]] = {}  # tested weights -> methods
        for row in self.rows:
            labels_of.setdefault(row.selected, []).append(_label(row))
        if len(labels_of) == 1:
            tested = [f"tested: {next(iter(labels_of))}"]
        else:
            tested = [f"tested: {name} ({'; '.join(ls)})" for name, ls in labels_of.items()]
        times = [
            f"{_label(row)} {_seconds(row.seconds)} s"
            for row in self.rows
            if row.seconds is not None
        ]
        lines = [*self._about(), *tested, *([f"time: {'; '.join(times)}"] if times else [])]
        return [clean(line) for line in lines]


def _label(row: ResultRow) -> str:
    return one_line(row.label or row.method)


def _seeds_text(which: str, seeds: Sequence[int]) -> str:
    noun = "seed" if len(seeds) == 1 else "seeds"
    return f"{f'{noun} {which}'.rstrip()}: {', '.join(str(s) for s in seeds)}"


def _mean_sd(value: tuple[float, float | None] | None) -> str:
    return DASH if value is None else mean_sd_text(*value)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
