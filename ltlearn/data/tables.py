"""Lists of pictures from wherever they stand: folders, tables, annotations, Hugging Face datasets.

Everything here ends in `ListedPictures`. No picture is opened to list it.
"""

import csv as csv_cells
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from ltlearn.data.listed import Listing, find_pictures, read_annotations
from ltlearn.data.sources import (
    EXTENSIONS,
    ImageSet,
    _natural_key,
    _unreadable,
    find_class_folders,
    list_class_folders,
    walk_visible,
)
from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError
from ltlearn.progress import track
from ltlearn.text import clean

__all__ = [
    "ListedPictures",
    "RowPictures",
    "columns_text",
    "find_split_folders",
    "flag_of",
    "list_dataset",
    "list_folder",
    "list_json",
    "list_pictures",
    "list_table",
    "read_table",
    "reading_options",
    "source_kind",
]

PARTS = ("train", "valid", "test")
_PART_OF = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_SPOKEN = {"train": "training", "valid": "validation", "test": "test"}

# Names that a column is found by, in any case, the likeliest first.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "img")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels")
SPLIT_COLUMNS = ("split", "subset", "partition")

_TABLES = (".csv", ".tsv", ".tab")
# How a source is read, by its kind: arguments of what lists it.
_READING = {
    "folder": (),
    "hf": ("image_col", "label_col"),
    "table": ("path", "image_col", "label_col", "split_col", "suffix", "valid", "test"),
    "json": ("path", "valid", "test"),
}
_SOURCES = {
    "folder": "a folder of pictures", "hf": "a saved dataset", "table": "a CSV or TSV table",
    "json": "annotations",
}  # fmt: skip
_FLAGS = {"path": "--images"}  # the others are called like their argument
_SHOWN = 20  # column names in a message
_NAMED = 5  # folders in a message

_log = logging.getLogger("ltlearn")


@dataclass
class ListedPictures:
    """Pictures by part ("train" and any of "valid" and "test"), and what a run calls them."""

    parts: dict[str, ImageSet]
    classes: list[str]
    split_name: str  # of `SplitInfo`
    dataset: str
    where: Path | str  # for messages
    columns: dict[str, str] = field(default_factory=dict)  # of a table: what was read from which


def list_pictures(
    source: str | Path, skip_bad: bool = False, stops: list[str] | None = None, **options
) -> ListedPictures:
    """List the pictures of a folder, a CSV or TSV table or a JSON of annotations.

    Args:
        source: The folder or file.
        skip_bad: Leave out listed pictures that are not there, instead of stopping at one.
        stops: As for `list_table`; of a folder none are said.
        **options: For `list_table` or `list_json`, whichever reads it.

    Raises:
        UserError: If it is none of these, or cannot be used.
    """
    path = Path(source).expanduser()
    kind, options = source_kind(path), reading_options(path, options)
    if kind == "hf":
        raise UserError(
            f"{path} is a saved Hugging Face dataset, whose pictures are no files; read it with "
            "LTDataLoaders.from_hf."
        )
    if kind == "folder":
        return list_folder(path)
    return {"json": list_json, "table": list_table}[kind](
        path, skip_bad=skip_bad, stops=stops, **options
    )


def reading_options(path: Path, options: Mapping) -> dict:
    """Return the options that are given; one that says nothing of such a source is an error.

    Args:
        path: The folder or file.
        options: Those of the kind of source by name, None where not given, and any others. `images`
            is another name of `path`, the folder that listed paths start from.

    Raises:
        UserError: If an option is of another kind of source.
    """
    kind = source_kind(path)
    of_kinds = {name for names in _READING.values() for name in names}
    named = {"path" if k == "images" else k: v for k, v in options.items()}
    given = {k: v for k, v in named.items() if v is not None or k not in of_kinds}
    wrong = next((k for k in given if k in of_kinds and k not in _READING[kind]), None)
    if wrong is not None:
        kinds = [_SOURCES[k] for k, names in _READING.items() if wrong in names]
        raise UserError(
            f"{wrong} ({flag_of(wrong)}) is for {' or '.join(kinds)}, but {path} is "
            f"{_SOURCES[kind]}; leave it out."
        )
    return given


