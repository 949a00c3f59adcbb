"""Accuracies that were measured with the recipes, in small files that come with the library.

`scripts/record_result RUN` writes them from a finished run. The lists of recipes, the pages of the
documentation and its tables read them, so that no figure is typed.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ltlearn.errors import UserError
from ltlearn.experiments.sections import PublishedFigure, RecipeSection
from ltlearn.names import FIGURES, PROTOCOLS, SHOTS
from ltlearn.utils.text import validation_reason

__all__ = [
    "FINGERPRINTS",
    "Hardware",
    "MeasuredResult",
    "MeasuredRow",
    "measured_results",
    "results_folder",
]

FINGERPRINTS = ("train", "valid", "test", "order")


class MeasuredRow(RecipeSection):
    """The accuracy of one method.

    Args:
        method: The method.
        label: Its label in tables.
        selected: How the epoch was chosen.
        accuracy: Means over the seeds in %: all, balanced, many, medium, few. A group without
            classes is left out.
        deviation: Standard deviations over the seeds, in points; empty with one seed.
        published: The published figure of all images under the same protocol and values.
        by_epoch: Class-balanced accuracy in % before stage 2 and after each of its epochs, of the
            first seed, on the images that choose the epoch. Empty without a stage 2 of epochs.
        last_epoch: Accuracy on all images after the last epoch in %, the mean over the seeds. None
            where no epoch was selected on the test images.
        to_stage1: Difference to stage 1 in class-balanced accuracy, in points: estimate, low end
            and high end of the 95 % interval. None in a run.
    """

    method: str
    label: str
    selected: str = ""
    accuracy: dict[Literal[FIGURES], float]
    deviation: dict[Literal[FIGURES], float] = {}
    published: PublishedFigure | None = None
    by_epoch: list[float] = []
    last_epoch: float | None = None
    to_stage1: tuple[float, float | None, float | None] | None = None

    @property
    def passed(self) -> bool | None:
        """Return whether the figure is within the tolerance; None without a published one."""
        if self.published is None:
            return None
        return self.published.passes(self.accuracy["all"])


class Hardware(RecipeSection):
    """The machine that a result was measured on.

    Args:
        device: Name of the graphics card or the processor.
        cores: Processor cores.
        threads: Threads of torch.
        precision: Precision of the training.
    """

    device: str
    cores: int | None = None
    threads: int | None = None
    precision: str = ""


class MeasuredResult(RecipeSection):
    """The accuracies of a run, or of a comparison on its stage 1, with the values behind them.

    Args:
        kind: "run", or "comparison" of methods on one stage 1.
        recipe: The recipe.
        protocol: "clean" or "paper".
        dataset: The dataset.
        imbalance_factor: Its imbalance factor; None where the recipe names none.
        split: How the images were chosen.
        fingerprints: Fingerprints of the images of the first seed: train, valid, test, order.
        arch: The network.
        width: Its width; None where the network has none.
        epochs: Epochs of stage 1.
        changed: Values that differ from the recipe, as "key = value".
        stage1: The method of stage 1.
        seeds: The seeds of stage 1.
        groups: Number of many-, medium- and few-shot classes.
        few: Which classes are few-shot.
        rows: A row per method.
        command: The command, with DIR and RUN for folders.
        commit: The commit of the code that ran.
        hardware: The machine.
        versions: Versions of ltlearn, torch and Python.
        training_seconds: Seconds of training, all stages and seeds together; None: not recorded.
    """

    kind: Literal["run", "comparison"]
    recipe: str
    protocol: Literal[PROTOCOLS]
    dataset: str
    imbalance_factor: float | None = None
    split: str
    fingerprints: dict[Literal[FINGERPRINTS], str | None]
    arch: str
    width: int | None = None
    epochs: int
    changed: list[str] = []
    stage1: str
    seeds: list[int] = Field(min_length=1)
    groups: dict[Literal[SHOTS], int]
    few: str
    rows: list[MeasuredRow] = Field(min_length=1)
    command: str
    commit: str = Field(pattern=r"^[0-9a-f]{7,40}$")
    hardware: Hardware
    versions: dict[str, str | None] = {}
    training_seconds: float | None = None

    @property
    def name(self) -> str:
        """Return the name of its file, without the suffix."""
        factor = "" if self.imbalance_factor is None else f"-{self.imbalance_factor:g}"
        compared = "-compared" if self.kind == "comparison" else ""
        return f"{self.recipe}-{self.stage1}{factor}-{self.protocol}{compared}"

    @property
    def set_name(self) -> str:
        """Return the dataset with its imbalance factor."""
        factor = "" if self.imbalance_factor is None else f" {self.imbalance_factor:g}"
        return f"{self.dataset}{factor}"

    @property
    def accuracies(self) -> dict[str, float]:
        """Return the accuracy on all images in %, by method."""
        return {row.method: row.accuracy["all"] for row in self.rows}

    @property
    def changes(self) -> str:
        """Return the values that differ from the recipe, as a short text."""
        return ", ".join(self.changed)

    def row(self, method: str) -> MeasuredRow | None:
        """Return the row of a method; None if it has none.

        Args:
            method: The method.
        """
        return next((row for row in self.rows if row.method == method), None)

    def describe(self) -> str:
        """Return figures, protocol and changed values, as a list of recipes prints them."""
        figures = ", ".join(f"{row.method} {row.accuracy['all']:.1f}" for row in self.rows)
        about = [self.protocol, *self.changed]
        return f"{figures} ({', '.join(about)})"

    def to_json(self) -> str:
        """Return the text of its file."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1) + "\n"


def results_folder() -> Path | None:
    """Return the folder of the results: in the installed package, or beside it in a source tree.

    None if there is no result yet.
    """
    package = Path(__file__).parents[1]
    folders = (package / "results", package.parent / "results")
    return next((folder for folder in folders if folder.is_dir()), None)


def measured_results(folder: Path | None = None) -> list[MeasuredResult]:
    """Return the results, by name of their file.

    Args:
        folder: The folder of the files. None takes the files that come with the library.

    Raises:
        UserError: If a file holds no result. The message names it.

    Example:
        >>> [result.recipe for result in measured_results()]  # doctest: +SKIP
        ['cifar100_lt_w16']
    """
    folder = folder or results_folder()
    return [_read(file) for file in sorted(folder.glob("*.json"))] if folder is not None else []


def _read(file: Path) -> MeasuredResult:
    try:
        return MeasuredResult.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as e:
        error = e.errors()[0]
        key = ".".join(map(str, error["loc"]))
        reason = f" ({f'{key}: ' if key else ''}{validation_reason(error)})"
    except UnicodeDecodeError:
        reason = ""
    raise UserError(f"{file} holds no result{reason}; record it again.")
