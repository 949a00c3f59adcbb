"""Read a CSV or TSV table of images, or a pandas `DataFrame`."""

import csv as csv_format
import itertools
import logging
import os
import warnings
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltlearn.data.images import EXTENSIONS
from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.columns import USUAL_COLUMNS, find_columns, log_ignored
from ltlearn.data.readers.labels import (
    check_one_label,
    check_trained,
    encode_labels,
    is_empty,
)
from ltlearn.data.readers.listing import Listing, require_images
from ltlearn.data.readers.parts import ListedImages, parts_of_flags, parts_of_rows
from ltlearn.errors import UserError, spell
from ltlearn.names import PART_LABELS, PARTS
from ltlearn.utils.system_errors import reason_of

__all__ = ["list_table", "read_table"]

_log = logging.getLogger("ltlearn")
_MAX_COLUMNS = 10_000
_MAX_LINE = 1 << 20  # characters of the first line


def list_table(
    table, options: ReadOptions | None = None, problems: list[str] | None = None
) -> ListedImages:
    """List the images of a table with a path and a label in each row.

    Class names are in natural order (2_cat before 10_cat), integers by value. Repeated rows count
    once, with a warning. Two rows are the same image if their paths lead to the same file name in
    the same folder, however they are written; links and copies are not compared.

    Args:
        table: A pandas `DataFrame`, or a CSV or TSV file as `read_table` takes it. Messages count
            the rows of a `DataFrame` from 0, and those of a file from 1, header included.
        options: Uses `images`, the folder that relative paths start from (None takes the folder of
            the file, or the current one); `image_col`, `label_col` and `split_col`, by name or by
            number from 0; `suffix`; `valid` and `test`, tables of those parts, whose paths start
            from the same folder; and `skip_bad`. A column that is None is found by its usual names,
            such as "image", "label" and "split", or else the first two are taken. Columns such as
            "is_valid" and "is_test" mark the images of one part. None takes the defaults.
        problems: Collects a sentence about each kind of contradiction, so that a table can be
            inspected that cannot be trained on. If an image has two labels, the first counts; an
            image in two parts is in both. Missing images, and labels that training lacks, are then
            listed like all others. None raises an error instead.

    Raises:
        UserError: If the table is empty or lacks a column, a cell is empty, an image is missing,
            has two labels or is in two parts, or a validation or test label is not in training.
    """
    import pandas as pd

    options = options or ReadOptions()
    root = Path(options.images or ".").expanduser()
    if is_file := isinstance(table, str | Path):
        table = Path(table).expanduser()
        root = table.parent if options.images is None else root
    part_numbers, tables = _read_tables(table, options, root)
    first = tables[0]
    table_of = np.repeat(np.arange(len(tables)), [len(t.rows) for t in tables])
    rows = np.concatenate([t.rows for t in tables])

    def locate(i: int) -> str:
        return f"{tables[table_of[i]].where}, row {rows[i]}"

    cells = pd.concat([t.images for t in tables], ignore_index=True)
    paths = _TablePaths(root, cells, locate, options.suffix)
    labels = pd.concat([t.labels for t in tables], ignore_index=True)
    targets, classes = encode_labels(labels, locate)
    check_one_label(targets, classes, locate, first.columns["label"], problems)
    part_of = np.array(part_numbers, dtype=np.int8)[table_of]
    if first.splits is not None:
        part_of = parts_of_rows(first.splits, locate, first.columns["split"])
    if problems is None:
        check_trained(targets, part_of, classes, locate)
    contradictions = _Contradictions(paths, locate, problems)
    contradictions.check_labels(targets, classes)
    contradictions.check_parts(part_of)
    keep = _first_rows(contradictions.first, part_of, first.where)
    parts = {}
    for number, part in enumerate(PARTS):
        index = keep[part_of[keep] == number]
        if len(index):
            listing = Listing(
                Path(tables[table_of[index[0]]].where), paths.folders, paths.folder_of[index],
                [paths.names[i] for i in index], targets[index], rows[index], "row",
            )  # fmt: skip
            # The user wrote the table: its paths may lead anywhere.
            parts[part] = require_images(
                listing,
                paths.root,
                follow_links=True,
                skip_bad=options.skip_bad,
                keep_missing=problems is not None,
            )
    name = "one table" if len(tables) == 1 else "tables"
    name = name if first.splits is None else "split column"
    dataset = table.stem if is_file else "table"
    return ListedImages(
        parts, classes, name, dataset, first.where, first.columns, ignored_columns=first.ignored
    )


