"""What a finished run left in its folder, for the pages about it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ltlearn.errors import UserError
from ltlearn.experiments.manifest import (
    MANIFEST_FILE,
    FinishedStage,
    Manifest,
    read_manifest,
    stage_name,
)
from ltlearn.experiments.results import find_ends
from ltlearn.methods import METHODS
from ltlearn.metrics.rows import read_rows
from ltlearn.metrics.shots import shot_groups
from ltlearn.names import SHOTS, tested_images
from ltlearn.training.records import TrajectoryRecord
from ltlearn.training.stored import stored_trajectory
from ltlearn.utils.run_folder import Run
from ltlearn.utils.stored_weights import is_compressed
from ltlearn.utils.system_errors import reason_of

__all__ = ["Predicted", "RecordedRun", "RecordedTable"]

_log = logging.getLogger("ltlearn")
_PREDICTIONS = "predictions.npz"
_DAMAGES = (ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True, eq=False)
class Predicted:
    """The predictions of a classifier on the tested images.

    Args:
        targets: The true classes.
        classes: The predicted classes.
        confidence: The probability of the predicted class.
        of_true: The probability of the true class; NaN where it is unknown.

    Shape:
        Each is (N,).
    """

    targets: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray
    of_true: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Return which images are classified correctly."""
        return self.targets == self.classes


@dataclass(eq=False)
class RecordedTable:
    """A table of results in the folder of a run.

    Args:
        run: The folder.
        manifest: The manifest of the run.
        results: The table, as `ResultTable.to_dict` writes it.
    """

    run: Run
    manifest: Manifest
    results: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """Return the row of each method, in the order of the table."""
        return {row["method"]: row for row in self.results["rows"]}

    @property
    def methods(self) -> list[str]:
        """List the methods in the order of the table."""
        return list(self.rows)

    @property
    def labels(self) -> dict[str, str]:
        """Return what each method is called."""
        return {method: row["label"] for method, row in self.rows.items()}

    @property
    def seeds(self) -> list[int]:
        """List the seeds."""
        return [int(seed) for seed in self.results["seeds"]]

    @property
    def few(self) -> str:
        """Return the rule for few-shot classes."""
        return self.results["few_rule"]

    @property
    def part(self) -> str:
        """Return which images are tested: "test" or "validation"."""
        return tested_images(self.results["protocol"])

    @cached_property
    def class_counts(self) -> list[int]:
        """Return the training images of each class."""
        return [int(n) for n in self.results["rows"][0]["reports"][0]["class_counts"]]

    @cached_property
    def classes(self) -> list[str]:
        """Return the names of the classes."""
        names = self.results["rows"][0]["reports"][0]["classes"] or self.manifest.classes
        return list(names or map(str, range(len(self.class_counts))))

    @cached_property
    def shots(self) -> list[str]:
        """Return the shot group of each class."""
        found = np.full(len(self.class_counts), SHOTS[1], dtype=object)
        for name, mask in shot_groups(self.class_counts, self.few).items():
            found[mask.numpy()] = name
        return found.tolist()

    @property
    def images(self) -> list[int]:
        """Return the tested images of each class, of the first seed."""
        return self.results["rows"][0]["reports"][0]["per_class_total"]

    @property
    def is_carved(self) -> bool:
        """Return whether the validation images were taken from the training images."""
        return (self.manifest.split or {}).get("valid_from") == "training images"

    def check(self) -> None:
        """Read what every page shows. A damaged table raises an error of any kind."""
        size = len(self.class_counts)
        if any(len(values) != size for values in (self.classes, self.shots, self.images)):
            raise ValueError(f"not every list has {size} classes")
        if not (self.seeds and all(self.labels.values())):
            raise ValueError("there are no seeds or labels")
        for method in self.methods:
            if self.accuracy(method).shape != (size,):
                raise ValueError(f"the accuracy of {method} has not {size} classes")

    def accuracy(self, method: str) -> np.ndarray:
        """Return the accuracy of each class, the mean over seeds; NaN for one without images.

        Args:
            method: The method.
        """
        values = [report["per_class"] for report in self.rows[method]["reports"]]
        return np.asarray(values, dtype=float).mean(0)


