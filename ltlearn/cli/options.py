"""The options of the commands. Each is defined once."""

from pathlib import Path
from typing import Annotated

import typer

from ltlearn.names import (
    DEFAULT_STAGE2,
    DEFAULT_WITH_RESET,
    FEW_RULES,
    ON_NAN,
    PRECISIONS,
    PRIORS,
    PROTOCOLS,
    SELECTS,
)

__all__ = [
    "ALLOW_HUB",
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
    "MEAN",
    "METHOD",
    "ON_NAN_OPTION",
    "OUT",
    "PRECISION",
    "PRIOR_NAMES",
    "PROTOCOL",
    "QUIET",
    "RESUME",
    "RUN",
    "SEEDS",
    "SELECT",
    "SET",
    "SIZE",
    "SKIP_BAD",
    "SPLIT_COL",
    "STD",
    "SUFFIX",
    "TENSORBOARD",
    "TEST",
    "VALID",
    "WEIGHTS_KEY",
    "WORKERS",
]


def _choices(names) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


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
        "per class; or a CSV, TSV or JSON file that lists images; or .tar files of WebDataset.",
        show_default=False,
    ),
]
ALLOW_HUB = Annotated[
    bool,
    typer.Option(
        "--allow-hub",
        help="Fetch the architecture from the Hugging Face hub if the run names one there.",
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
    Path | None, typer.Option(help="A table, annotations or shards of the validation images.")
]
TEST = Annotated[
    Path | None, typer.Option(help="A table, annotations or shards of the test images.")
]

# How a recipe is run.
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as stage2.epochs=10."
    ),
]
METHOD = Annotated[
    str | None,
    typer.Option(
        help="How to retrain the classifier: names of `ltlearn methods`, separated by commas. By "
        f"default, {DEFAULT_STAGE2}, or {DEFAULT_WITH_RESET} after experts (--stage1 balpoe or "
        "sade), whose classifier no stage 2 keeps."
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
MEAN = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean per channel that images are normalised with, for pixels from 0 to 1. By "
        "default, what the file of the weights or timm states, or ImageNet's.",
    ),
]
STD = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Standard deviation per channel, together with --mean."),
]
WEIGHTS_KEY = Annotated[
    str | None,
    typer.Option(
        help="Which weights are taken from a file that holds several sets, such as state_dict_ema."
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
