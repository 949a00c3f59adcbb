"""The kinds of sources, and which reading options each takes."""

from collections.abc import Mapping
from pathlib import Path

from ltlearn.errors import UserError

__all__ = [
    "source_kind",
    "READ_ARGUMENTS",
    "SOURCE_KINDS",
    "PARAMETER_FLAGS",
    "reading_options",
    "flag_of",
]

_TABLES = (".csv", ".tsv", ".tab")


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


# How a source is read, by its kind: arguments of what lists it.
READ_ARGUMENTS = {
    "folder": (),
    "hf": ("image_col", "label_col"),
    "table": ("path", "image_col", "label_col", "split_col", "suffix", "valid", "test"),
    "json": ("path", "valid", "test"),
}
SOURCE_KINDS = {
    "folder": "a folder of images", "hf": "a saved dataset", "table": "a CSV or TSV table",
    "json": "annotations",
}  # fmt: skip
PARAMETER_FLAGS = {"path": "--images"}  # the others are called like their argument


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
    of_kinds = {name for names in READ_ARGUMENTS.values() for name in names}
    named = {"path" if k == "images" else k: v for k, v in options.items()}
    given = {k: v for k, v in named.items() if v is not None or k not in of_kinds}
    wrong = next((k for k in given if k in of_kinds and k not in READ_ARGUMENTS[kind]), None)
    if wrong is not None:
        kinds = [SOURCE_KINDS[k] for k, names in READ_ARGUMENTS.items() if wrong in names]
        raise UserError(
            f"{wrong} ({flag_of(wrong)}) is for {' or '.join(kinds)}, but {path} is "
            f"{SOURCE_KINDS[kind]}; leave it out."
        )
    return given


def flag_of(name: str) -> str:
    """Return what the command line calls an option of reading.

    Args:
        name: The option, such as "label_col".
    """
    return PARAMETER_FLAGS.get(name) or f"--{name.replace('_', '-')}"
