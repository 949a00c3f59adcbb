"""Records of a training: the facts of a stage, and its figures epoch by epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["PosthocRecord", "Record", "StageRecord", "TrajectoryRecord", "describe_selection"]


class Record(Mapping):
    """A dataclass that also reads as a mapping: `record["epochs"]` is `record.epochs`.

    A subclass is a dataclass. Fields that are None are left out of the mapping and of `to_dict`
    when the subclass lists them in `_optional`. pandas takes `to_dict()`, not the record itself.
    """

    _optional: frozenset[str] = frozenset()

    def _names(self) -> list[str]:
        names = [f.name for f in fields(self)]
        return [n for n in names if n not in self._optional or getattr(self, n) is not None]

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
        values = asdict(self)
        return {name: values[name] for name in self._names()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]):
        """Return the record that `to_dict` converted.

        Args:
            values: The fields by name.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        return cls(**values)


@dataclass(eq=False)
class TrajectoryRecord(Record):
    """The figures of a fit, one entry per epoch.

    Args:
        epoch: The epochs; 0 is before the first step.
        loss: The mean training loss; None before the first step.
        all: Accuracy on the validation loader, from 0 to 1.
        balanced: The mean of the accuracies per class.
        many: The mean over many-shot classes; None if there are none.
        medium: The same for medium-shot classes.
        few: The same for few-shot classes.
        norms: The norm of each class's weights.
        seconds: Seconds since the fit began.
        chosen: The epoch whose weights are kept.
        select_on: What the validation loader holds: "validation" or "test".
        select: "best" or "last".
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    balanced: list[float] = field(default_factory=list)
    many: list[float | None] = field(default_factory=list)
    medium: list[float | None] = field(default_factory=list)
    few: list[float | None] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    chosen: int | None = None
    select_on: str = "validation"
    select: str = "best"

    def has_equal_columns(self) -> bool:
        """Return whether each figure is a list with an entry for each epoch."""
        columns = [getattr(self, f.name) for f in fields(self) if f.default_factory is list]
        return all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns)

    def describe_choice(self) -> str:
        """Return which epoch is kept and on which images it was selected."""
        if not self.epoch:
            return "no epoch trained"
        if self.select == "last" or self.chosen is None:
            return "last epoch"
        where = "selected on test" if self.select_on == "test" else "on validation"
        return f"epoch {self.chosen} {where}"


@dataclass(eq=False, kw_only=True)
class StageRecord(Record):
    """What a stage trained and how, for the manifest.

    Args:
        stage: "stage 1" or "stage 2".
        trained: The trained part of the model.
        bn: Mode of batch normalisation: "train", "frozen" or "last_block".
        on: "images", or "features" with the number of views.
        batch: Batch size.
        sampler: Name of the sampler.
        head: "kept" or "new".
        epochs: Number of epochs.
        lr: Learning rate; in stage 1 also a slice or list (backbone, head).
        weight_decay: Weight decay.
        schedule: Name of the learning-rate schedule.
        milestones: Epochs at which the learning rate falls, with "multistep" only.
        decay: Factor at each milestone, with "multistep" only.
        compiled: Whether the backbone was compiled; None if that was not requested.
        method: Name of the method; None for a training without a named method.
        loss: Name of the loss.
        parameters: Number of parameters of the trained module.
        callbacks: Names of the callbacks.
        precision: Precision of the model.
        chosen_epoch: Epoch whose weights are kept.
        chosen_on: Data that the epoch was chosen on.
        seconds: Duration.
        leaves_prior: Whether the logits keep the training prior. None: unknown, as in a record of
            an earlier run. It is not written to disk.
    """

    stage: str
    trained: str
    bn: str
    on: str
    batch: int
    sampler: str
    head: str
    epochs: int
    lr: Any
    weight_decay: float
    schedule: str
    milestones: tuple[int, ...] | None = None
    decay: float | None = None
    compiled: bool | None = None
    method: str | None = None
    loss: str
    parameters: int
    callbacks: list[str]
    precision: str
    chosen_epoch: int | None
    chosen_on: str
    seconds: float
    leaves_prior: bool | None = None

    _optional = frozenset({"milestones", "decay", "compiled"})

    def _names(self) -> list[str]:
        hidden = {"leaves_prior"}
        # The record of a stage 2 always has the method, also as None.
        if self.stage == "stage 1" and self.method is None:
            hidden.add("method")
        return [name for name in super()._names() if name not in hidden]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
        values, lr = super().to_dict(), self.lr
        if isinstance(lr, slice):
            values["lr"] = [rate for rate in (lr.start, lr.stop) if rate is not None]
        return values


@dataclass(eq=False, kw_only=True)
class PosthocRecord(Record):
    """What a post-hoc method did, for the manifest.

    Args:
        stage: "post hoc".
        method: Name of the method.
        value: The strength; None if the method has none.
        chosen_on: Data that the strength was chosen on, or "not chosen".
        precision: Precision of the model.
        seconds: Duration.
    """

    stage: str = "post hoc"
    method: str
    value: float | None
    chosen_on: str
    precision: str
    seconds: float


def describe_selection(
    stages: Sequence[Mapping[str, Any]], trajectory: TrajectoryRecord | None
) -> str:
    """Return which weights are tested, and which images they were chosen on.

    Args:
        stages: The records of what a method trained and corrected; empty for stage 1 alone.
        trajectory: The trajectory of its training; None if it trains nothing.
    """
    parts = [] if trajectory is None else [trajectory.describe_choice()]
    for stage in stages:
        if stage["stage"] == "post hoc" and stage["value"] is not None:
            where = {"test": "selected on test", "not chosen": "not chosen"}
            chosen = where.get(stage["chosen_on"], "on validation")
            parts.append(f"{stage['method']} {stage['value']:.3g} {chosen}")
    return ", ".join(parts) or ("nothing to choose" if stages else "stage 1")
