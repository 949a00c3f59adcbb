"""Read a CSV or TSV table of images."""

import csv as csv_cells
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np

from ltlearn.data.images import EXTENSIONS
from ltlearn.data.readers.kinds import flag_of
from ltlearn.data.readers.listed import (
    MAX_NAMED_COLUMNS,
    PART_LABELS,
    PARTS,
    ListedImages,
    check_trained,
    encode_labels,
    find_listed_images,
    is_empty,
    parts_of_rows,
    plural,
)
from ltlearn.data.readers.listing import Listing
from ltlearn.errors import UserError
from ltlearn.utils.text import clean

__all__ = ["columns_text", "list_table", "read_table"]

_log = logging.getLogger("ltlearn")
# Names that a column is found by, in any case, the likeliest first.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "img")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels")
SPLIT_COLUMNS = ("split", "subset", "partition")


def columns_text(columns: Mapping[str, str]) -> str:
    """Say what was read from which column.

    Args:
        columns: Those of `ListedImages`.
    """
    return ", ".join(f"{what} from {clean(column)!r}" for what, column in columns.items())


def list_table(
    table,
    path: str | Path | None = None,
    image_col: str | int | None = None,
    label_col: str | int | None = None,
    split_col: str | int | bool | None = None,
    skip_bad: bool = False,
    suffix: str = "",
    valid: str | Path | None = None,
    test: str | Path | None = None,
    stops: list[str] | None = None,
) -> ListedImages:
    """List the images of a table: a row each, with its path and its label.

    Class names are in natural order (2_cat before 10_cat), integers by value. Rows that are there
    twice count once, with a warning. Two rows are the same image if their paths are, however they
    are spelt; links and copies under another name are not looked through.

    Args:
        table: A pandas `DataFrame`, or a CSV or TSV file as `read_table` takes it. In messages,
            rows of a `DataFrame` count from 0, and those of a file from 1, its header included.
        path: Folder that relative paths start from; None takes the one of the file, or the current
            one.
        image_col: Column of the paths, by name or by number from 0. None takes the first that is
            called image, path, file, filename, file_name, image_path or img, in any case, or else
            the first.
        label_col: Column of the labels (text or integers), likewise: label, class, target, category
            or labels, or else the second.
        split_col: Column that says train, training, valid, val, validation, dev, test or testing,
            in any case. None takes one that is called split, subset or partition, if any; False
            takes none.
        skip_bad: Leave out images that are not there, with a warning, instead of stopping.
        suffix: What every path ends in and the table leaves out, such as ".jpg".
        valid: A file that lists the validation images likewise; its relative paths start from the
            same folder.
        test: Of the test images, likewise.
        stops: Takes a sentence for each kind of rows that contradict each other, instead of an
            error, to look at what cannot be trained on: of two labels the first counts, and a
            image in two parts is in both. Images that are not there, and labels that training
            lacks, are then listed like others. None stops at all of these.

    Raises:
        UserError: If the table is empty or lacks a column, a cell is empty, an image is not there,
            has two labels or is in two parts, or a validation or test label is not in training; the
            message names row, column or label.
    """
    import pandas as pd

    if isinstance(table, str | Path):
        file = Path(table).expanduser()
        dataset, root = file.stem, file.parent if path is None else Path(path).expanduser()
    else:
        dataset, root = "table", Path(path or ".").expanduser()
    if valid is not None or test is not None:
        if split_col not in (None, False):
            raise UserError(
                "a split column (split_col, --split-col) and files of their own for validation or "
                "test exclude each other; leave one of them out."
            )
        split_col = False
    given = [(n, t) for n, t in enumerate((table, valid, test)) if t is not None]
    read = [_read_columns(t, image_col, label_col, split_col, root, suffix) for _, t in given]
    columns, splits = read[0].columns, read[0].splits
    table_of = np.repeat(np.arange(len(read)), [len(r.rows) for r in read])
    rows = np.concatenate([r.rows for r in read])

    def place(i: int) -> str:
        return f"{read[table_of[i]].where}, row {rows[i]}"

    cells = pd.concat([r.images for r in read], ignore_index=True)
    paths = _Files(root, cells, place, suffix)
    targets, classes = encode_labels(pd.concat([r.labels for r in read], ignore_index=True), place)
    part_of = np.array([number for number, _ in given], dtype=np.int8)[table_of]
    if splits is not None:
        part_of = parts_of_rows(splits, place, columns["split"])
    if stops is None:
        check_trained(targets, part_of, classes, place)
    where = read[0].where
    keep = _distinct_rows(paths, targets, classes, part_of, place, where, stops)
    parts = {}
    for number, part in enumerate(PARTS):
        index = keep[part_of[keep] == number]
        if len(index):
            listing = Listing(
                Path(read[table_of[index[0]]].where), paths.folders, paths.folder_of[index],
                [paths.names[i] for i in index], targets[index], rows[index], "row",
            )  # fmt: skip
            # The table is the user's own: its paths may lead anywhere.
            parts[part] = find_listed_images(
                listing, paths.root, True, skip_bad, "path", stops is not None
            )
    name = "one table" if len(read) == 1 else "tables"
    return ListedImages(
        parts, classes, name if splits is None else "split column", dataset, where, columns
    )


