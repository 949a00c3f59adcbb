"""The schema of a recipe: a benchmark in which each value records its source."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ltlearn.errors import UserError

__all__ = ["SECTIONS", "LISTED_SETS", "Recipe"]

SECTIONS = ("data", "model", "stage1", "stage2")
READING = ("images", "image_col", "label_col", "split_col", "suffix", "valid", "test")
LISTED_SETS = ("imagenet_lt", "places_lt", "inat2018")  # those of `ltlearn.data.benchmarks.read`


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataSection(_Section):
    """Which images."""

    dataset: Literal[
        "digits_lt",
        "cifar10_lt",
        "cifar100_lt",
        "tiny_imagenet_lt",
        "imagenet_lt",
        "places_lt",
        "inat2018",
        "own",
    ]
    # Of "own" alone: what `LTDataLoaders.from_path` takes.
    source: str | None = None
    # Of a "source" that is a table or annotations: how it is read, as in `LTDataLoaders.from_csv`.
    images: str | None = None  # the folder that listed paths start from
    image_col: int | str | None = None
    label_col: int | str | None = None
    split_col: Literal[False] | int | str | None = None
    suffix: str | None = None
    valid: str | None = None  # further tables or annotations
    test: str | None = None
    # Of the sets that are cut out of balanced ones; None: 100, "exponential", "first_n".
    imbalance_factor: float | None = Field(None, ge=1)
    profile: Literal["exponential", "step"] | None = None
    split: Literal["first_n", "shuffle_seed0"] | None = None
    valid_pct: float = Field(0.1, gt=0, lt=1)
    few: Literal["<20", "<=20"] = "<20"
    n_max: int | None = Field(None, ge=1)
    test_per_class: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)  # None: the images' own
    # Of the sets that are published as lists, and of "own"; None: the usual one of the set.
    transform: (
        Literal[
            "crop_flip",
            "crop",
            "resized_crop_flip",
            "resized_crop_flip_jitter",
            "resized_crop_flip_strong",
            "none",
        ]
        | None
    ) = None
    max_classes: int | None = Field(None, ge=2)  # of published lists; None: all


class ModelSection(_Section):
    """Which network."""

    arch: str
    pretrained: bool | str = False
    keep_head: bool = False  # of a file: take its classifier, too
    width: int | None = Field(None, ge=1)


class _Stage(_Section):
    epochs: int = Field(ge=0)
    lr: float = Field(gt=0)
    batch_size: int = Field(64, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    # None: what the protocol says. clean: last in stage 1, best on validation in stage 2. paper:
    # best on test.
    select: Literal["best", "last"] | None = None


class Stage1Section(_Stage):
    """How the representation is trained."""

    method: Literal["ce", "mixup", "cutmix", "glmc"] = "ce"
    # Options of that method; None: its own default.
    alpha: float | None = Field(None, gt=0)
    resample: float | None = Field(None, ge=0)
    reweight: float | None = Field(None, ge=0)
    contrast: float | None = Field(None, ge=0)
    warmup_epochs: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant", "multistep", "lagged_cosine"] = "cosine"
    # Of "multistep": the rate is multiplied by `decay` after each of these epochs.
    milestones: list[Annotated[int, Field(ge=1)]] | None = None
    decay: float | None = Field(None, gt=0, le=1)
    accumulate: int = Field(1, ge=1)  # batches a step of the optimiser
    ema_decay: float | None = Field(None, gt=0, lt=1)  # average of the weights; None: none
    sharpness_rho: float | None = Field(None, gt=0)  # sharpness-aware minimisation; None: none
    sampler: Literal["instance", "class_balanced", "square_root", "progressive"] = "instance"
    # What of the backbone: all, its last block, or that begun at random; see `LastBlock`.
    trains: Literal["all", "last_block", "new_last_block"] = "all"


class Stage2Section(_Stage):
    """How the classifier is retrained."""

    # None: what the protocol says. clean: cached features of a frozen backbone. paper: images, BN
    # in training mode.
    views: int | None = Field(None, ge=0)
    bn: Literal["frozen", "train", "last_block"] | None = None


class MethodSection(_Section):
    """What one method has for itself; None: its own value in the table of methods."""

    epochs: int | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, ge=1)
    weight_decay: float | None = Field(None, ge=0)
    head_smoothing: float | None = Field(None, ge=0, lt=1)
    tail_smoothing: float | None = Field(None, ge=0, lt=1)
    head_lr_factor: float | None = Field(None, gt=0)


class Expected(_Section):
    """A published figure."""

    method: str
    accuracy: Annotated[float, Field(ge=0, le=100)]  # top-1 in %
    group: Literal["all", "balanced", "many", "medium", "few"] = "all"
    protocol: Literal["clean", "paper"]
    tolerance: float = Field(gt=0)
    source: str
    when: dict[str, Any] = {}  # values that it was measured with, where a recipe has several

    @property
    def what(self) -> str:
        """Return the method's name, and the group where it is not all images."""
        return self.method if self.group == "all" else f"{self.method}, {self.group}"

    def said(self, label: str) -> str:
        """Say the figure in a table's words."""
        return f"{label}{'' if self.group == 'all' else f', {self.group}'} {self.accuracy:g}"