def flag_of(name: str) -> str:
    """Return what the command line calls an option of reading.

    Args:
        name: The option, such as "label_col".
    """
    return _FLAGS.get(name) or f"--{name.replace('_', '-')}"


def columns_text(columns: Mapping[str, str]) -> str:
    """Say what was read from which column.

    Args:
        columns: Those of `ListedPictures`.
    """
    return ", ".join(f"{what} from {clean(column)!r}" for what, column in columns.items())


def source_kind(path: Path) -> str:
    """Tell what a path holds: "folder", "hf" (saved with `save_to_disk`), "table" or "json".

    Args:
        path: The folder or file.

    Raises:
        UserError: If there is nothing, or something else.
    """
    if path.is_dir():
        one = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
        return "hf" if one or (path / "dataset_dict.json").is_file() else "folder"
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a folder of class folders, a CSV or TSV table, or a JSON of "
            "annotations."
        )
    suffix = path.suffix.lower()
    if suffix in _TABLES or suffix == ".json":
        return "json" if suffix == ".json" else "table"
    raise UserError(
        f"{path} is no folder and does not end in {', '.join(_TABLES)} or .json; give a folder of "
        "class folders, a table, or annotations."
    )


# ---------------------------------------------------------------- folders


def list_folder(root: Path) -> ListedPictures:
    """List a folder of class folders, or of parts that have those.

    Args:
        root: The folder, as `LTDataLoaders.from_folder` takes it.

    Raises:
        UserError: If it is missing, has no class folders or pictures, or a later part has a class
            that training has not.
    """
    folders = find_split_folders(root)
    train, classes = list_class_folders(folders.get("train", root))
    parts = {"train": train}
    for part in PARTS[1:]:
        if part in folders:
            parts[part] = list_class_folders(folders[part], classes)[0]
    name = "folders" if folders else "one folder"
    return ListedPictures(parts, classes, name, root.resolve().name, root)


def find_split_folders(root: Path) -> dict[str, Path]:
    """Find the folders of the parts in a folder; none where it holds the class folders itself.

    Their names are read in any case. A folder beside them that holds pictures is none of a part, so
    its pictures are left out: with a warning where two parts show that the folder is made of parts.

    Args:
        root: The folder.

    Raises:
        UserError: If it has a validation or test folder, but none for training; two folders of one
            part; or a training folder alone, beside others with pictures, which may be classes.
    """
    inside = find_class_folders(root) if root.is_dir() else []
    named = {part: [p for p in inside if _PART_OF.get(p.name.lower()) == part] for part in PARTS}
    # A part has class folders inside. A folder of pictures may be a class that is called "train".
    split = {part: [p for p in found if find_class_folders(p)] for part, found in named.items()}
    folders = {part: (split[part] or found)[0] for part, found in named.items() if found}
    if not split["train"]:
        later = split["valid"] + split["test"]
        if later:
            raise UserError(
                f"{root} has {later[0].name}/ but no train/ with class folders; add it, give the "
                f"folder that holds a folder of pictures per class, or, if {later[0].name} is a "
                "class, rename its folder."
            )
        return folders if "train" in folders and set(inside) <= set(folders.values()) else {}
    for part, found in split.items():
        if len(found) > 1:
            raise UserError(
                f"{root} has {len(found)} {_SPOKEN[part]} folders, "
                f"{' and '.join(f'{p.name}/' for p in found)}; leave one of them there."
            )
    beside = [p.name for p in inside if p not in folders.values() and _has_pictures(p)]
    if not beside:
        return folders
    names = ", ".join(f"{name}/" for name in beside[:_NAMED])
    names += f" and {len(beside) - _NAMED:,} more" if len(beside) > _NAMED else ""
    if not split["valid"] and not split["test"]:
        train = folders["train"].name
        raise UserError(
            f"{root} has pictures in {names} beside {train}/, whose folders would be all the "
            f"classes; move those out of it, or, if {train} is a class like them, rename its "
            "folder."
        )
    _log.warning(
        "%s: the pictures in %s are left out; a part is called train, valid or test.", root, names
    )
    return folders