@dataclass
class _Columns:
    """The columns of a table that are used."""

    where: str  # the table, for messages
    rows: np.ndarray  # row numbers, for messages
    images: Sequence
    labels: Sequence
    splits: Sequence | None
    columns: dict[str, str]  # "path", "label" and "split" to the name of the column
    ignored: list[str]  # the names of the other columns


def _read_tables(table, options: ReadOptions, root: Path) -> tuple[list[int], list[_Columns]]:
    """Read the tables of all parts; return the number of each table's part, and its columns."""
    split_col = options.split_col
    if options.valid is not None or options.test is not None:
        if split_col not in (None, False):
            raise UserError(
                f"{spell('split_col', split_col)} and separate files for validation or test "
                "exclude each other; leave one of them out."
            )
        split_col = False
    given = [
        (number, source)
        for number, source in enumerate((table, options.valid, options.test))
        if source is not None
    ]
    columns = (options.image_col, options.label_col, split_col)
    tables = [_read_columns(source, columns, root, options.suffix) for _, source in given]
    return [number for number, _ in given], tables


def _read_columns(table, columns: tuple, root: Path, suffix: str) -> _Columns:
    """Read the columns of a `DataFrame` or a file that are used."""
    if isinstance(table, str | Path):
        where = str(Path(table).expanduser())
        df, rows = read_table(Path(table).expanduser(), root, suffix)
    elif not hasattr(table, "iloc") or getattr(table, "ndim", 2) != 2:
        raise UserError(
            f"the table must be a pandas DataFrame or a file, got {type(table).__name__}."
        )
    else:
        where, df, rows = "the table", table, np.arange(len(table))
    if not len(df):
        raise UserError(f"{where} has no rows; give one row per image, with its path and label.")
    image, label, split, flags = find_columns(df, where, *columns)

    def locate(i: int) -> str:
        return f"{where}, row {rows[i]}"

    used = {
        "path": [image],
        "label": [label],
        "split": [c for c in (split, *flags.values()) if c is not None],
    }
    splits = None
    if flags:
        flag_cells = {p: _filled_cells(df, c, "split", locate) for p, c in flags.items()}
        splits = parts_of_flags(
            flag_cells, locate, {part: str(df.columns[c]) for part, c in flags.items()}
        )
    elif split is not None:
        splits = _filled_cells(df, split, "split", locate)
    names = {
        role: " and ".join(str(df.columns[c]) for c in found)
        for role, found in used.items()
        if found
    }
    taken = {c for found in used.values() for c in found}
    ignored = [str(name) for i, name in enumerate(df.columns) if i not in taken]
    log_ignored(where, ignored)
    return _Columns(
        where,
        rows,
        _filled_cells(df, image, "path", locate),
        _filled_cells(df, label, "label", locate),
        splits,
        names,
        ignored,
    )


