"""Records of a training: the facts of a stage, and its figures epoch by epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ltlearn.methods import METHODS
from ltlearn.names import FIGURES, SHOTS
from ltlearn.utils.html import html_table
from ltlearn.utils.text import DASH, epochs_text, percent_text

__all__ = [
    "CorrectionRecord",
    "PosthocRecord",
    "Record",
    "StageRecord",
    "TrajectoryRecord",
    "as_stage_record",
    "describe_selection",
]

_MAX_TEXT = 60  # characters of a value in a short text


class Record(Mapping):
    """A dataclass that also reads as a mapping: `record["epochs"]` is `record.epochs`.

    A subclass is a dataclass, and prints in short. Fields that are None are left out of the mapping
    and of `to_dict` when the subclass lists them in `_optional`. For pandas, pass `to_dict()`:
    `pd.DataFrame(trajectory.to_dict())`.
    """

    _optional: frozenset[str] = frozenset()

    def __init_subclass__(cls):
        # A dataclass keeps a `__repr__` of its own, and replaces an inherited one.
        cls.__repr__ = cls.__repr__

    def facts(self) -> dict[str, str]:
        """Return the fields that have a value, as short texts by name."""
        return {name: _short_text(self[name]) for name in self if self[name] is not None}

    def __repr__(self) -> str:
        """Return the name of the record and its fields in short."""
        facts = ", ".join(f"{name}={text}" for name, text in self.facts().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return html_table([], list(self.facts().items()), type(self).__name__, left=2)

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


def _short_text(value: Any) -> str:
    """Return a value in few characters: a long list as its length, a long text as its start."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) <= _MAX_TEXT:
        return text
    if isinstance(value, list | tuple | Mapping):
        return f"{len(value)} values"
    return text[: _MAX_TEXT - 1] + "…"


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

    def figures_of(self, index: int) -> list[str]:
        """Return the loss and the accuracies of an entry as texts, for a table.

        Args:
            index: Position of the entry; -1 is the last.
        """
        loss = self.loss[index]
        values = [getattr(self, name)[index] for name in FIGURES]
        return [DASH if loss is None else f"{loss:.3f}", *map(percent_text, values)]

    def table_head(self) -> list[str]:
        """Return the headings of `figures_of`."""
        return ["loss", *(f"{self.select_on} {name} %" for name in FIGURES[:2]), *_SHOT_HEADS]

    def _chosen_index(self) -> int:
        return self.epoch.index(self.chosen) if self.chosen in self.epoch else -1

    def __repr__(self) -> str:
        """Return the number of epochs and the figures of the weights that are kept."""
        if not self.epoch:
            return "TrajectoryRecord: no epoch trained"
        kept = self._chosen_index()
        values = [f"{name} {percent_text(getattr(self, name)[kept])}" for name in FIGURES]
        known = [text for text in values if not text.endswith(DASH)]
        return (
            f"TrajectoryRecord: {epochs_text(self.epoch[-1])}, kept: {self.describe_choice()}; "
            f"{self.select_on} accuracy in %: {', '.join(known)}"
        )

    def _repr_html_(self) -> str:
        """Return the entries that matter: before the first step, kept, and last."""
        if not self.epoch:
            return html_table([], [], repr(self))
        kept, last = self._chosen_index() % len(self.epoch), len(self.epoch) - 1
        shown = sorted({0, kept, last})
        notes = {0: "before the first step"} if self.epoch[0] == 0 else {}
        rows = []
        for i in shown:
            note = ", ".join(text for text in (notes.get(i), "kept" if i == kept else None) if text)
            label = f"{self.epoch[i]} ({note})" if note else self.epoch[i]
            rows.append([label, *self.figures_of(i)])
        caption = f"{epochs_text(self.epoch[-1])}, kept: {self.describe_choice()}"
        return html_table(["epoch", *self.table_head()], rows, caption, bold=shown.index(kept))


_SHOT_HEADS = [f"{name} %" for name in SHOTS]


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
        trained_parameters: Number of parameters that trained, where a callback froze part of the
            backbone and counted them; None otherwise.
        compiled: Whether the backbone was compiled; None if that was not requested.
        loop: Loop that took the steps without events: "resident", or "captured" if they were CUDA
            graphs; None for the loop with events, and for features.
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
    trained_parameters: int | None = None
    compiled: bool | None = None
    loop: str | None = None
    method: str | None = None
    loss: str
    parameters: int
    callbacks: list[str]
    precision: str
    chosen_epoch: int | None
    chosen_on: str
    seconds: float
    leaves_prior: bool | None = None

    _optional = frozenset({"milestones", "decay", "trained_parameters", "compiled", "loop"})

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


def as_stage_record(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a stage; its fields as they are if an earlier version wrote others.

    Args:
        values: The fields by name.
    """
    kind = PosthocRecord if values["stage"] == "post hoc" else StageRecord
    try:
        return kind.from_dict(values)
    except TypeError:
        return values


@dataclass(eq=False)
class CorrectionRecord(Record):
    """The result of a post-hoc correction.

    Args:
        method: Name of the method.
        value: The strength; None if the method has none.
        chosen_on: Data that the strength was chosen on; None if it was not chosen.
        curve: The values that were tried, each with its figure.
    """

    method: str
    value: float | None = None
    chosen_on: str | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)

    def describe(self) -> str:
        """Return the strength and the images it was chosen on."""
        return _strength_text(self.method, self.value, self.chosen_on or "not chosen")

    def __repr__(self) -> str:
        """Return method and strength."""
        return f"CorrectionRecord: {self.method}, {self.describe()}"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        rows = [["method", self.method], ["strength", self.describe()]]
        if self.curve:
            low, high = self.curve[0][0], self.curve[-1][0]
            rows.append(["tried", f"{len(self.curve)} values from {low:.3g} to {high:.3g}"])
        return html_table([], rows, "correction of the classifier", left=2)


def _strength_text(method: str, value: float | None, chosen_on: str) -> str:
    """Name a strength and where it was chosen: "tau 1.3, chosen on validation"."""
    if value is None:
        return "nothing to choose"
    # The record of a method that is no longer installed has its name alone.
    name = METHODS[method].strength if method in METHODS else method
    where = {"test": "selected on test", "not chosen": "not chosen"}
    return f"{name} {value:.3g}, {where.get(chosen_on, 'chosen on validation')}"


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
            parts.append(_strength_text(stage["method"], stage["value"], stage["chosen_on"]))
    return ", ".join(parts) or ("nothing to choose" if stages else "stage 1")