def _has_pictures(folder: Path) -> bool:
    return any(
        os.path.splitext(f)[1].lower() in EXTENSIONS
        for _, files in walk_visible(folder)
        for f in files
    )


# ---------------------------------------------------------------- tables


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
) -> ListedPictures:
    """List the pictures of a table: a row each, with its path and its label.

    Class names are in natural order (2_cat before 10_cat), integers by value. Rows that are there
    twice count once, with a warning. Two rows are the same picture if their paths are, however they
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
        skip_bad: Leave out pictures that are not there, with a warning, instead of stopping.
        suffix: What every path ends in and the table leaves out, such as ".jpg".
        valid: A file that lists the validation pictures likewise; its relative paths start from the
            same folder.
        test: Of the test pictures, likewise.
        stops: Takes a sentence for each kind of rows that contradict each other, instead of an
            error, to look at what cannot be trained on: of two labels the first counts, and a
            picture in two parts is in both. Pictures that are not there, and labels that training
            lacks, are then listed like others. None stops at all of these.

    Raises:
        UserError: If the table is empty or lacks a column, a cell is empty, a picture is not there,
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
    targets, classes = _label(pd.concat([r.labels for r in read], ignore_index=True), place)
    part_of = np.array([number for number, _ in given], dtype=np.int8)[table_of]
    if splits is not None:
        part_of = _parts_of(splits, place, columns["split"])
    if stops is None:
        _check_trained(targets, part_of, classes, place)
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
            parts[part] = _find(listing, paths.root, True, skip_bad, "path", stops is not None)
    name = "one table" if len(read) == 1 else "tables"
    return ListedPictures(
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
        raise UserError(f"{where} has no rows; give one a picture, with its path and its label.")
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
    bar in the first line. If that line names a picture, by its extension or because it is there, it
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
            raise UserError(f"{file} is empty; give it a row for each picture.")
        tabs = file.suffix.lower() in (".tsv", ".tab")
        sep = "\t" if tabs else max(",\t;|", key=first.count)
        cells = next(csv_cells.reader([first], delimiter=sep))
        bare = any(_is_picture(c.strip(), root or file.parent, suffix) for c in cells)
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


def _is_picture(cell: str, root: Path, suffix: str) -> bool:
    """Tell whether a cell of the first line names a picture."""
    if os.path.splitext(cell)[1].lower() in EXTENSIONS:
        return True
    # With a suffix, a picture image.jpg must not make a row of the header "image".
    named = cell.lower() not in (*IMAGE_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS)
    return bool(cell) and named and os.path.isfile(os.path.join(root, cell + suffix))


def _find_columns(df, where: str, image_col, label_col, split_col) -> tuple[int, int, int | None]:
    """Return the positions of the columns of paths, labels and parts."""
    names = list(df.columns)
    shown = ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
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
    empty = _empty(cells)
    if empty.any():
        more = int(empty.sum()) - 1
        raise UserError(
            f"{place(int(empty.argmax()))}: the {what} is empty (column {df.columns[column]!r})"
            f"{f', and so are {more:,} more' if more else ''}; fill it in or remove the row."
        )
    return cells


def _empty(cells) -> np.ndarray:
    """Tell which cells of a series are missing or have no text."""
    import pandas as pd

    empty = cells.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return empty
    bare = (isinstance(cell, str) and not cell.strip() for cell in cells)
    return empty | np.fromiter(bare, bool, len(cells))


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
                    f"{place(i)}: {cell!r} is no path of a picture; name the column of the paths "
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


def _label(cells, place: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Return the class of each label, and the classes: in natural order, or by value."""
    import pandas as pd

    codes, values = pd.factorize(cells)
    first = dict(zip(*np.unique(codes, return_index=True), strict=True))
    names = []
    for code, value in enumerate(values):
        if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
            # A column of integers becomes one of floats where a cell was once empty.
            if value != value or value in (np.inf, -np.inf) or value != int(value):
                raise UserError(
                    f"{place(int(first[code]))}: the label {value!r} is neither text nor an "
                    "integer; name the column of the labels with label_col (--label-col)."
                )
            names.append(str(int(value)))
        else:
            names.append(str(value).strip())
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    classes = sorted(set(names), key=(lambda n: (int(n), n)) if numbers else _natural_key)
    index = {name: c for c, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64)[codes], classes


