"""`Issues`: what `find_issues` found."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.cleaning.images import LoadedImages
from ltlearn.cleaning.unusual import MIN_IMAGES
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.plots.figure import blank_figure
from ltlearn.plots.style import shorten
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.html import html_paragraph, html_table
from ltlearn.utils.text import DASH, clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["COLUMNS", "KINDS", "TABLE_HEAD", "Finding", "Issues"]

# Kinds of findings, the most harmful first, and what each means.
KINDS = {
    "unreadable": "the image cannot be read",
    "leak": "nearly equal to an image of another part, so a result on it is too high",
    "conflict": "nearly equal to an image of another class",
    "label": "its label is likely wrong",
    "duplicate": "nearly equal to an image of the same class and part",
    "unusual": "unlike the other images of its class",
}
COLUMNS = (
    "path", "part", "class", "group", "kind", "score", "suggested_class", "twin", "action",
)  # fmt: skip
TABLE_HEAD = ("kind", "score", "image", "part", "class", "suggested class or twin")
_SHOWN_IN_TEXT = 20
_COLUMNS_OF_GRID = 6


@dataclass(frozen=True)
class Finding:
    """Something about an image that a person should look at.

    Args:
        path: The file, or the row in an array, such as "train[17]".
        part: "train", "valid" or "test".
        label: Name of its class.
        group: Shot group of the class.
        kind: A key of `KINDS`.
        score: Strength of the finding. For "label": how far the confidence in the label is below
            what is usual in the class, and for "unusual": how far the image is from its class, both
            in robust standard deviations. For "leak", "conflict" and "duplicate": the correlation
            with the twin. For "unreadable": 1.
        suggested: For "label" and "conflict": the class that the image may belong to.
        twin: The image that it nearly equals, named like `path`.
        reason: Why the image cannot be read.
        number: Number of the image among all of the data.
        twin_number: The same of the twin; -1 without one.
    """

    path: str
    part: str
    label: str
    group: str
    kind: str
    score: float
    suggested: str = ""
    twin: str = ""
    reason: str = ""
    number: int = -1
    twin_number: int = -1

    def to_row(self) -> dict[str, Any]:
        """Convert to a row of `clean.csv`; `action` is for the reader."""
        values = (
            self.path, self.part, self.label, self.group, self.kind, round(self.score, 4),
            self.suggested, self.twin, "",
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(repr=False)
class Issues:
    """Images that a person should look at, the most harmful kinds and the highest scores first.

    Args:
        findings: The findings.
        searched: The kinds that were searched.
        n_images: Part to number of images.
        too_few: Classes with fewer than 5 training images; their labels and their unlikeness are
            not judged.
        images: The images, to show them.

    Example:
        >>> issues = learn.find_issues()
        >>> issues.counts()
        {'leak': 1, 'label': 12, 'duplicate': 3}
        >>> issues.to_csv("clean.csv")
    """

    findings: list[Finding]
    searched: tuple[str, ...]
    n_images: dict[str, int]
    too_few: list[str] = field(default_factory=list)
    images: LoadedImages | None = None

    def __len__(self) -> int:
        return len(self.findings)

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of a kind.

        Args:
            kind: A key of `ltlearn.cleaning.KINDS`.

        Raises:
            UserError: If there is no such kind.
        """
        check_choice("kind", kind, KINDS)
        return [one for one in self.findings if one.kind == kind]

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind that has some."""
        counts = Counter(one.kind for one in self.findings)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def to_frame(self) -> "DataFrame":
        """Return the findings as a table with the columns of `clean.csv`."""
        from pandas import DataFrame

        rows = [one.to_row() for one in self.findings]
        return DataFrame(rows, columns=list(COLUMNS))

    def to_csv(self, path: str | Path) -> None:
        """Write the findings as a CSV file.

        The column `action` is empty. Write "drop" or "relabel" into it, and `cleaned` follows.

        Args:
            path: The file.

        Raises:
            UserError: If the file cannot be written.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(one.to_row() for one in self.findings)
        with replaced_file(Path(path).expanduser(), remedy="give another file") as file:
            # Names of files that are no UTF-8 must come back as they are.
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))

    def to_html(self, path: str | Path, title: str = "Images to look at") -> None:
        """Write a self-contained page of thumbnails, on which actions can be chosen.

        Args:
            path: The file.
            title: Heading of the page.

        Raises:
            UserError: If the file cannot be written.
        """
        from ltlearn.cleaning.page import render_page

        with replaced_file(Path(path).expanduser(), remedy="give another file") as file:
            file.write(render_page(self, title).encode("utf-8", "backslashreplace"))

    def cleaned(self, actions: "DataFrame | str | Path | None" = None) -> "DataFrame":
        """Return the list of all images with actions carried out, for `LTDataLoaders.from_df`.

        Args:
            actions: A table like `to_frame()`, or a file that `to_csv` wrote, with "drop" or
                "relabel" in the column `action`. The latter takes the class in `suggested_class`.
                None changes nothing.

        Returns:
            A table with the columns image (absolute paths), label and split.

        Raises:
            UserError: If an action is another word, relabels to no class, or an image is not among
                the data.

        Example:
            >>> issues.to_csv("clean.csv")  # edit the column action
            >>> dls = LTDataLoaders.from_df(issues.cleaned("clean.csv"))
        """
        from ltlearn.cleaning.actions import carry_out

        return carry_out(self._images_or_raise(), actions)

    def show(self, kind: str | None = None, n: int = 24) -> "Figure":
        """Draw the images with the highest scores; a twin stands right of its image.

        Args:
            kind: A key of `ltlearn.cleaning.KINDS`; None draws all kinds.
            n: The most findings that are drawn, at least 1.

        Raises:
            UserError: If there is no such kind.
        """
        check_whole("n", n, 1)
        shown = self.findings if kind is None else self.of(kind)
        return _draw(self._images_or_raise(), shown[:n])

    def rows(self, n: int | None = None) -> list[tuple[str, ...]]:
        """Return the findings as cells below `ltlearn.cleaning.issues.TABLE_HEAD`.

        Args:
            n: The most findings; None takes all.
        """
        return [
            (
                one.kind, f"{one.score:.2f}", one.path, one.part, f"{one.label} ({one.group})",
                one.twin or one.suggested or one.reason or DASH,
            )
            for one in self.findings[:n]
        ]  # fmt: skip

    def summary(self) -> list[str]:
        """Return what was searched and found, one sentence a line."""
        images = ", ".join(f"{n:,} {part}" for part, n in self.n_images.items())
        lines = [f"{sum(self.n_images.values()):,} images ({images}): {len(self):,} findings."]
        lines += [f"{n:,} {kind}: {KINDS[kind]}." for kind, n in self.counts().items()]
        if self.too_few:
            names = ", ".join(clean(name) for name in self.too_few[:5])
            more = f" and {len(self.too_few) - 5:,} more" if len(self.too_few) > 5 else ""
            number = f"{len(self.too_few):,} classes have"
            number = number if len(self.too_few) > 1 else "1 class has"
            lines.append(
                f"{number} fewer than {MIN_IMAGES} training images, which are too few to "
                f"judge labels and unusual images: {names}{more}."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and text, for `json.dump`."""
        hidden = ("number", "twin_number")
        findings = [asdict(one) for one in self.findings]
        return {
            "images": self.n_images,
            "searched": list(self.searched),
            "counts": self.counts(),
            "too_few": self.too_few,
            "findings": [{k: v for k, v in one.items() if k not in hidden} for one in findings],
        }

    def __str__(self) -> str:
        """Return the summary and the first findings."""
        lines = [*self.summary()]
        rows = [[clean(cell) for cell in row] for row in self.rows(_SHOWN_IN_TEXT)]
        lines += ["  ".join(row) for row in rows]
        if len(self) > _SHOWN_IN_TEXT:
            lines.append(f"and {len(self) - _SHOWN_IN_TEXT:,} more")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Issues of {sum(self.n_images.values()):,} images: {self.counts()}"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        table = html_table(TABLE_HEAD, self.rows(_SHOWN_IN_TEXT), left=len(TABLE_HEAD))
        return table + html_paragraph(*self.summary())

    def _images_or_raise(self) -> LoadedImages:
        if self.images is None:
            raise UserError("these issues hold no images; call find_issues again to get some.")
        return self.images


def _draw(images: LoadedImages, findings: Sequence[Finding]) -> "Figure":
    """Draw findings in a grid, each with its kind, its class and the suggested class."""
    tiles = []
    for one in findings:
        suggested = f" -> {shorten(one.suggested)}?" if one.suggested else ""
        tiles.append((one.number, f"{one.kind} {one.score:.2f}\n{shorten(one.label)}{suggested}"))
        if one.twin_number >= 0:
            tiles.append((one.twin_number, f"its twin\n({images.part_of(one.twin_number)})"))
    columns = max(1, min(_COLUMNS_OF_GRID, len(tiles)))
    n_rows = max(1, -(-len(tiles) // columns))
    figure = blank_figure(1.7 * columns, 2.0 * n_rows + 0.2, "constrained")
    axes = np.atleast_1d(figure.subplots(n_rows, columns)).ravel()
    for one in axes:
        one.axis("off")
    for ax, (number, title) in zip(axes, tiles, strict=False):
        ax.set_title(title, fontsize=7)
        try:
            ax.imshow(images.pixels(number))
        except UserError:
            ax.text(0.5, 0.5, "unreadable", ha="center", va="center", fontsize=7)
    if not tiles:
        axes[0].text(0.5, 0.5, "no finding", ha="center", va="center", fontsize=9)
    return figure