class Variant(_Section):
    """Values that go with others: `set` holds where all of `when` does."""

    when: dict[str, Any] = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)


class Recipe(_Section):
    """A benchmark: data, model, both stages, methods, and what was published."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    protocol: Literal["clean", "paper"] = "clean"
    seeds: int = Field(1, ge=1, le=100)
    methods: list[str] = Field(min_length=1)
    data: DataSection
    model: ModelSection
    stage1: Stage1Section
    stage2: Stage2Section
    method: dict[str, MethodSection] = {}
    status: str = ""  # whether it was run, on what and for how long
    provenance: dict[str, str] = {}
    expected: list[Expected] = []
    _smoke: bool = PrivateAttr(False)

    def flat(self) -> dict[str, Any]:
        """Return what decides the outcome, by dotted key: "stage1.lr", "method.crt.epochs"."""
        found: dict[str, Any] = {"protocol": self.protocol, "methods": list(self.methods)}
        for section in SECTIONS:
            values = getattr(self, section).model_dump(mode="json")
            found |= {f"{section}.{key}": value for key, value in values.items()}
        for name, own in self.method.items():
            values = own.model_dump(exclude_none=True)
            found |= {f"method.{name}.{key}": value for key, value in values.items()}
        return found

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Return what `retrain_classifier` gets for a method beside its name.

        That of `[method.NAME]`, else what the command line says of stage 2, else that of the table
        of methods, else of `[stage2]`.
        """
        from ltlearn.methods import METHODS

        method, names = METHODS[name], {"weight_decay": "wd", "batch_size": "bs"}
        keys = ("epochs", "lr", "weight_decay", "batch_size")
        of_stage = {names.get(key, key): getattr(self.stage2, key) for key in keys}
        said = {
            names.get(key, key)
            for key in keys
            if self.provenance.get(f"stage2.{key}") == "command line"
        }
        values = of_stage | {k: v for k, v in method.values.items() if k not in said}
        own = self.method[name].model_dump(exclude_none=True) if name in self.method else {}
        values |= {names.get(k, k): v for k, v in own.items() if k not in method.options}
        options = {k: v for k, v in own.items() if k in method.options}
        return values | ({"options": options} if options else {})

    def is_smoke(self) -> bool:
        """Tell whether this is what `smoke` returned."""
        return self._smoke

    def settled(self) -> "Recipe":
        """Return the recipe with everything filled in: by its protocol, or as ltlearn's default.

        Raises:
            UserError: If values do not go together.
        """
        recipe = self.model_copy(deep=True)
        paper = recipe.protocol == "paper"
        s1, s2 = recipe.stage1, recipe.stage2
        open_before = {
            f"{name}.{key}"
            for name, stage in (("stage1", s1), ("stage2", s2))
            for key in type(stage).model_fields
            if getattr(stage, key) is None
        }
        _settle_data(recipe.data)
        if recipe.model.keep_head and not isinstance(recipe.model.pretrained, str):
            raise UserError(
                "model.keep_head takes the classifier of a file, but model.pretrained is "
                f"{recipe.model.pretrained!r}; give the path of the file."
            )
        _settle_stage1_method(s1)
        _settle_schedule(s1)
        s1.select = s1.select or ("best" if paper else "last")
        s2.select = s2.select or "best"
        s2.bn = s2.bn or ("train" if paper else "frozen")
        if s2.views is None:
            s2.views = 0 if paper or s2.bn != "frozen" else 1
        if paper and "last" in (s1.select, s2.select):
            raise UserError(
                "the paper protocol keeps the best epoch on the test set: leave stage1.select and "
                "stage2.select out, or use the clean protocol."
            )
        if s2.views and (paper or s2.bn != "frozen"):
            why = (
                "the paper protocol averages over mirrored images" if paper else f"bn is {s2.bn!r}"
            )
            raise UserError(
                f"stage2.views = {s2.views} caches features, which cannot be as {why}; set "
                "stage2.views=0."
            )
        for section in SECTIONS:
            for key in type(getattr(recipe, section)).model_fields:
                name = f"{section}.{key}"
                by_protocol = key in ("select", "views", "bn") and name in open_before
                default = f"protocol: {recipe.protocol}" if by_protocol else "default"
                recipe.provenance.setdefault(name, default)
        return recipe

    def is_given(self, key: str) -> bool:
        """Tell whether a recipe or a command line asked for a value; of a settled recipe."""
        return self.provenance[key].split(":")[0] not in ("protocol", "default")

    def value(self, key: str) -> Any:
        """Return the value of a key such as "data.imbalance_factor"; None where there is none."""
        found: Any = self
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        return found

    def published(self, ignoring=()) -> list[Expected]:
        """Return the published figures of the recipe's methods, at the values it has.

        Args:
            ignoring: Keys that may have another value.
        """
        return [
            e
            for e in self.expected
            if e.method in self.methods
            and all(self.value(k) == v or k in ignoring for k, v in e.when.items())
        ]

    def changes(self) -> list[str]:
        """Return the keys that a command line, or `smoke`, has changed."""
        return [k for k, v in self.provenance.items() if v in ("command line", "smoke run")]

    def smoke(self) -> "Recipe":
        """Return the recipe shrunk to seconds: the same steps, on a handful of images."""
        recipe = self.model_copy(deep=True)
        recipe._smoke = True
        recipe.seeds = 1
        recipe.stage1.epochs, recipe.stage2.epochs = (
            min(2, self.stage1.epochs),
            min(2, self.stage2.epochs),
        )
        lagged = self.stage1.schedule == "lagged_cosine"
        recipe.stage1.warmup_epochs = 1 if lagged else 0
        if recipe.stage1.milestones:
            recipe.stage1.milestones = [1]
        if self.data.dataset in LISTED_SETS:
            data = recipe.data
            data.max_classes, data.n_max, data.test_per_class, data.size = 20, 8, 2, 32
        elif self.data.dataset not in ("digits_lt", "own"):
            recipe.data.n_max = max(20, int(self.data.imbalance_factor or 100))
            recipe.data.test_per_class = 10
        if self.model.width:
            recipe.model.width = min(8, self.model.width)
        for section in SECTIONS:
            new, old = getattr(recipe, section), getattr(self, section)
            for key in type(new).model_fields:
                if getattr(new, key) != getattr(old, key):
                    recipe.provenance[f"{section}.{key}"] = "smoke run"
        return recipe