def _parts_of(cells, place: Callable[[int], str], column) -> np.ndarray:
    """Return the number of the part of each row."""
    number = {word: PARTS.index(part) for word, part in _PART_OF.items()}
    out = np.empty(len(cells), dtype=np.int8)
    for i, cell in enumerate(cells):
        part = number.get(str(cell).strip().lower())
        if part is None:
            raise UserError(
                f"{place(i)}: {cell!r} in the column {column!r} must be one of "
                f"{', '.join(_PART_OF)}; mend it, or pass split_col=False (--split-col none) to "
                "take all rows for training."
            )
        out[i] = part
    if not (out == 0).any():
        raise UserError(f"{place(0)} and all others are of no training picture; mark some 'train'.")
    return out


def _check_trained(targets, part_of, classes, place: Callable[[int], str]) -> None:
    """Refuse a class that only later parts have."""
    trained = np.bincount(targets[part_of == 0], minlength=len(classes)) > 0
    lost = ~trained[targets]
    if lost.any():
        i = int(lost.argmax())
        raise UserError(
            f"{place(i)}: the {_SPOKEN[PARTS[part_of[i]]]} label {classes[targets[i]]!r} is not "
            "among the training labels; add training pictures of it, or remove it."
        )


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
            also = f", and {_plural(more, 'more row is', 'more rows are')} like it" if more else ""
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
        "a picture has one label: remove the wrong row",
    )
    refuse(
        part_of != part_of[before],
        lambda i: f"a {_SPOKEN[PARTS[part_of[i]]]} picture",
        "figures would be of pictures that training has seen: remove one of the rows",
    )
    # The first of each picture in each part.
    keep = np.sort(np.unique(before * len(PARTS) + part_of, return_index=True)[1])
    if twice := len(before) - len(keep):
        said = _plural(twice, "row is there twice", "rows are there twice")
        _log.warning("%s: %s; each picture counts once.", where, said)
    return keep


def _plural(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


def _find(
    listing: Listing,
    root: str | Path,
    follow_links: bool,
    skip_bad: bool,
    parameter: str,
    keep_missing: bool = False,
) -> ImageSet:
    """Look for the pictures; what is not there is an error, left out, or kept as it is."""
    data, missing = find_pictures(listing, Path(root), follow_links=follow_links)
    if not len(missing):
        return data
    i = int(missing[0])
    if len(missing) == len(data):
        # A table of names without their extension is common.
        bare = not os.path.splitext(data.paths[i])[1] and listing.place_word == "row"
        hint = ", or what they end in as suffix (--suffix .jpg)" if bare else ""
        if "\\" in data.paths[i] and os.sep == "/":
            hint += r", and write / for the \ of Windows in them"
        raise UserError(
            f"{listing.place(i)}: there is no {data.root / data.paths[i]}, nor any other of the "
            f"{len(data):,}; give the folder that the paths start from as {parameter} "
            f"({flag_of(parameter)}){hint}."
        )
    if keep_missing:
        return data
    if not skip_bad:
        more = f", nor {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"{listing.place(i)}: there is no {data.root / data.paths[i]}{more}; mend it, or leave "
            "such pictures out with --skip-bad (skip_bad=True)."
        )
    for i in missing:
        _log.warning("left out: %s: there is no %s", listing.place(i), data.root / data.paths[i])
    kept = data.take(np.setdiff1d(np.arange(len(data)), missing))
    kept.skipped = [str(data.root / data.paths[i]) for i in missing]
    return kept