@dataclass(eq=False)
class RecordedRun(RecordedTable):
    """A finished run, read from its folder. Files that are missing or damaged are left out."""

    _cache: dict[tuple[str, int], Predicted | None] = field(default_factory=dict, init=False)

    @classmethod
    def read(cls, run: Run) -> "RecordedRun":
        """Read the run in a folder.

        Args:
            run: The folder.

        Raises:
            UserError: If there is no run, or it has no results yet.
        """
        manifest = read_manifest(run)
        if not manifest.is_finished or not (manifest.results or {}).get("rows"):
            raise UserError(
                f"the run {run.path} is not finished, so there is nothing to report; continue it "
                "with the command in its manifest.json."
            )
        recorded = cls(run, manifest, manifest.results)
        try:
            recorded.check()
        except _DAMAGES as e:
            raise UserError(
                f"{run.path / MANIFEST_FILE} is damaged: its results cannot be read "
                f"({type(e).__name__}: {e}); copy it again, or give another run."
            ) from None
        return recorded

    @property
    def ends(self) -> tuple[str, str]:
        """Return the first method and the last trained one, which plots compare."""
        first, last = find_ends(self.methods)
        return self.methods[first], self.methods[last]

    def predicted(self, method: str, seed: int) -> Predicted | None:
        """Return the predictions of a method; None if the run does not hold them.

        Args:
            method: The method.
            seed: The seed.
        """
        key = (method, seed)
        if key not in self._cache:
            self._cache[key] = self._read_predicted(method, seed)
        return self._cache[key]

    def all_predicted(self, method: str) -> Predicted | None:
        """Return the predictions of all seeds, one after the other.

        Args:
            method: The method.
        """
        found = [self.predicted(method, seed) for seed in self.seeds]
        if any(one is None for one in found):
            return None
        names = ("targets", "classes", "confidence", "of_true")
        return Predicted(*(np.concatenate([getattr(one, n) for one in found]) for n in names))

    def trajectories(self, method: str) -> list[TrajectoryRecord]:
        """Return the trajectory of each seed; an empty list if one is missing.

        Args:
            method: The method.
        """
        is_first = method in METHODS and METHODS[method].stage == 1
        found = []
        for seed in self.seeds:
            values = self._trajectory(seed, method, "stage1" if is_first else method)
            if values is None:
                return []
            found.append(values)
        return found

    def norms(self, method: str) -> np.ndarray | None:
        """Return the norm of each class's weights, the mean over seeds; None if unknown.

        Args:
            method: The method.
        """
        kept = [_norms_of(trajectory) for trajectory in self.trajectories(method)]
        if not kept or any(len(norms) != len(self.classes) for norms in kept):
            return None
        return np.mean(kept, axis=0)

    @cached_property
    def _arrays(self) -> Any:
        path = self.run.path / _PREDICTIONS
        if not path.is_file():
            return {}
        try:
            if is_compressed(path):
                raise ValueError("it is compressed, which no run writes")
            arrays = np.load(path)
            return arrays if isinstance(arrays, Mapping) else {}
        except Exception as e:  # NumPy raises errors of many kinds about a damaged file
            _log.warning("%s is damaged (%s) and is left out.", path, reason_of(e))
            return {}

    def _read_predicted(self, method: str, seed: int) -> Predicted | None:
        arrays, name = self._arrays, f"seed{seed}/{method}"
        targets = f"seed{seed}/targets"
        targets = targets if targets in arrays else "targets"
        is_whole = name in arrays
        if targets not in arrays or not (is_whole or f"{name}/classes" in arrays):
            return None
        try:
            true = arrays[targets]
            if is_whole:
                return _from_logits(arrays[name], true, len(self.classes))
            likeliest, values = arrays[f"{name}/classes"], arrays[f"{name}/probabilities"]
            of_true = np.where(likeliest == true[:, None], values, 0).max(1)
            of_true = np.where((likeliest == true[:, None]).any(1), of_true, np.nan)
            return Predicted(true, likeliest[:, 0], values[:, 0].astype(float), of_true)
        except Exception as e:  # as above, when NumPy reads an array
            _log.warning("%s is damaged (%s); %s is left out.", _PREDICTIONS, reason_of(e), name)
            return None

    @cached_property
    def _all_trajectories(self) -> list:
        content = self._read("trajectories.json")
        return content if isinstance(content, list) else []

    def _trajectory(self, seed: int, method: str, stage: str) -> TrajectoryRecord | None:
        """Return the trajectory of a method from the table of all, or from its own record."""
        position = self.seeds.index(seed)
        if position < len(self._all_trajectories):
            of_seed = self._all_trajectories[position]
            values = of_seed.get(method) if isinstance(of_seed, Mapping) else None
        else:
            values = None
        try:
            if values is not None:
                return stored_trajectory(values)
            record = self._read(f"{stage_name(seed, stage)}.json", sealed=None)
            return None if record is None else FinishedStage.from_dict(record).trajectory
        except UserError as e:
            _log.warning("the trajectory of %s is damaged (%s) and is left out.", method, e)
            return None

    def _read(self, name: str, sealed: bool | None = False) -> Any:
        if not (self.run.path / name).is_file():
            return None
        try:
            return self.run.read_json(name, sealed=sealed)
        except UserError as e:
            _log.warning("%s It is left out.", e)
            return None


def _norms_of(trajectory: TrajectoryRecord) -> list[float]:
    """Return the norms of the epoch that is kept."""
    if not trajectory.norms:
        return []
    epochs = trajectory.epoch
    kept = epochs.index(trajectory.chosen) if trajectory.chosen in epochs else -1
    return trajectory.norms[kept]


def _from_logits(logits: np.ndarray, targets: np.ndarray, num_classes: int) -> Predicted:
    if logits.shape != (len(targets), num_classes):
        raise UserError(f"logits of shape {logits.shape}")
    classes, confidence, nll, _ = read_rows(
        torch.from_numpy(logits), torch.from_numpy(targets), probabilities=False, name="logits"
    )
    return Predicted(targets, classes.numpy(), confidence.numpy(), np.exp(-nll.numpy()))
