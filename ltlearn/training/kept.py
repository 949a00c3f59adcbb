"""The files in which a run keeps the classifiers that `compare` has made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ltlearn.training.records import Record, TrajectoryRecord
from ltlearn.training.stored import stored_trajectory
from ltlearn.utils.older_runs import checked_fields

__all__ = ["KEPT_FOLDER", "ClassifierRecord", "KeptName"]

KEPT_FOLDER = "compare"


class KeptName(NamedTuple):
    """What the name of a kept classifier's files consists of.

    Args:
        stage1_seed: Seed of stage 1.
        method: The method.
        seed: Seed of the later stages.
        select: Which epoch of stage 2 is kept: "best" or "last".
    """

    stage1_seed: int
    method: str
    seed: int
    select: str = "best"

    def __str__(self) -> str:
        """Return the name inside the run's folder, without an ending."""
        ending = "-last" if self.select == "last" else ""
        return f"{KEPT_FOLDER}/seed{self.stage1_seed}-{self.method}-{self.seed}{ending}"

    @classmethod
    def from_stem(cls, stem: str) -> "KeptName | None":
        """Read the name of a file without folder and ending; None if it is another file's name.

        Args:
            stem: The name.
        """
        match = re.fullmatch(r"seed(\d+)-([a-z][a-z0-9_]*)-(\d+)(-last)?", stem)
        if match is None:
            return None
        return cls(int(match[1]), match[2], int(match[3]), "last" if match[4] else "best")


@dataclass(eq=False)
class ClassifierRecord(Record):
    """The record beside the weights of a kept classifier.

    Args:
        key: The circumstances that decide the outcome.
        weights: The fingerprint of the weights.
        stages: A record of each stage.
        trajectory: Stage 2 epoch by epoch; None if nothing was trained.
        seconds: Seconds of training.
        prior: The class prior that the logits assume: "train" or "uniform". None: an earlier
            version made it.
    """

    key: dict[str, Any]
    weights: str
    stages: list[dict[str, Any]]
    trajectory: TrajectoryRecord | None
    seconds: float
    prior: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassifierRecord":
        """Return the record in a file, which another version may have written.

        Args:
            values: What the file holds.

        Raises:
            UserError: If a field is missing or has another type, or a figure lacks an epoch.
        """
        trajectory = values.get("trajectory") if isinstance(values, Mapping) else None
        if trajectory is not None:
            trajectory = stored_trajectory(trajectory)
            values = {**values, "trajectory": None}
        return cls(**{**checked_fields(cls, values), "trajectory": trajectory})