# ---------------------------------------------------------------- annotations


def list_json(
    json: str | Path,
    path: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    stops: list[str] | None = None,
) -> ListedPictures:
    """List the pictures of annotations in COCO's JSON, as iNaturalist has them: a label each.

    Classes are the categories of the training file, with or without pictures, in the order of their
    ids. Those of other files are matched by name.

    Args:
        json: Of the training pictures.
        path: Folder that file names start from, and that they may not leave; None takes the one of
            the file.
        valid: Of the validation pictures.
        test: Of the test pictures.
        skip_bad: Leave out pictures that are not there, with a warning, instead of stopping.
        follow_links: Whether a link inside `path` may lead out of it.
        stops: Takes a sentence for each file that has pictures of another, instead of an error;
            pictures that are not there are then listed like others. None stops at both.

    Raises:
        UserError: If a file cannot be read, a picture is not there or in two files, or a validation
            or test label is not in training.
    """
    file = Path(json).expanduser()
    root = file.parent if path is None else Path(path).expanduser()
    listings = {"train": read_annotations(file)}
    for part, given in (("valid", valid), ("test", test)):
        if given is not None:
            listings[part] = read_annotations(Path(given).expanduser())
    classes, parts = listings["train"].classes, {}
    seen: dict[str, str] = {}
    for part, listing in listings.items():
        listing.targets = _match(listing.targets, listing.classes, classes, listing.place, part)
        paths = [listing.path(i) for i in range(len(listing))]
        shared = next((i for i, p in enumerate(paths) if p in seen), None)
        if shared is not None:
            sentence = (
                f"{listing.place(shared)}: {paths[shared]!r} is in {seen[paths[shared]]} too; "
                "figures would be of pictures that training has seen: remove one of the two."
            )
            if stops is None:
                raise UserError(sentence)
            stops.append(sentence)
        seen.update(dict.fromkeys(paths, str(listing.file)))
        parts[part] = _find(listing, root, follow_links, skip_bad, "path", stops is not None)
    name = "JSON parts" if len(parts) > 1 else "one JSON"
    return ListedPictures(parts, classes, name, file.stem, str(file))


def _match(
    targets: np.ndarray, names: list[str], classes: list[str], place: Callable, part: str
) -> np.ndarray:
    """Return the targets under the names of a later part as those of training."""
    if names == classes:
        return targets
    index = {name: c for c, name in enumerate(classes)}
    moved = np.array([index.get(name, -1) for name in names], dtype=np.int64)[targets]
    if (moved < 0).any():
        i = int((moved < 0).argmax())
        raise UserError(
            f"{place(i)}: the {_SPOKEN[part]} label {names[targets[i]]!r} is not among the "
            "training labels; add it there, or remove it here."
        )
    return moved


# ---------------------------------------------------------------- Hugging Face datasets


class _RowBytes(io.BytesIO):
    """An encoded picture that says where it is from."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.row = name

    def __str__(self) -> str:
        return self.row


class _Rows:
    """A column of pictures; `rows / "12"` opens the one of row 12, as a folder's opens a file."""

    def __init__(self, data, column: str, name: str):
        self.data, self.column, self.name = data, column, name
        self._digests: dict[str, bytes] = {}

    def __str__(self) -> str:
        return self.name

    def __truediv__(self, row: str) -> "_RowBytes | Path":
        picture = self.data[int(row)][self.column]
        name = f"{self.name}, row {row}"
        if isinstance(picture, Mapping):
            path, picture = picture.get("path"), picture.get("bytes")
            picture = path if picture is None else picture
        if isinstance(picture, str):
            return Path(picture)
        if picture is None:
            return _RowBytes(b"", f"{name} (which is empty)")
        if isinstance(picture, bytes):
            return _RowBytes(picture, name)
        raise UserError(
            f"{name}: the column {self.column!r} holds {type(picture).__name__}, no encoded "
            "pictures; name the column of the pictures with image_col."
        )

    def digest(self, row: str) -> bytes:
        """Name the content of a row; it is read once."""
        if row not in self._digests:
            picture = self / row
            try:
                content = picture.read_bytes() if isinstance(picture, Path) else picture.getvalue()
            except OSError as e:
                raise _unreadable(picture, e.strerror) from None
            self._digests[row] = hashlib.sha256(content).digest()
        return self._digests[row]