def _settle_data(data: DataSection) -> None:
    """Fill in how a set is cut; of one that is published as it is, that is a `UserError`."""
    cut = {"imbalance_factor": 100, "profile": "exponential", "split": "first_n"}
    if data.dataset == "own":
        if data.source is None:
            raise UserError("data.dataset = 'own' needs data.source, the folder of the images.")
        for key in (*cut, "n_max", "test_per_class", "max_classes"):
            if getattr(data, key) is not None:
                raise UserError(
                    f"data.{key} has no meaning for own data, which is taken as it is; leave it "
                    "out."
                )
        return
    given = [key for key in ("source", *READING) if getattr(data, key) is not None]
    if given:
        raise UserError(
            f"data.{given[0]} is of data.dataset = 'own', but data.dataset is {data.dataset!r}; "
            "give the folder as --data, or set data.dataset=own."
        )
    for key in cut if data.dataset in LISTED_SETS else ("transform", "max_classes"):
        if getattr(data, key) is not None:
            why = "long-tailed as published" if key in cut else "not read from published lists"
            raise UserError(
                f"data.{key} has no meaning for {data.dataset}, which is {why}; leave it out."
            )
    if data.dataset not in LISTED_SETS:
        for key, value in cut.items():
            if getattr(data, key) is None:
                setattr(data, key, value)


def _settle_stage1_method(stage1: Stage1Section) -> None:
    """Fill in the options of the method of stage 1; an option of another one is a `UserError`."""
    from ltlearn.methods import METHODS, stage1_methods

    options = METHODS[stage1.method].options
    for key in dict.fromkeys(key for name in stage1_methods() for key in METHODS[name].options):
        if key in options:
            if getattr(stage1, key) is None:
                setattr(stage1, key, options[key])
        elif getattr(stage1, key) is not None:
            owners = ", ".join(name for name in stage1_methods() if key in METHODS[name].options)
            raise UserError(
                f"stage1.{key} is an option of {owners}, but stage1.method is "
                f"{stage1.method!r}; leave it out."
            )


def _settle_schedule(stage1: Stage1Section) -> None:
    """Fill in what a schedule needs; what it has no use for is a `UserError`."""
    if stage1.schedule == "multistep":
        if not stage1.milestones:
            raise UserError(
                "stage1.schedule = 'multistep' needs the epochs after which the rate falls, such "
                "as stage1.milestones=[160,180]."
            )
        if sorted(set(stage1.milestones)) != stage1.milestones:
            raise UserError(f"stage1.milestones must ascend, got {stage1.milestones}.")
        stage1.decay = 0.1 if stage1.decay is None else stage1.decay
    elif stage1.schedule == "lagged_cosine" and not stage1.warmup_epochs:
        raise UserError("stage1.schedule = 'lagged_cosine' needs stage1.warmup_epochs.")
    elif stage1.milestones is not None or stage1.decay is not None:
        key = "milestones" if stage1.milestones is not None else "decay"
        raise UserError(
            f"stage1.{key} is of the schedule multistep, but stage1.schedule is "
            f"{stage1.schedule!r}; leave it out."
        )
    if stage1.sharpness_rho is not None and (stage1.accumulate > 1 or stage1.method == "glmc"):
        what = "stage1.accumulate" if stage1.accumulate > 1 else "GLMC"
        raise UserError(f"stage1.sharpness_rho does not go with {what}; leave one out.")
