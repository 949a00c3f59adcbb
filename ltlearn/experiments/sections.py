"""The sections of a recipe: which keys there are, and which values they may have."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ltlearn.data.benchmarks.registry import dataset_names
from ltlearn.defaults import MAX_SIDE
from ltlearn.methods import DEFAULT_STAGE1, METHODS, stage1_methods
from ltlearn.names import (
    BN_MODES,
    FEW_RULES,
    FIGURES,
    HEAD_STARTS,
    PROFILES,
    PROTOCOLS,
    SAMPLER_NAMES,
    SCHEDULES,
    SELECTS,
    SPLITS,
    STAGE2_SCHEDULES,
    TRAINABLE_PARTS,
    TRANSFORM_NAMES,
)

__all__ = [
    "READING",
    "SECTIONS",
    "DataSection",
    "Expected",
    "MethodSection",
    "ModelSection",
    "RecipeSection",
    "Stage1Section",
    "Stage2Section",
    "Variant",
]

# Upper limits, far above any use: a larger number is a slip, or was written to take all memory.
_MAX_WIDTH = 4096
_MAX_EPOCHS = 100_000
_MAX_BATCH = 1_000_000
_MAX_IMAGES = 10**9

SECTIONS = ("data", "model", "stage1", "stage2")
# The keys of [data] that describe how a table or annotations are read.
READING = (
    "images", "image_col", "label_col", "split_col", "suffix", "valid", "test", "counts",
)  # fmt: skip


class RecipeSection(BaseModel):
    """A table of a recipe, without unknown keys."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataSection(RecipeSection):
    """The table [data]: which images are used."""

    dataset: str
    # For dataset "own": what `LTDataLoaders.from_path` takes.
    source: str | None = None
    # For a source that is a table or annotations; see `LTDataLoaders.from_csv`.
    images: str | None = None  # the folder that listed paths start from
    image_col: int | str | None = None
    label_col: int | str | None = None
    split_col: Literal[False] | int | str | None = None
    suffix: str | None = None
    valid: str | None = None  # further tables, annotations or shards
    test: str | None = None
    counts: str | None = None  # for shards, the file of the class counts
    # For sets that are cut from balanced ones. None: 100, "exponential", "first_n".
    imbalance_factor: float | None = Field(None, ge=1, le=_MAX_IMAGES)
    profile: Literal[PROFILES] | None = None
    split: Literal[SPLITS] | None = None
    valid_pct: float = Field(0.1, gt=0, lt=1)
    few: Literal[FEW_RULES] = "<20"
    n_max: int | None = Field(None, ge=1, le=_MAX_IMAGES)
    test_per_class: int | None = Field(None, ge=1, le=_MAX_IMAGES)
    size: int | None = Field(None, ge=1, le=MAX_SIDE)  # None: the size of the images
    # Statistics of pixels in [0, 1], one per channel. None: those that the model's weights need.
    mean: list[float] | None = None
    std: list[float] | None = None
    # For sets that are published as lists, and for "own". None: the default of the set.
    transform: Literal[TRANSFORM_NAMES] | None = None
    max_classes: int | None = Field(None, ge=2, le=_MAX_IMAGES)  # for published lists; None: all
    bits: int | None = Field(None, ge=8, le=16)  # of 16-bit images in "own"; None: found out
    # Evaluate on the mean logits of each image and its mirror image. None: the paper protocol does.
    flip_average: bool | None = None

    @field_validator("dataset")
    @classmethod
    def _is_known(cls, name: str) -> str:
        allowed = (*dataset_names(), "own")
        if name not in allowed:
            later = f"; {name} is of a later stage: list it in methods" if name in METHODS else ""
            raise ValueError(f"it must be one of {', '.join(allowed)}{later}")
        return name


class ModelSection(RecipeSection):
    """The table [model]: which network is trained."""

    arch: str
    pretrained: bool | Annotated[str, Field(max_length=4096)] = False  # the longest path
    keep_head: bool = False  # take the classifier from the file, too
    # For `keep_head`: the classes in the order of the outputs. None: what the file states.
    classes: list[str] | None = Field(None, min_length=2)
    # Which weights of a file that holds several sets.
    weights_key: str | None = Field(None, max_length=200)
    width: int | None = Field(None, ge=1, le=_MAX_WIDTH)


class _Stage(RecipeSection):
    epochs: int = Field(ge=0, le=_MAX_EPOCHS)
    lr: float = Field(gt=0, le=1e6)
    batch_size: int = Field(64, ge=1, le=_MAX_BATCH)
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal[STAGE2_SCHEDULES] = "cosine"
    # None: the protocol decides. clean: "last" in stage 1, "best" on validation images in stage 2.
    # paper: "best" on test images.
    select: Literal[SELECTS] | None = None


