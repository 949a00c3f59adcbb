"""Read WebDataset shards: tar files with an image and its label in each sample."""

import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ltlearn.data.images import natural_key
from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.columns import LABEL_COLUMNS, guess_column
from ltlearn.data.readers.labels import encode_labels, match_classes
from ltlearn.data.readers.parts import PART_OF_NAME, ListedImages
from ltlearn.data.readers.rows import RowBytes, Rows, row_images
from ltlearn.data.readers.tables import read_table
from ltlearn.data.readers.webdataset_index import SampleFields, ShardIndex, index_shard
from ltlearn.errors import UserError, spell
from ltlearn.names import PART_LABELS, PARTS
from ltlearn.utils.extras import check_packages
from ltlearn.utils.progress import track
from ltlearn.utils.system_errors import reason_of

__all__ = ["is_shards", "list_shards"]

_log = logging.getLogger("ltlearn")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: C: is a drive
_COUNT_COLUMNS = ("count", "counts", "images", "n")
_HEADER = tarfile.BLOCKSIZE
_MOST_NAMED = 3  # classes in a message


def is_shards(path: str | Path) -> bool:
    """Return whether a path names tar files: it ends in .tar, or is a folder of them.

    Args:
        path: A file, a folder, or a pattern such as "train-{000..009}.tar".
    """
    return str(path).lower().endswith(".tar") or _holds_shards(Path(path))


def _holds_shards(folder: Path) -> bool:
    """Return whether a folder holds tar files, or folders named train, valid or test that do."""
    if not folder.is_dir():
        return False
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not inside:
        return bool(_tars_in(folder))
    return all(p.name.lower() in PART_OF_NAME and _tars_in(p) for p in inside)


def _tars_in(folder: Path) -> list[Path]:
    names = [p for p in folder.iterdir() if p.suffix.lower() == ".tar" and p.name[0] != "."]
    return sorted(names, key=lambda p: natural_key(p.name))


class _ShardRows(Rows):
    """The images of some shards, by number. Each is read at its offset.

    Args:
        files: The shards.
        indices: The samples of each shard.
    """

    def __init__(self, files: Sequence[Path], indices: Sequence[ShardIndex]):
        self.files = list(files)
        self.starts = np.cumsum([0, *map(len, indices)])
        self.offsets = np.concatenate([index.offsets for index in indices])
        self.sizes = np.concatenate([index.sizes for index in indices])

    def __str__(self) -> str:
        return str(self.files[0].parent)

    def open_row(self, row: int) -> RowBytes:
        file = self.files[int(np.searchsorted(self.starts, row, side="right")) - 1]
        offset, size = int(self.offsets[row]), int(self.sizes[row])
        with open(file, "rb", buffering=0) as stream:
            # The header before the image has its name. So an index needs no names in memory.
            stream.seek(offset - _HEADER)
            content = stream.read(_HEADER + size)
        return _ShardImage(content[_HEADER:], str(file), content[:_HEADER])

    def identity(self, numbers: np.ndarray) -> bytes:
        # Samples that are left out change the numbers of the others, but not their offsets.
        shards = np.searchsorted(self.starts, numbers, side="right")
        return shards.tobytes() + self.offsets[numbers].tobytes()


class _ShardImage(RowBytes):
    """An encoded image; messages name its shard and its file in the shard."""

    def __init__(self, content: bytes, shard: str, header: bytes):
        super().__init__(content, shard)
        self.header = header

    def __str__(self) -> str:
        try:
            name = tarfile.TarInfo.frombuf(self.header, "utf-8", "surrogateescape").name
        except tarfile.TarError:
            name = "an image that the shard had when it was indexed"
        return f"{self.row}, {name}"