@dataclass
class RowPictures(ImageSet):
    """Labelled pictures in the rows of a dataset: `paths` has their numbers, `root` opens them."""

    def take(self, index: np.ndarray) -> "RowPictures":
        """Return the pictures at `index`, in that order."""
        taken = super().take(index)
        # `learn.export()` stores a loader without pictures: the dataset must not go along.
        root = self.root if len(taken) else None
        return RowPictures(taken.targets, taken.images, taken.paths, root, taken.skipped)

    def fingerprint(self) -> str:
        """Name the content: pixels in memory, or else the encoded pictures.

        Raises:
            UserError: If a file that a row names is gone.
        """
        if self.images is not None:
            return super().fingerprint()
        rows = track(self.paths, len(self.paths), "fingerprint of the pictures")
        return fingerprint(map(self.root.digest, rows), self.targets)


def list_dataset(
    dataset, image_col: str | None = None, label_col: str | None = None
) -> ListedPictures:
    """List the pictures of a Hugging Face dataset; each is read from its row when it is needed.

    Args:
        dataset: A `datasets.Dataset`, a `datasets.DatasetDict` with a "train" and any of "valid",
            "val", "validation" and "test", or a folder that either was saved to with
            `save_to_disk` (needs the extra `hf`).
        image_col: Column of the pictures: of type Image, or of encoded bytes or paths. None takes
            the first of type Image, or else one by the names that tables have.
        label_col: Column of the labels: of type ClassLabel, or text or integers. None takes one by
            the names that tables have, or else the only one of type ClassLabel.

    Raises:
        UserError: If it is no such dataset, lacks a column or a label, or a validation or test
            label is not in training.
    """
    dataset, name = _open_dataset(dataset)
    sets = {}
    if isinstance(dataset, Mapping):
        for key, data in dataset.items():
            part = _PART_OF.get(str(key).lower())
            if part is None:
                _log.warning("%s: left out the part %r, which is none of %s.", name, key,
                             ", ".join(_PART_OF))  # fmt: skip
            elif part in sets:
                raise UserError(f"{name} has two {_SPOKEN[part]} parts; remove one of them.")
            else:
                sets[part] = key, data
        if "train" not in sets:
            raise UserError(
                f"{name} has no part 'train', only {', '.join(map(repr, dataset))}; rename one, or "
                "give the dataset of one part."
            )
    else:
        sets["train"] = None, dataset
    parts, classes = {}, []
    for part in PARTS:
        if part in sets:
            key, data = sets[part]
            where = name if key is None else f"{name}[{key!r}]"
            _check_rows(data, where)
            image, label = _dataset_columns(data, where, image_col, label_col)
            targets, names = _dataset_labels(data, label, where)
            if part == "train":
                classes = names
            else:
                targets = _match(targets, names, classes, partial(_row_of, where), part)
            parts[part] = _row_pictures(data, image, targets, where)
    kind = "dataset splits" if len(parts) > 1 else "one dataset"
    return ListedPictures(parts, classes, kind, name, name)


def _row_of(where: str, i: int) -> str:
    return f"{where}, row {i}"


