"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "RUN",
    "DATA",
    "DEVICE",
    "QUIET",
    "JSON",
    "SELECTS",
    "SELECT",
    "IMAGES",
    "IMAGE_COL",
    "LABEL_COL",
    "SPLIT_COL",
    "SUFFIX",
    "VALID",
    "TEST",
    "reading_values",
    "SET",
    "METHOD",
    "SIZE",
    "SEEDS",
    "PROTOCOL",
    "OUT",
    "RESUME",
    "PRECISION",
    "WORKERS",
    "SKIP_BAD",
    "ON_NAN",
    "KEEP_ALL",
    "TENSORBOARD",
]

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
DATA = Annotated[
    Path | None, typer.Option(help="Folder of the images; the run's own if not given.")
]
DEVICE = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
SELECTS = ("best", "last")
SELECT = Annotated[
    str, typer.Option(help="Which epoch of stage 2 is kept: best (on validation) or last.")
]
IMAGES = Annotated[
    Path | None,
    typer.Option(help="Folder that listed paths start from; that of the list if not given."),
]
IMAGE_COL = Annotated[
    str | None,
    typer.Option(
        help="Column of a table with the paths, by name or number from 0; found by its name if not "
        "given."
    ),
]
LABEL_COL = Annotated[str | None, typer.Option(help="Column of a table with the labels.")]
SPLIT_COL = Annotated[
    str | None,
    typer.Option(help="Column of a table that says train, valid or test; none takes none."),
]
SUFFIX = Annotated[
    str | None, typer.Option(help="What listed paths lack at their end, such as .jpg.")
]
VALID = Annotated[
    Path | None, typer.Option(help="A table or annotations of the validation images.")
]
TEST = Annotated[Path | None, typer.Option(help="A table or annotations of the test images.")]


def reading_values(images, image_col, label_col, split_col, suffix, valid, test) -> dict[str, Any]:
    """Return how a list is read, by the names that a recipe has for it; None is not given."""

    def column(name: str | None) -> str | int | None:
        return int(name) if name is not None and name.isdecimal() else name

    return {
        "images": None if images is None else str(images),
        "image_col": column(image_col),
        "label_col": column(label_col),
        "split_col": False if split_col == "none" else column(split_col),
        "suffix": suffix,
        "valid": None if valid is None else str(valid),
        "test": None if test is None else str(test),
    }


SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as stage2.epochs=10."),
]
METHOD = Annotated[
    str, typer.Option(help="Of `ltlearn methods`, between commas: how the classifier is retrained.")
]
SIZE = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels that images are brought to; that of small images of one size, "
        "else 224, if not given."
    ),
]
SEEDS = Annotated[int | None, typer.Option(help="How many seeds to run.")]
PROTOCOL = Annotated[
    str | None,
    typer.Option(help="clean: choose on validation images. paper: on the test folder."),
]
OUT = Annotated[
    Path | None, typer.Option(help="Folder of the run; made under runs_path if not given.")
]
RESUME = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
PRECISION = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
WORKERS = Annotated[int | None, typer.Option(help="Processes that read images from disk.", min=0)]
SKIP_BAD = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")]
ON_NAN = Annotated[
    str, typer.Option(help="A step whose loss is not finite: stop there, or skip it.")
]
KEEP_ALL = Annotated[bool, typer.Option("--keep-all", help="Keep the checkpoint of every epoch.")]
TENSORBOARD = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard's event files, too.")
]