def list_shards(
    shards: str | Path | Sequence[str | Path], options: ReadOptions | None = None
) -> ListedImages:
    """List the images of WebDataset shards; each is read at its offset when it is needed.

    A sample is a group of files with the same name before the first dot, one after another. The
    headers of each shard are read once; the index is kept beside it.

    Args:
        shards: The training shards: tar files, a pattern such as "train-{000..009}.tar" or
            "train-*.tar", or a list of them. A folder holds shards whose names have the word
            train, valid, val, validation or test, or folders with such names; without any, all
            are training shards.
        options: Uses `valid` and `test`, the shards of these parts; `image_col`, the extension of
            the images; `label_col`, the extension of the labels, or their key in .json; `counts`, a
            JSON or CSV file that maps each class to its number of training images, in the order of
            the class numbers; and `skip_bad`. None takes the defaults.

    Raises:
        UserError: If there are no such files, one is remote, compressed or damaged, a sample lacks
            an image or a label, a label is not in training, or the counts differ.
    """
    options = options or ReadOptions()
    check_packages("reading WebDataset shards", "webdataset", "webdataset")
    fields = SampleFields(*(_text(c) for c in (options.image_col, options.label_col)))
    files, name = _part_files(shards, options)
    counts = None if options.counts is None else _read_counts(Path(options.counts).expanduser())
    parts, classes = {}, []
    for part in PARTS:
        if part not in files:
            continue
        indices = [
            index_shard(file, fields, options.skip_bad)
            for file in track(files[part], len(files[part]), "reading the headers of shards")
        ]
        where = str(files[part][0].parent)
        if not sum(map(len, indices)):
            raise UserError(
                f"{where}: the {PART_LABELS[part]} shards have no samples; give others."
            )
        targets, names = _targets_of(indices, files[part], counts)
        if part == "train":
            classes = names
            if counts is not None:
                _check_counts(targets, counts, options)
        else:
            locate = partial(_sample_of, files[part], indices)
            targets = match_classes(targets, names, classes, locate, part)
        parts[part] = row_images(_ShardRows(files[part], indices), targets)
    kind = "shards by part" if len(parts) > 1 else "shards"
    return ListedImages(parts, classes, kind, name, str(files["train"][0].parent))


def _text(column: str | int | None) -> str | None:
    return None if column is None else str(column)


# ---------------------------------------------------------------- files


def _part_files(shards, options: ReadOptions) -> tuple[dict[str, list[Path]], str]:
    """Return the shards of each part, and the name of the dataset."""
    one = shards if isinstance(shards, str | Path) else None
    folder = None if one is None else Path(one).expanduser()
    if folder is not None and folder.is_dir():
        files, name = _folder_parts(folder), folder.resolve().name
    else:
        files = {"train": _expand(shards)}
        stem = re.sub(r"\{.*?\}|[*?]", "", (folder or files["train"][0]).stem).strip("-_. ")
        name = stem or files["train"][0].resolve().parent.name
    for part, given in (("valid", options.valid), ("test", options.test)):
        if given is not None:
            files[part] = _expand(given)
    seen: dict[str, str] = {}
    for part, listed in files.items():
        for file in listed:
            if (other := seen.setdefault(os.path.realpath(file), part)) != part:
                raise UserError(
                    f"the shard {file} is given for {PART_LABELS[other]} and for "
                    f"{PART_LABELS[part]} images; give it for one of them."
                )
    return files, name


def _folder_parts(folder: Path) -> dict[str, list[Path]]:
    """Return the shards in a folder by part, from the names of folders or files."""
    files: dict[str, list[Path]] = {}
    named = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in PART_OF_NAME]
    if named:
        for inside in named:
            files.setdefault(PART_OF_NAME[inside.name.lower()], []).extend(_tars_in(inside))
    else:
        tars = _tars_in(folder)
        of = [next(filter(None, map(PART_OF_NAME.get, _words(p.stem))), None) for p in tars]
        for file, part in zip(tars, of, strict=True):
            if part is None and any(of):
                raise UserError(
                    f"{file} has none of the words {', '.join(PART_OF_NAME)} in its name, but "
                    "other shards beside it have; give the shards of each part by their names."
                )
            files.setdefault(part or "train", []).append(file)
    if "train" not in files:
        raise UserError(
            f"{folder} has no training shards; give the folder or the names of some .tar files."
        )
    return files


def _words(stem: str) -> list[str]:
    return re.findall(r"[a-z]+", stem.lower())