@dataclass
class _Columns:
    """The columns of a table that count."""

    where: str  # for messages
    rows: np.ndarray  # their numbers, for messages
    images: Sequence
    labels: Sequence
    splits: Sequence | None
    columns: dict[str, str]  # what was read from which


def _read_columns(table, image_col, label_col, split_col, root: Path, suffix: str) -> _Columns:
    """Read the columns that count of a `DataFrame` or a file."""
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
        raise UserError(f"{where} has no rows; give one an image, with its path and its label.")
    found = _find_columns(df, where, image_col, label_col, split_col)
    found = {what: c for what, c in zip(("path", "label", "split"), found, strict=True)
             if c is not None}  # fmt: skip
    cells = {
        what: _column(df, column, what, lambda i: f"{where}, row {rows[i]}")
        for what, column in found.items()
    }
    columns = {what: str(df.columns[column]) for what, column in found.items()}
    return _Columns(where, rows, cells["path"], cells["label"], cells.get("split"), columns)


def read_table(file: Path, root: Path | None = None, suffix: str = ""):
    """Read a CSV or TSV as text, cell by cell: no label is taken for a number or for missing.

    The delimiter is a tab for .tsv and .tab, or else the most frequent of comma, tab, semicolon and
    bar in the first line. If that line names an image, by its extension or because it is there, it
    is no header. Empty lines are skipped.

    Args:
        file: In UTF-8.
        root: Folder that relative paths start from; None takes the one of the file.
        suffix: What every path ends in and the table leaves out.

    Returns:
        A `DataFrame`, and the number of each row in the file, from 1 up, the header included.

    Raises:
        UserError: If it cannot be read, or a row has more cells than the header.
    """
    import pandas as pd

    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            blank, first = next(((i, s) for i, s in enumerate(text) if s.strip()), (0, ""))
        if not first:
            raise UserError(f"{file} is empty; give it a row for each image.")
        tabs = file.suffix.lower() in (".tsv", ".tab")
        sep = "\t" if tabs else max(",\t;|", key=first.count)
        cells = next(csv_cells.reader([first], delimiter=sep))
        bare = any(_is_image(c.strip(), root or file.parent, suffix) for c in cells)
        with warnings.catch_warnings():
            # Pandas would cut off what goes beyond the header.
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
        raise UserError(f"cannot read {file} ({e.strerror}); give a CSV or TSV file.") from None
    except pd.errors.ParserWarning:
        raise UserError(f"{file} has more cells in a row than in its header; mend it.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv_cells.Error) as e:
        reason = str(e).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{file} is no table ({reason}); mend it.") from None
    rows = np.arange(len(df)) + (1 if bare else blank + 2)
    filled = ~(df.isna() | (df == "")).all(axis=1).to_numpy()
    return df[filled], rows[filled]


def _is_image(cell: str, root: Path, suffix: str) -> bool:
    """Tell whether a cell of the first line names an image."""
    if os.path.splitext(cell)[1].lower() in EXTENSIONS:
        return True
    # With a suffix, an image image.jpg must not make a row of the header "image".
    named = cell.lower() not in (*IMAGE_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS)
    return bool(cell) and named and os.path.isfile(os.path.join(root, cell + suffix))


def _find_columns(df, where: str, image_col, label_col, split_col) -> tuple[int, int, int | None]:
    """Return the positions of the columns of paths, labels and parts."""
    names = list(df.columns)
    shown = ", ".join(map(str, names[:MAX_NAMED_COLUMNS])) + (
        ", ..." if len(names) > MAX_NAMED_COLUMNS else ""
    )
    lower = [str(name).strip().lower() for name in names]

    def guess(likely: Sequence[str]) -> int | None:
        return next((lower.index(name) for name in likely if name in lower), None)

    def find(parameter: str, column, likely: Sequence[str]) -> int | None:
        if column is None:
            return guess(likely)
        if column in names and not isinstance(column, bool):
            return names.index(column)
        number = isinstance(column, Integral) and not isinstance(column, bool)
        if number and 0 <= column < len(names):
            return int(column)
        raise UserError(
            f"{where} has no column {column!r} ({parameter}, {flag_of(parameter)}); its columns "
            f"are {shown}."
        )

    image = find("image_col", image_col, IMAGE_COLUMNS)
    label = find("label_col", label_col, LABEL_COLUMNS)
    split = None if split_col is False else find("split_col", split_col, SPLIT_COLUMNS)
    if len(names) < 2:
        raise UserError(
            f"{where} has the column {shown} alone; give it one for paths and one for labels, with "
            "a comma or a tab between."
        )
    if image is None:
        image = next(i for i in range(len(names)) if i != label)
    if label is None:
        label = next((i for i in (1, 0, 2) if i not in (image, split) and i < len(names)), image)
        if len(names) > 2 + (split is not None):
            _log.warning(
                "%s: labels are taken from %r, as no column has a common name for them; if they "
                "are in another of %s, name it with label_col (--label-col)",
                where, names[label], shown,
            )  # fmt: skip
    if len({image, label, split}) < 3:
        raise UserError(
            f"{where}: paths, labels and split must be different columns of {shown}; name them "
            "with image_col, label_col and split_col (--image-col and so on)."
        )
    return image, label, split


def _column(df, column: int, what: str, place: Callable[[int], str]):
    """Return a column, of which no cell is empty."""
    cells = df.iloc[:, column].reset_index(drop=True)
    empty = is_empty(cells)
    if empty.any():
        more = int(empty.sum()) - 1
        raise UserError(
            f"{place(int(empty.argmax()))}: the {what} is empty (column {df.columns[column]!r})"
            f"{f', and so are {more:,} more' if more else ''}; fill it in or remove the row."
        )
    return cells


class _Files:
    """Paths of a table as folder and name: relative to one root, each file in one spelling."""

    def __init__(self, root: Path, cells, place: Callable[[int], str], suffix: str = ""):
        self.root = os.path.abspath(root)
        self._real = os.path.realpath(self.root)
        places: dict[str, str] = {}  # a folder as it is spelt, to where it is
        self.names, spelt = [], []
        for i, cell in enumerate(cells):
            path = os.fspath(cell) if isinstance(cell, str | os.PathLike) else None
            folder, name = os.path.split(path) if isinstance(path, str) else ("", "")
            if name in ("", ".", "..") or "\0" in path:
                raise UserError(
                    f"{place(i)}: {cell!r} is no path of an image; name the column of the paths "
                    "with image_col (--image-col), or mend the row."
                )
            if folder not in places:
                places[folder] = self._place(folder)
            spelt.append(folder)
            self.names.append(name + suffix)
        if any(map(os.path.isabs, places.values())):
            # From their common folder on, so that a fingerprint is the same on another machine.
            full = {spelling: os.path.join(self.root, at) for spelling, at in places.items()}
            self.root = os.path.commonpath(full.values())
            places = {s: _relative(at, self.root) for s, at in full.items()}
        index: dict[str, int] = {}
        number = {s: index.setdefault(at, len(index)) for s, at in places.items()}
        self.folders = list(index)
        self.folder_of = np.fromiter((number[s] for s in spelt), np.int32, len(spelt))

    def _place(self, folder: str) -> str:
        full = os.path.join(self.root, folder)
        if ".." in folder.split(os.sep):
            full = os.path.realpath(full)  # what lies above a link is not where its name says
        full = os.path.normpath(full)
        for base in (self.root, self._real):
            if full == base or full.startswith(os.path.join(base, "")):
                return _relative(full, base)
        return full

    def path(self, i: int) -> str:
        return os.path.join(self.folders[self.folder_of[i]], self.names[i])


def _relative(path: str, base: str) -> str:
    return "" if path == base else os.path.relpath(path, base)


def _distinct_rows(
    paths: _Files,
    targets,
    classes,
    part_of,
    place: Callable[[int], str],
    where: str,
    stops: list[str] | None = None,
) -> np.ndarray:
    """Return the rows without those that are there twice; a contradiction is an error or a stop."""
    first: dict[tuple, int] = {}
    pairs = zip(paths.folder_of.tolist(), paths.names, strict=True)
    before = np.fromiter((first.setdefault(k, i) for i, k in enumerate(pairs)), np.int64)

    def refuse(bad: np.ndarray, what: Callable[[int], str], why: str) -> None:
        if bad.any():
            i = int(bad.argmax())
            j, more = int(before[i]), int(bad.sum()) - 1
            same = f"{place(i).rpartition(', ')[0]}, "  # where both are of one table
            also = f", and {plural(more, 'more row is', 'more rows are')} like it" if more else ""
            sentence = (
                f"{place(i)}: {paths.path(i)!r} is {what(i)} here and {what(j)} in "
                f"{place(j).removeprefix(same)}{also}; {why}."
            )
            if stops is None:
                raise UserError(sentence)
            stops.append(sentence)

    refuse(
        targets != targets[before],
        lambda i: f"labelled {classes[targets[i]]!r}",
        "an image has one label: remove the wrong row",
    )
    refuse(
        part_of != part_of[before],
        lambda i: f"a {PART_LABELS[PARTS[part_of[i]]]} image",
        "figures would be of images that training has seen: remove one of the rows",
    )
    # The first of each image in each part.
    keep = np.sort(np.unique(before * len(PARTS) + part_of, return_index=True)[1])
    if twice := len(before) - len(keep):
        said = plural(twice, "row is there twice", "rows are there twice")
        _log.warning("%s: %s; each image counts once.", where, said)
    return keep