class _WithOptions(RecipeSection):
    """A section that also holds the options of a method, whatever the method calls them."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_empty_options(cls, values: Any) -> Any:
        """Drop options without a value: older manifests list the options of all methods."""
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None or k in cls.model_fields}

    def options(self) -> dict[str, Any]:
        """Return the options of the method that are given, by name."""
        return dict(self.model_extra or {})

    def set_option(self, name: str, value: Any) -> None:
        """Set an option of the method.

        Args:
            name: The option. It may have the name of an attribute, such as "copy".
            value: Its value.
        """
        self.model_extra[name] = value


class Stage1Section(_Stage, _WithOptions):
    """How the representation is trained. Further keys are options of the method."""

    method: str = DEFAULT_STAGE1
    warmup_epochs: int = Field(0, ge=0, le=_MAX_EPOCHS)
    schedule: Literal[SCHEDULES] = "cosine"
    # For "multistep": the learning rate is multiplied by `decay` after each of these epochs.
    milestones: list[Annotated[int, Field(ge=1, le=_MAX_EPOCHS)]] | None = None
    decay: float | None = Field(None, gt=0, le=1)
    accumulate: int = Field(1, ge=1, le=_MAX_BATCH)  # batches per optimiser step
    # Decay of the average of the weights. None: no average.
    ema_decay: float | None = Field(None, gt=0, lt=1)
    # Radius of sharpness-aware minimisation. None: off.
    sharpness_rho: float | None = Field(None, gt=0, le=1e6)
    sync_bn: bool = False  # on several GPUs, whether they share the statistics of a batch
    grad_checkpointing: bool = False  # less memory for activations, more time
    sampler: Literal[SAMPLER_NAMES] = "instance"
    # How a cosine classifier begins, see `HeadStart`. None: as the method has it.
    head_start: Literal[HEAD_STARTS] | None = None
    trains: Literal[TRAINABLE_PARTS] = "all"  # which part of the backbone; see `LastBlock`

    @field_validator("method")
    @classmethod
    def _is_of_stage_1(cls, name: str) -> str:
        allowed = stage1_methods()
        if name not in allowed:
            later = f"; {name} is of a later stage: list it in methods" if name in METHODS else ""
            raise ValueError(f"it must be one of {', '.join(allowed)}{later}")
        return name


class Stage2Section(_Stage):
    """How the classifier is retrained."""

    # None: the protocol decides. clean: cached features of a frozen backbone. paper: images, with
    # batch normalisation in training mode.
    views: int | None = Field(None, ge=0, le=10_000)
    bn: Literal[BN_MODES] | None = None


class MethodSection(_WithOptions):
    """The values of one method. None: the value in the table of methods.

    Further keys are options of the method. A post-hoc method has its strength alone, such as tau;
    without it, the strength is chosen on validation images.
    """

    epochs: int | None = Field(None, ge=0, le=_MAX_EPOCHS)
    lr: float | None = Field(None, gt=0, le=1e6)
    batch_size: int | None = Field(None, ge=1, le=_MAX_BATCH)
    weight_decay: float | None = Field(None, ge=0, le=1e6)


_Percent = Annotated[float, Field(ge=0, le=100)]  # a top-1 accuracy


class AlsoPublished(RecipeSection):
    """The accuracy that others published for the same method, network and training."""

    accuracy: _Percent
    source: str


class PublishedFigure(RecipeSection):
    """An accuracy that was published, once or several times.

    Args:
        accuracy: Top-1 in %.
        tolerance: Largest difference that passes, in points.
        source: Where it was published, and how it was measured.
        also: The accuracies of others for the same method, network and training.
    """

    accuracy: _Percent
    tolerance: float = Field(gt=0)
    source: str
    also: list[AlsoPublished] = []

    @property
    def each(self) -> list[tuple[float, str]]:
        """Return each published accuracy with its source."""
        return [(one.accuracy, one.source) for one in (self, *self.also)]

    @property
    def ends(self) -> list[float]:
        """Return the lowest and the highest published accuracy; one number where they are equal."""
        published = [accuracy for accuracy, _ in self.each]
        return sorted({min(published), max(published)})

    @property
    def text(self) -> str:
        """Return the accuracy as text, or the range where there are several."""
        return " to ".join(f"{end:g}" for end in self.ends)

    @property
    def sources(self) -> list[str]:
        """Return the sources; each begins with its accuracy where there are several."""
        if not self.also:
            return [self.source]
        return [f"{accuracy:g} {source}" for accuracy, source in self.each]

    def difference(self, measured: float) -> float:
        """Return how many points an accuracy is above the highest published one.

        It is negative below the lowest, and 0 between them.

        Args:
            measured: The accuracy in %.
        """
        low, high = self.ends[0], self.ends[-1]
        return max(measured - high, 0.0) or min(measured - low, 0.0)

    def passes(self, measured: float) -> bool:
        """Return whether the difference is within the tolerance.

        Args:
            measured: The accuracy in %.
        """
        return abs(self.difference(measured)) <= self.tolerance + 1e-9


class Expected(PublishedFigure):
    """The published figure of a method of a recipe."""

    method: str
    group: Literal[FIGURES] = "all"
    protocol: Literal[PROTOCOLS]
    when: dict[str, Any] = {}  # the values that it was measured with, where a recipe has several

    @property
    def what(self) -> str:
        """Return the method's name, and the group where it is not all images."""
        return self.method if self.group == "all" else f"{self.method}, {self.group}"

    def describe(self, label: str) -> str:
        """Return the figure as a table prints it.

        Args:
            label: The label of the method.
        """
        return f"{label}{'' if self.group == 'all' else f', {self.group}'} {self.text}"


class Variant(RecipeSection):
    """Values that depend on others: `set` applies if all values of `when` hold."""

    when: dict[str, Any] = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)