def _expand(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that names and patterns stand for."""
    from webdataset.shardlists import expand_urls

    files: list[Path] = []
    for given in [shards] if isinstance(shards, str | Path) else shards:
        if _REMOTE.match(str(given)):
            raise UserError(
                f"{given} is remote or a pipe, where no image can be read by its offset, as "
                "sampling by class needs; copy the shards to a disk of this machine first."
            )
        text = os.path.expanduser(str(given))
        if os.path.isdir(text):
            found = [str(p) for p in _tars_in(Path(text))]
        else:
            try:
                names = expand_urls(text)
            except Exception as e:  # an environment variable that is not set
                raise UserError(f"{given} cannot be expanded ({e}); correct it.") from None
            found = []
            for name in names:
                is_pattern = glob.has_magic(name) and not os.path.exists(name)
                found += sorted(glob.glob(name), key=natural_key) if is_pattern else [name]
        if not found:
            raise UserError(f"{given} names no shards; give .tar files.")
        files += map(Path, found)
    if not files:
        raise UserError("no shards are given; give .tar files.")
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f", nor {len(missing) - 1:,} more of the shards" if len(missing) > 1 else ""
        raise UserError(f"there is no {missing[0]}{more}; fetch them, or correct the name.")
    twice = len(files) - len({os.path.realpath(file) for file in files})
    if twice:
        raise UserError(f"{twice:,} of the shards {shards} are given twice; give each once.")
    return files


# ---------------------------------------------------------------- labels and counts


def _sample_of(files: Sequence[Path], indices: Sequence[ShardIndex], i: int) -> str:
    ends = np.cumsum([len(index) for index in indices])
    shard = int(np.searchsorted(ends, i, side="right"))
    return f"{files[shard]}, sample {i - int(ends[shard]) + len(indices[shard])}"


def _targets_of(
    indices: Sequence[ShardIndex], files: Sequence[Path], counts: dict[str, int] | None
) -> tuple[np.ndarray, list[str]]:
    """Return the class of each sample, and the class names."""
    import pandas as pd

    number: dict[str, int] = {}
    maps = [
        np.array([number.setdefault(label, len(number)) for label in index.labels], dtype=np.int64)
        for index in indices
    ]
    codes = np.concatenate([m[index.codes] for m, index in zip(maps, indices, strict=True)])
    labels = list(number)
    if counts is None:
        _, first = np.unique(codes, return_index=True)
        of_label, names = encode_labels(
            pd.Series(labels, dtype=object), lambda c: _sample_of(files, indices, int(first[c]))
        )
        return of_label[codes], names
    names = list(counts)
    index = {name: c for c, name in enumerate(names)}
    if not all(label in index for label in labels):
        # A .cls holds the number of the class.
        index |= {str(c): c for c in range(len(names)) if str(c) not in index}
    of_label = np.array([index.get(label, -1) for label in labels], dtype=np.int64)
    if (of_label < 0).any():
        code = int((of_label < 0).argmax())
        raise UserError(
            f"{_sample_of(files, indices, int((codes == code).argmax()))}: the label "
            f"{labels[code]!r} is none of the {len(names):,} classes in {spell('counts')}; correct "
            "one of the two."
        )
    return of_label[codes], names


def _read_counts(file: Path) -> dict[str, int]:
    """Return the number of training images by class, in the order of the file."""
    try:
        if file.suffix.lower() == ".json":
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            if isinstance(content, list):
                content = {str(c): n for c, n in enumerate(content)}
            pairs = list(content.items())
        else:
            table, _ = read_table(file)
            names = list(table.columns)
            label = guess_column(names, LABEL_COLUMNS)
            count = guess_column(names, _COUNT_COLUMNS)
            columns = (0 if label is None else label, 1 if count is None else count)
            cells = (table.iloc[:, column].str.strip() for column in columns)
            pairs = [(name, int(n)) for name, n in zip(*cells, strict=True)]
    except OSError as e:
        raise UserError(f"cannot read {file} ({reason_of(e)}); give a JSON or CSV file.") from None
    except UserError:
        raise
    except (ValueError, AttributeError, IndexError, RecursionError) as e:
        # The text of the other kinds is about Python, and not about the file.
        reason = f" ({e})" if isinstance(e, ValueError) else ""
        raise UserError(
            f"{file} must map the name of each class to its number of training images, as JSON or "
            f"CSV{reason}; correct it."
        ) from None
    counts = {str(name): n for name, n in pairs}
    bad = next((n for n in counts.values() if not isinstance(n, int) or n < 0), None)
    if len(counts) < len(pairs) or bad is not None or len(counts) < 2:
        fault = f"the number {bad!r}" if bad is not None else f"{len(counts):,} classes by name"
        raise UserError(
            f"{file} has {fault}; give two or more classes, each once, with a whole number of "
            "images of at least 0."
        )
    return counts


def _check_counts(targets: np.ndarray, counts: dict[str, int], options: ReadOptions) -> None:
    """Compare the counts with the samples; otherwise nobody notices a missing shard."""
    found = np.bincount(targets, minlength=len(counts))
    wrong = [(n, c, int(f)) for (n, c), f in zip(counts.items(), found, strict=True) if c != f]
    if not wrong:
        return
    texts = [f"{f:,} of {c:,} images of {n!r}" for n, c, f in wrong[:_MOST_NAMED]]
    more = f" and {len(wrong) - _MOST_NAMED:,} more classes" if len(wrong) > _MOST_NAMED else ""
    sentence = f"the shards have {', '.join(texts)}{more} in {options.counts}"
    if options.skip_bad:
        _log.warning("%s; the shards count.", sentence)
        return
    raise UserError(f"{sentence}; fetch the shards that are missing, or correct the counts.")
