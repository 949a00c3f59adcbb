"""The options of the commands: each is defined once, and travels as one value where many go."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltlearn.errors import check_choice, spell
from ltlearn.methods import METHODS
from ltlearn.names import FEW_RULES, ON_NAN, PRECISIONS, PRIORS, PROTOCOLS, SELECTS

if TYPE_CHECKING:
    from ltlearn.utils.settings import Settings

__all__ = [
    "ARCH",
    "COMPILE",
    "DATA",
    "DATA_SOURCE",
    "DEVICE",
    "FEW",
    "FOLLOW_LINKS",
    "IMAGES",
    "IMAGE_COL",
    "JSON",
    "KEEP_ALL",
    "LABEL_COL",
    "METHOD",
    "ON_NAN_OPTION",
    "OUT",
    "PRECISION",
    "PRIOR_NAMES",
    "PROTOCOL",
    "QUIET",
    "RESUME",
    "RUN",
    "ReadOptions",
    "RunFlags",
    "SEEDS",
    "SELECT",
    "SET",
    "SIZE",
    "SKIP_BAD",
    "SPLIT_COL",
    "STAGE1_NAMES",
    "SUFFIX",
    "TENSORBOARD",
    "TEST",
    "VALID",
    "WORKERS",
    "read_options",
]


def _choices(names) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


STAGE1_NAMES = _choices(name for name, row in METHODS.items() if row.kind == "stage 1")
PRIOR_NAMES = _choices(PRIORS)

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
DATA = Annotated[
    Path | None,
    typer.Option(help="Folder of the images; by default, the folder that the run used."),
]
DATA_SOURCE = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A folder per class; or train/, and optionally valid/ and test/, each with a folder "
        "per class; or a CSV, TSV or JSON file that lists images.",
        show_default=False,
    ),
]
DEVICE = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the results.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
SELECT = Annotated[
    str,
    typer.Option(
        help=f"Epoch of stage 2 whose weights are kept, {_choices(SELECTS)}: the best on the "
        "validation images, or the last."
    ),
]
FEW = Annotated[str, typer.Option(help=f"Which classes are few-shot: {_choices(FEW_RULES)}.")]

# How a source of images is read.
IMAGES = Annotated[
    Path | None,
    typer.Option(
        help="Folder that relative paths of a list start from; by default, the folder of the list."
    ),
]
IMAGE_COL = Annotated[
    str | None,
    typer.Option(
        help="Column of a table with the image paths: its name, or its number from 0. By default, "
        "it is recognised by its name."
    ),
]
LABEL_COL = Annotated[str | None, typer.Option(help="Column of a table with the labels.")]
SPLIT_COL = Annotated[
    str | None,
    typer.Option(help="Column of a table with train, valid or test; none ignores such a column."),
]
SUFFIX = Annotated[str | None, typer.Option(help="Ending to append to listed paths, such as .jpg.")]
VALID = Annotated[
    Path | None, typer.Option(help="A table or annotations of the validation images.")
]
TEST = Annotated[Path | None, typer.Option(help="A table or annotations of the test images.")]

# How a recipe is run.
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as stage2.epochs=10."
    ),
]
METHOD = Annotated[
    str,
    typer.Option(
        help="How to retrain the classifier: names of `ltlearn methods`, separated by commas."
    ),
]
ARCH = Annotated[str, typer.Option(help="Architecture of the model in timm.", show_default=False)]
SIZE = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels that images are resized to. By default, small images of one size keep "
        "it, and others get 224."
    ),
]
SEEDS = Annotated[int | None, typer.Option(help="Number of seeds to run.")]
PROTOCOL = Annotated[
    str | None,
    typer.Option(
        help=f"{PROTOCOLS[0]}: select on validation images. {PROTOCOLS[1]}: select on the test "
        "set, as published results often do."
    ),
]
OUT = Annotated[
    Path | None, typer.Option(help="Folder of the run; by default, a new folder in runs_path.")
]
RESUME = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
PRECISION = Annotated[str | None, typer.Option(help=f"{_choices(PRECISIONS)}.")]
WORKERS = Annotated[int | None, typer.Option(help="Processes that read images from disk.", min=0)]
SKIP_BAD = Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable images.")]
FOLLOW_LINKS = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Allow links in the folder of a listed benchmark to lead out of it."
    ),
]
ON_NAN_OPTION = Annotated[
    str,
    typer.Option(help=f"What to do when a step's loss is not finite: {_choices(ON_NAN)}."),
]
KEEP_ALL = Annotated[bool, typer.Option("--keep-all", help="Keep the checkpoint of every epoch.")]
COMPILE = Annotated[
    bool, typer.Option("--compile", help="Compile the backbone for stage 1 (torch.compile).")
]
TENSORBOARD = Annotated[
    bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")
]


@dataclass(frozen=True)
class ReadOptions:
    """How a source of images is read. None is an option that was not given.

    Args:
        images: Folder that relative paths start from.
        image_col: Column of the image paths, by name or by number from 0.
        label_col: Column of the labels, likewise.
        split_col: Column of the parts, likewise; False uses none.
        suffix: Ending that is appended to every path of a table.
        valid: File that lists the validation images.
        test: File that lists the test images.
    """

    images: str | None = None
    image_col: str | int | None = None
    label_col: str | int | None = None
    split_col: str | int | bool | None = None
    suffix: str | None = None
    valid: str | None = None
    test: str | None = None

    def given(self) -> dict[str, str | int | bool]:
        """Return the options that were given, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def read_options(images, image_col, label_col, split_col, suffix, valid, test) -> ReadOptions:
    """Return the reading options for the values of their flags."""

    def column(name: str | None) -> str | int | None:
        return int(name) if name is not None and name.isdecimal() else name

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return ReadOptions(
        images=text(images),
        image_col=column(image_col),
        label_col=column(label_col),
        split_col=False if split_col == "none" else column(split_col),
        suffix=suffix,
        valid=text(valid),
        test=text(test),
    )


@dataclass(frozen=True)
class RunFlags:
    """How a recipe is run and its result printed.

    Args:
        settings: The settings in force.
        out: Folder of the run; None makes one.
        resume: Whether to continue a run.
        quiet: Whether to print only the results.
        as_json: Whether to print the results as JSON.
        on_nan: "stop" or "skip".
        skip_bad: Whether to leave out unreadable images.
        keep_all: Whether to keep the checkpoint of every epoch.
        tensorboard: Whether to write TensorBoard event files.
        compile: Whether to compile the backbone.
        follow_links: Whether links may lead out of a benchmark's folder.
        num_workers: Processes that read images; None takes the setting.

    Raises:
        UserError: If `on_nan` is neither of its names.
    """

    settings: "Settings"
    out: Path | None = None
    resume: bool = False
    quiet: bool = False
    as_json: bool = False
    on_nan: str = "stop"
    skip_bad: bool = False
    keep_all: bool = False
    tensorboard: bool = False
    compile: bool = False
    follow_links: bool = False
    num_workers: int | None = None

    def __post_init__(self):
        check_choice(spell("on_nan"), self.on_nan, ON_NAN)