def _open_dataset(dataset) -> tuple:
    """Return the dataset, read from its folder if need be, and its name."""
    if not isinstance(dataset, str | Path):
        some = next(iter(dataset.values()), None) if isinstance(dataset, Mapping) else dataset
        info = getattr(some, "info", None)
        name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None)
        return dataset, name or "dataset"
    folder = Path(dataset).expanduser()
    if not folder.is_dir() or source_kind(folder) != "hf":
        raise UserError(
            f"{folder} is no folder that save_to_disk wrote; give one, or what "
            "datasets.load_dataset returns."
        )
    try:
        from datasets import load_from_disk
    except ImportError:
        raise UserError(
            f"reading {folder} needs Hugging Face datasets: pip install 'ltlearn[hf]'."
        ) from None
    try:
        return load_from_disk(str(folder)), folder.resolve().name
    except Exception as e:  # what a damaged file raises has no end
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"cannot read the dataset {folder} ({reason}); save it again.") from None


def _check_rows(data, where: str) -> None:
    if not hasattr(data, "features") or not hasattr(data, "__len__"):
        streamed = hasattr(data, "features") and hasattr(data, "__iter__")
        what = "is streamed" if streamed else f"is a {type(data).__name__}, no dataset"
        raise UserError(
            f"{where} {what}; give a datasets.Dataset or DatasetDict (load_dataset without "
            "streaming), or a folder that save_to_disk wrote."
        )
    if not len(data):
        raise UserError(f"{where} has no rows; leave the part out, or give it pictures.")


def _dataset_columns(data, where: str, image_col, label_col) -> tuple[str, str]:
    """Return the columns of pictures and labels."""
    features = dict(data.features or {})

    def kinds(kind: str) -> list[str]:
        return [name for name, feature in features.items() if type(feature).__name__ == kind]

    def named(likely: Sequence[str]) -> str | None:
        lower = {name.lower(): name for name in reversed(features)}
        return next((lower[name] for name in likely if name in lower), None)

    labels = kinds("ClassLabel")
    found = {
        "image_col": next(iter(kinds("Image")), None) or named(IMAGE_COLUMNS),
        "label_col": named(LABEL_COLUMNS) or (labels[0] if len(labels) == 1 else None),
    }
    given = {"image_col": image_col, "label_col": label_col}
    for parameter, what in (("image_col", "the pictures"), ("label_col", "the labels")):
        column = found[parameter] if given[parameter] is None else given[parameter]
        if column not in features:
            is_not = f"no column {column!r}" if column else f"no one column of {what}"
            raise UserError(
                f"{where} has {is_not} ({parameter}); its columns are "
                f"{', '.join(list(features)[:_SHOWN])}."
            )
        found[parameter] = column
    return found["image_col"], found["label_col"]


def _dataset_labels(data, column: str, where: str) -> tuple[np.ndarray, list[str]]:
    import pandas as pd

    names = getattr(data.features[column], "names", None)
    plain = data.with_format(None) if hasattr(data, "with_format") else data
    cells = pd.Series(list(plain[column][:]), dtype=None if names is None else object)
    place = partial(_row_of, where)
    empty = _empty(cells)
    if names is not None:
        known = cells.where(~empty, -1).to_numpy(np.int64, copy=True)
        empty |= (known < 0) | (known >= len(names))
    if empty.any():
        i = int(empty.argmax())
        raise UserError(
            f"{place(i)} has no label (column {column!r}: {cells[i]!r}); leave the part out, or "
            "remove such rows."
        )
    if names is not None:
        return known, list(names)
    return _label(cells, place)


def _row_pictures(data, column: str, targets: np.ndarray, where: str) -> RowPictures:
    """Return the pictures of a column, which stay encoded."""
    feature = data.features[column]
    if hasattr(data, "with_format"):
        data = data.with_format(None)
    if hasattr(data, "select_columns"):
        data = data.select_columns([column])
    if type(feature).__name__ == "Image" and hasattr(data, "cast_column"):
        data = data.cast_column(column, type(feature)(decode=False))
    rows = _Rows(data, column, where)
    return RowPictures(targets, paths=[str(i) for i in range(len(targets))], root=rows)