def read_table(file: Path, root: Path | None = None, suffix: str = ""):
    """Read a CSV or TSV file as text, so that a label such as "NA" or "01" is kept.

    The delimiter is a tab for .tsv and .tab, or else the most frequent of comma, tab, semicolon and
    bar in the first line. A first line that names an image, by extension or because the file
    exists, is no header. Empty lines are skipped.

    Args:
        file: The file, in UTF-8.
        root: Folder that relative paths start from; None takes the folder of the file.
        suffix: Ending that is appended to every path.

    Returns:
        A `DataFrame`, and the number of each row in the file, counted from 1, header included.

    Raises:
        UserError: If the file cannot be read, or a row has more cells than the header.
    """
    import pandas as pd

    try:
        blank, first = _first_line(file)
        tabs = file.suffix.lower() in (".tsv", ".tab")
        sep = "\t" if tabs else max(",\t;|", key=first.count)
        if first.count(sep) >= _MAX_COLUMNS:
            raise UserError(
                f"{file} has {first.count(sep) + 1:,} columns, more than {_MAX_COLUMNS:,}; give "
                "one row per image, with its path and label."
            )
        cells = next(csv_format.reader([first], delimiter=sep))
        bare = any(_is_image(c.strip(), root or file.parent, suffix) for c in cells)
        with warnings.catch_warnings():
            # Pandas would drop cells beyond the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            df = pd.read_csv(
                file, sep=sep, header=None if bare else blank,
                names=range(len(cells)) if bare else None, dtype=str, keep_default_na=False,
                skip_blank_lines=False, skipinitialspace=True, index_col=False,
                encoding="utf-8-sig",
            )  # fmt: skip
    except UnicodeDecodeError:
        raise UserError(f"{file} is not in UTF-8; save it as CSV in UTF-8.") from None
    except OSError as e:
        raise UserError(f"cannot read {file} ({reason_of(e)}); give a CSV or TSV file.") from None
    except pd.errors.ParserWarning:
        raise UserError(f"{file} has more cells in a row than in its header; correct it.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv_format.Error, MemoryError) as e:
        reason = str(e).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{file} is no table ({reason}); correct it.") from None
    rows = np.arange(len(df)) + (1 if bare else blank + 2)
    filled = ~(df.isna() | (df == "")).all(axis=1).to_numpy()
    return df[filled], rows[filled]


def _first_line(file: Path) -> tuple[int, str]:
    """Return the first line that is not blank, and its number from 0."""
    with open(file, encoding="utf-8-sig", newline="") as text:
        for number in itertools.count():
            line = text.readline(_MAX_LINE)
            if not line:
                raise UserError(f"{file} is empty; give one row per image.")
            if len(line) == _MAX_LINE:
                raise UserError(
                    f"{file}, line {number + 1}, has more than {_MAX_LINE:,} characters; give one "
                    "line per image, with its path and label."
                )
            if line.strip():
                return number, line


def _is_image(cell: str, root: Path, suffix: str) -> bool:
    """Return whether a cell of the first line names an image."""
    if os.path.splitext(cell)[1].lower() in EXTENSIONS:
        return True
    # With the suffix ".jpg", a file image.jpg must not turn the header "image" into a row.
    is_header = cell.lower() in USUAL_COLUMNS
    return bool(cell) and not is_header and os.path.isfile(os.path.join(root, cell + suffix))


def _filled_cells(df, column: int, role: str, locate: Callable[[int], str]):
    """Return the cells of a column; an empty one is an error."""
    cells = df.iloc[:, column].reset_index(drop=True)
    empty = is_empty(cells)
    if empty.any():
        more = int(empty.sum()) - 1
        raise UserError(
            f"{locate(int(empty.argmax()))}: the {role} is empty (column {df.columns[column]!r})"
            f"{f', and so are {more:,} more' if more else ''}; fill it in or remove the row."
        )
    return cells


class _TablePaths:
    """The paths of a table as folder and name, relative to one root, each file written one way."""

    def __init__(self, root: Path, cells, locate: Callable[[int], str], suffix: str = ""):
        self.root = os.path.abspath(root)
        self._real = os.path.realpath(self.root)
        number: dict[str, int] = {}  # a folder as the table writes it
        self.names, written = [], array("i")
        for i, cell in enumerate(cells):
            path = os.fspath(cell) if isinstance(cell, str | os.PathLike) else None
            folder, name = os.path.split(path) if isinstance(path, str) else ("", "")
            if name in ("", ".", "..") or "\0" in path:
                raise UserError(
                    f"{locate(i)}: {cell!r} is no path of an image; name the column of the paths "
                    f"with {spell('image_col')}, or correct the row."
                )
            written.append(number.setdefault(folder, len(number)))
            self.names.append(name + suffix)
        normal = [self._normal_form(folder) for folder in number]
        if any(map(os.path.isabs, normal)):
            # Relative to their common folder, so that another machine has the same fingerprint.
            full = [os.path.join(self.root, at) for at in normal]
            self.root = os.path.commonpath(full)
            normal = [_relative(at, self.root) for at in full]
        index: dict[str, int] = {}
        numbers = [index.setdefault(at, len(index)) for at in normal]
        self.folders = list(index)
        self.folder_of = np.array(numbers, dtype=np.int32)[np.asarray(written, dtype=np.int32)]

    def _normal_form(self, folder: str) -> str:
        """Return a folder relative to the root if it lies inside, else its absolute path."""
        full = os.path.join(self.root, folder)
        if ".." in folder.split(os.sep):
            full = os.path.realpath(full)  # ".." behind a link leaves the link's target
        full = os.path.normpath(full)
        for base in (self.root, self._real):
            if full == base or full.startswith(os.path.join(base, "")):
                return _relative(full, base)
        return full

    def path(self, i: int) -> str:
        return os.path.join(self.folders[self.folder_of[i]], self.names[i])


def _relative(path: str, base: str) -> str:
    return "" if path == base else os.path.relpath(path, base)


class _Contradictions:
    """Compares each row with the first row of the same image."""

    def __init__(
        self, paths: _TablePaths, locate: Callable[[int], str], problems: list[str] | None
    ):
        self.paths, self.locate, self.problems = paths, locate, problems
        import pandas as pd

        # A dict of tuples would take 200 bytes per row.
        names = pd.factorize(np.array(paths.names, dtype=object))[0]
        keys = paths.folder_of.astype(np.int64) * (int(names.max(initial=0)) + 1) + names
        codes, files = pd.factorize(keys)
        first = np.empty(len(files), dtype=np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]  # the first row is written last
        self.first = first[codes]

    def check_labels(self, targets: np.ndarray, classes: Sequence[str]) -> None:
        """Report an image with two labels."""
        self._report(
            targets != targets[self.first],
            lambda i: f"labelled {classes[targets[i]]!r}",
            "an image has one label: remove the wrong row",
        )

    def check_parts(self, part_of: np.ndarray) -> None:
        """Report an image in two parts."""
        self._report(
            part_of != part_of[self.first],
            lambda i: f"a {PART_LABELS[PARTS[part_of[i]]]} image",
            "results would include images seen in training: remove one of the rows",
        )

    def _report(self, bad: np.ndarray, describe: Callable[[int], str], remedy: str) -> None:
        """Raise or collect an error that names the first bad row and counts the others."""
        if not bad.any():
            return
        i = int(bad.argmax())
        j, more = int(self.first[i]), int(bad.sum()) - 1
        same_table = f"{self.locate(i).rpartition(', ')[0]}, "
        also = f", and {_count(more, 'more row is', 'more rows are')} like it" if more else ""
        sentence = (
            f"{self.locate(i)}: {self.paths.path(i)!r} is {describe(i)} here and {describe(j)} in "
            f"{self.locate(j).removeprefix(same_table)}{also}; {remedy}."
        )
        if self.problems is None:
            raise UserError(sentence)
        self.problems.append(sentence)


def _first_rows(first: np.ndarray, part_of: np.ndarray, where: str) -> np.ndarray:
    """Return the first row of each image in each part; log how many others there are."""
    keep = np.sort(np.unique(first * len(PARTS) + part_of, return_index=True)[1])
    if repeated := len(first) - len(keep):
        rows = _count(repeated, "row is there twice", "rows are there twice")
        _log.warning("%s: %s; each image counts once.", where, rows)
    return keep


def _count(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"
