"""Check the records of a training that a file holds, before their values are used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ltlearn.errors import UserError
from ltlearn.training.records import TrajectoryRecord
from ltlearn.utils.older_runs import checked_fields

__all__ = ["check_stored_stage", "stored_trajectory"]


@dataclass
class _StoredStage:
    """The fields of a stage that code reads; the others are printed alone."""

    stage: Literal["stage 1", "stage 2", "post hoc"]
    seconds: float
    method: str | None = None
    value: float | None = None
    chosen_on: str = ""
    epochs: int = 0
    loss: str | None = None
    sampler: str | None = None
    callbacks: list[str] = field(default_factory=list)
    then: list[dict[str, Any]] = field(default_factory=list)


def check_stored_stage(values: Mapping[str, Any]) -> None:
    """Raise a `UserError` unless values describe a stage, and the corrections that followed it.

    Args:
        values: What the file holds. The caller names the file.
    """
    stage = _StoredStage(**checked_fields(_StoredStage, values))
    if stage.stage == "post hoc" and not {"method", "value", "chosen_on"} <= values.keys():
        raise UserError("it does not describe the stage.")
    for later in stage.then:
        check_stored_stage(later)


def stored_trajectory(values: Mapping[str, Any]) -> TrajectoryRecord:
    """Return the trajectory in a file, which another version may have written.

    Args:
        values: What the file holds. The caller names the file.

    Raises:
        UserError: If a value is impossible, or a figure lacks an epoch.
    """
    try:
        trajectory = TrajectoryRecord(**checked_fields(TrajectoryRecord, values))
    except UserError as e:
        raise UserError(f"in the trajectory of the stage, {e}") from None
    if not trajectory.has_equal_columns():
        raise UserError("the stage lacks figures of an epoch.")
    return trajectory
