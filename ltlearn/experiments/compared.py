"""Find a classifier that `compare` made in a run, and put it into the run's model."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltlearn.errors import UserError, spell_call
from ltlearn.experiments.manifest import stage_name
from ltlearn.methods import find_method, stage1_methods
from ltlearn.models.backbone import LTModel
from ltlearn.models.weights_file import check_sizes
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.kept import KEPT_FOLDER, ClassifierRecord, KeptName
from ltlearn.utils.run_folder import Run

__all__ = [
    "BEST",
    "COMPARE_FILE",
    "ComparedClassifier",
    "EarlierTable",
    "find_compared",
    "kept_methods",
]

_log = logging.getLogger("ltlearn")
COMPARE_FILE = "compare.json"
# The name that stands for the method with the best accuracy on the validation images.
BEST = "best"


@dataclass(frozen=True)
class ComparedClassifier:
    """A classifier that `compare` made in a run.

    Args:
        run: The run's folder.
        name: The name of its files.
    """

    run: Run
    name: KeptName

    @property
    def method(self) -> str:
        """Return the method."""
        return self.name.method

    @property
    def is_stage1(self) -> bool:
        """Return whether it is the classifier of stage 1, which has no files of its own."""
        return self.method in stage1_methods()

    @property
    def stage1_file(self) -> Path:
        """Return the weights of the stage 1 that it belongs to."""
        return self.run.path / f"{stage_name(self.name.stage1_seed, 'stage1')}.safetensors"

    def record(self) -> ClassifierRecord:
        """Read the record beside the weights.

        Raises:
            UserError: If it is missing or damaged.
        """
        file = f"{self.name}.json"
        content = self.run.read_json(file, sealed=None)
        try:
            return ClassifierRecord.from_dict(content)
        except UserError as e:
            raise UserError(
                f"{self.run.path / file} is damaged: {e.message.rstrip('.')}; remove it and run "
                f"{_compare_again(self.run)}."
            ) from None

    def prior(self, methods: Mapping[str, Mapping[str, str]]) -> str:
        """Return the class prior that the logits assume: "train" or "uniform".

        Args:
            methods: Label, head and prior of the run's own methods, by name.
        """
        recorded = None if self.is_stage1 else self.record().prior
        if recorded in ("train", "uniform"):
            return recorded
        row = find_method(self.method)
        if not self.is_stage1 and row.prior != "stage 1":
            return row.prior
        own = [facts["prior"] for name, facts in methods.items() if name in stage1_methods()]
        return own[0] if own else row.prior.replace("stage 1", "train")

    def put_into(self, model: LTModel) -> None:
        """Load the classifier into a model that has the weights of stage 1.

        Args:
            model: The model.

        Raises:
            UserError: If the files are missing or damaged, or belong to another stage 1.
        """
        if self.is_stage1:
            return
        record, weights = self.record(), self.run.path / f"{self.name}.safetensors"
        if record.key.get("stage1") != weights_fingerprint(model):
            raise UserError(
                f"{weights} was made from another stage 1 than {self.stage1_file}; run "
                f"{_compare_again(self.run)}."
            )
        if record.key.get("method", self.method) != self.method:
            raise UserError(
                f"{weights} has the name of {self.method}, but its record is that of another "
                f"method; remove it and run {_compare_again(self.run)}."
            )
        check_sizes(weights, model)
        state = self.run.load_tensors(f"{self.name}.safetensors")
        backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
        is_whole = any(not name.startswith("head.") for name in state)
        try:
            model.load_state_dict({**backbone, **state})
            is_good = record.weights == weights_fingerprint(model if is_whole else model.head)
        except (RuntimeError, AttributeError):
            is_good = False
        if not is_good:
            raise UserError(
                f"{weights} is damaged: the weights are not those of its record; remove it and run "
                f"{_compare_again(self.run)}."
            )


def find_compared(
    folder: Path,
    file: Path | None,
    method: str | None,
    own: Collection[str],
    seed: int | None = None,
) -> ComparedClassifier | None:
    """Find the classifier that `compare` made; None if a file or method of the run itself is meant.

    Args:
        folder: The run's folder.
        file: A file of weights; None for a method of the run.
        method: The method, or "best" for the one that the last comparison found best.
        own: The methods that the run itself trained.
        seed: Seed of stage 1. None: any.

    Raises:
        UserError: If "best" is asked for and nothing was compared.
    """
    run = Run(folder)
    if file is not None:
        name = KeptName.from_stem(file.stem)
        is_kept = name is not None and file.absolute().parent.name == KEPT_FOLDER
        return ComparedClassifier(run, name) if is_kept else None
    table = None
    if method is not None and method not in own:
        table = EarlierTable.read(run)
    if method == BEST and BEST not in own:
        if table is None:
            raise UserError(
                f"the run {folder} has no comparison, so no best method is known; run "
                f"{_compare_again(run)} first."
            )
        # The comparison may have trained it otherwise than the run.
        method, own = table.best, ()
        if method in stage1_methods():
            return ComparedClassifier(run, KeptName(seed or 0, method, 0))
    if method is None or method in own:
        return None
    select = table.select if table is not None and method in table.runs else BEST
    kept = [
        name
        for name in _kept_names(run)
        if name.method == method and seed in (None, name.stage1_seed)
    ]
    if not kept and own == ():
        raise UserError(
            f"the run {folder} no longer has the classifier that {COMPARE_FILE} names as the best; "
            f"run {_compare_again(run)}."
        )
    # The classifier in the table comes first, then those of other tables.
    kept.sort(key=lambda name: (name.select != select, name))
    return ComparedClassifier(run, kept[0]) if kept else None


def kept_methods(run: Run) -> list[str]:
    """List the methods that `compare` made a classifier of.

    Args:
        run: The run's folder.
    """
    return sorted({name.method for name in _kept_names(run)})


def _kept_names(run: Run) -> list[KeptName]:
    files = sorted((run.path / KEPT_FOLDER).glob("*.safetensors"))
    names = (KeptName.from_stem(file.stem) for file in files)
    return [name for name in names if name is not None]


def _compare_again(run: Run) -> str:
    return spell_call("compare_run", run=str(run.path))


@dataclass(frozen=True)
class EarlierTable:
    """The table of an earlier comparison of a run, as far as a later one needs it.

    Args:
        content: What `compare.json` holds.
        runs: Pairs of the seed of stage 1 and the seed of the later stages, by method.
        priors: Class priors that the rows were reported under.
        best: The best method on the validation images.
        select: Which epoch of stage 2 was kept; None in tables of earlier versions.
    """

    content: dict[str, Any]
    runs: dict[str, set[tuple[int, int]]]
    priors: list[str]
    best: str
    select: str | None

    @classmethod
    def read(cls, run: Run) -> "EarlierTable | None":
        """Read the table of a run; None if there is none or it is damaged.

        Args:
            run: The run's folder.
        """
        if not (run.path / COMPARE_FILE).is_file():
            return None
        try:
            content = run.read_json(COMPARE_FILE)
            rows = content["rows"]
            runs = {
                str(row["method"]): {(int(r["stage1_seed"]), int(r["seed"])) for r in row["runs"]}
                for row in rows
            }
            priors = [str(name) for row in rows for run_ in row["priors"] for name in run_]
            best, select = str(content["best_on_validation"]), content.get("select")
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            _log.warning("%s is damaged and is not used.", run.path / COMPARE_FILE)
            return None
        return cls(content, runs, list(dict.fromkeys(priors)), best, select)
