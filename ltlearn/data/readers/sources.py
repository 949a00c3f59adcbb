"""Choose the reader of a source: a folder, a saved dataset, shards, a table or annotations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ltlearn.data.options import ReadOptions
from ltlearn.data.readers.annotations import list_json
from ltlearn.data.readers.folders import list_folder
from ltlearn.data.readers.hf import is_saved_dataset, list_dataset
from ltlearn.data.readers.parts import ListedImages
from ltlearn.data.readers.tables import list_table
from ltlearn.data.readers.webdataset import is_shards, list_shards
from ltlearn.errors import UserError, spell

__all__ = ["list_images", "list_source", "reading_options", "source_kind"]

_TABLES = (".csv", ".tsv", ".tab")
_KIND_LABELS = {
    "folder": "a folder of images",
    "hf": "a saved dataset",
    "webdataset": "WebDataset shards",
    "table": "a CSV or TSV table",
    "json": "annotations",
}
# Parameters that each kind of source has, as the constructors of `LTDataLoaders` name them.
_PARAMETERS = {
    "folder": (),
    "hf": ("image_col", "label_col"),
    "webdataset": ("image_col", "label_col", "valid", "test", "counts"),
    "table": ("path", "image_col", "label_col", "split_col", "suffix", "valid", "test"),
    "json": ("path", "valid", "test"),
}


def source_kind(path: Path) -> str:
    """Return the kind of a source: "folder", "hf", "webdataset", "table" or "json".

    Args:
        path: The folder or file, or a pattern of .tar files.

    Raises:
        UserError: If the path does not exist or is none of these.
    """
    if is_shards(path):
        return "webdataset"
    if path.is_dir():
        return "hf" if is_saved_dataset(path) else "folder"
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a folder of class folders, a CSV or TSV table, a JSON of "
            "annotations, or .tar files of WebDataset."
        )
    suffix = path.suffix.lower()
    if suffix in _TABLES or suffix == ".json":
        return "json" if suffix == ".json" else "table"
    raise UserError(
        f"{path} is no folder and does not end in {', '.join(_TABLES)}, .json or .tar; give a "
        "folder of class folders, a table, annotations, or WebDataset shards."
    )


def reading_options(path: Path, options: Mapping) -> dict:
    """Return the options that are given, and check that they fit the kind of source.

    Args:
        path: The folder or file.
        options: Reading options by name, None where not given, and any other options. `images` is
            another name of `path`, the folder that listed paths start from.

    Raises:
        UserError: If an option belongs to another kind of source.
    """
    kind = source_kind(path)
    reading = {name for names in _PARAMETERS.values() for name in names}
    named = {"path" if k == "images" else k: v for k, v in options.items()}
    given = {k: v for k, v in named.items() if v is not None or k not in reading}
    wrong = next((k for k in given if k in reading and k not in _PARAMETERS[kind]), None)
    if wrong is not None:
        kinds = [_KIND_LABELS[k] for k, names in _PARAMETERS.items() if wrong in names]
        raise UserError(
            f"{spell(wrong)} is for {_either(kinds)}, but {path} is {_KIND_LABELS[kind]}; "
            "leave it out."
        )
    return given


def _either(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def list_images(source: str | Path, skip_bad: bool = False, **options) -> ListedImages:
    """List the images of a folder, a table, annotations, a saved dataset or WebDataset shards.

    Args:
        source: The folder or file.
        skip_bad: Leave out listed images that are missing, instead of raising.
        **options: Further fields of `ltlearn.data.options.ReadOptions` that fit the source;
            `images` may also be called `path`.

    Raises:
        UserError: If the source is none of these, or cannot be used.

    Example:
        >>> listed = list_images("photos/list.csv", label_col="species")  # doctest: +SKIP
        >>> listed.classes  # doctest: +SKIP
        ['ant', 'bee', 'cat']
    """
    path = Path(source).expanduser()
    given = reading_options(path, options)
    if "path" in given:
        given["images"] = given.pop("path")
    return list_source(path, ReadOptions(skip_bad=skip_bad, **given))


def list_source(
    path: Path, options: ReadOptions, problems: list[str] | None = None
) -> ListedImages:
    """List the images of a folder or file.

    Args:
        path: The folder or file.
        options: How a list is read. A folder has no such options.
        problems: Collects contradictions in a table or in annotations, as in `list_table`.

    Raises:
        UserError: As `list_images` does.
    """
    kind = source_kind(path)
    if kind == "folder":
        return list_folder(path)
    if kind in ("hf", "webdataset"):
        return (list_dataset if kind == "hf" else list_shards)(path, options)
    reader = list_json if kind == "json" else list_table
    return reader(path, options, problems)
