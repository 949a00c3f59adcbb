"""A recipe: a benchmark in which each value records its source."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from ltlearn.data.benchmarks.registry import benchmark_names, is_listed
from ltlearn.errors import UserError
from ltlearn.experiments.sections import (
    SECTIONS,
    DataSection,
    Expected,
    MethodSection,
    ModelSection,
    RecipeSection,
    Stage1Section,
    Stage2Section,
)
from ltlearn.experiments.settle import settle_data, settle_model, settle_stage1, settle_stage2
from ltlearn.methods import METHODS
from ltlearn.names import PROTOCOLS

__all__ = ["COMMAND_LINE", "Recipe"]

COMMAND_LINE = "command line"  # the source of a value that the user gives
_SMOKE = "smoke run"
# The values that the protocol decides where a recipe leaves them open.
_BY_PROTOCOL = (
    "data.flip_average", "stage1.select", "stage2.select", "stage2.views", "stage2.bn",
)  # fmt: skip
# Values of a method, and what `retrain_classifier` calls them.
_ARGUMENTS = {"epochs": "epochs", "lr": "lr", "weight_decay": "wd", "batch_size": "bs"}


class Recipe(RecipeSection):
    """A benchmark: data, model, both stages, methods, and the published figures.

    Example:
        >>> from ltlearn.experiments.read_recipe import load_recipe
        >>> load_recipe("digits_lt").stage1.epochs
        30
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    protocol: Literal[PROTOCOLS] = "clean"
    seeds: int = Field(1, ge=1, le=100)
    methods: list[str] = Field(min_length=1)
    data: DataSection
    model: ModelSection
    stage1: Stage1Section
    stage2: Stage2Section
    method: dict[str, MethodSection] = {}
    status: str = ""  # whether it was run, on which hardware and for how long
    provenance: dict[str, str] = {}
    expected: list[Expected] = []
    _smoke: bool = PrivateAttr(False)

    @property
    def is_smoke(self) -> bool:
        """Return whether `smoke` made this recipe."""
        return self._smoke

    @property
    def keeps_given_model(self) -> bool:
        """Return whether stage 1 is a trained model with its own classifier."""
        return self.model.keep_head and self.stage1.epochs == 0

    @property
    def starts_without_head(self) -> bool:
        """Return whether stage 1 is a trained model whose classifier is left out."""
        return (
            self.data.dataset == "own"
            and self.stage1.epochs == 0
            and isinstance(self.model.pretrained, str)
            and not self.model.keep_head
        )

    @property
    def averages_flips(self) -> bool:
        """Return whether the logits of each image and its mirror image are averaged."""
        given = self.data.flip_average
        return self.protocol == "paper" if given is None else given

    @property
    def is_pretrained(self) -> bool:
        """Return whether stage 1 begins from weights of other images: figures do not compare."""
        return bool(self.model.pretrained)

    @property
    def named_stage1(self) -> str | None:
        """Return the method of stage 1; None if its model was trained elsewhere."""
        is_given = self.keeps_given_model or self.starts_without_head
        return None if is_given else self.stage1.method

    def keys(self, section: str) -> list[str]:
        """Return the keys of a section, the given options of a method included.

        Args:
            section: One of "data", "model", "stage1", "stage2".
        """
        return list(getattr(self, section).model_dump())

    def flat(self) -> dict[str, Any]:
        """Return the values that decide the outcome, by dotted key such as "stage1.lr"."""
        values: dict[str, Any] = {"protocol": self.protocol, "methods": list(self.methods)}
        for section in SECTIONS:
            inside = getattr(self, section).model_dump(mode="json")
            values |= {f"{section}.{key}": value for key, value in inside.items()}
        for name, own in self.method.items():
            inside = own.model_dump(exclude_none=True)
            values |= {f"method.{name}.{key}": value for key, value in inside.items()}
        return values

    def value(self, key: str) -> Any:
        """Return the value of a key such as "data.imbalance_factor"; None where there is none.

        Args:
            key: The dotted key.
        """
        value: Any = self
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        return value

    def options_of(self, name: str) -> dict[str, Any]:
        """Return the options that `[method.NAME]` gives a method.

        Args:
            name: The method.
        """
        return self.method[name].options() if name in self.method else {}

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Return the arguments that train a method, or correct with it, beside its name.

        They are those of `retrain_classifier`, and of `correct_classifier` for a post-hoc method.
        `[method.NAME]` comes first, then stage 2 of the command line, then the table of methods,
        then `[stage2]`.

        Args:
            name: The method.
        """
        options, row = self.options_of(name), METHODS[name]
        if row.kind == "post hoc":
            return {"value": options[row.strength]} if options else {}
        values = {short: getattr(self.stage2, key) for key, short in _ARGUMENTS.items()}
        given = {
            short
            for key, short in _ARGUMENTS.items()
            if self.provenance.get(f"stage2.{key}") == COMMAND_LINE
        }
        values |= {k: v for k, v in row.values.items() if k not in given}
        if name in self.method:
            own = {short: getattr(self.method[name], key) for key, short in _ARGUMENTS.items()}
            values |= {k: v for k, v in own.items() if v is not None}
        return values | ({"options": options} if options else {})

    def settled(self) -> "Recipe":
        """Return the recipe with each open value filled in, by the protocol or by a default.

        Raises:
            UserError: If values contradict each other.
        """
        recipe = self.model_copy(deep=True)
        paper = recipe.protocol == "paper"
        by_protocol = [key for key in _BY_PROTOCOL if recipe.value(key) is None]
        settle_data(recipe.data, paper)
        recipe.data.flip_average = recipe.averages_flips
        settle_model(recipe.model)
        settle_stage1(recipe.stage1, paper)
        if paper and "last" in (recipe.stage1.select, recipe.stage2.select):
            raise UserError(
                "the paper protocol keeps the best epoch on the test set; leave stage1.select and "
                "stage2.select out, or use the clean protocol."
            )
        settle_stage2(recipe.stage2, paper)
        for section in SECTIONS:
            for key in recipe.keys(section):
                name = f"{section}.{key}"
                source = f"protocol: {recipe.protocol}" if name in by_protocol else "default"
                recipe.provenance.setdefault(name, source)
        return recipe

    def is_given(self, key: str) -> bool:
        """Return whether the recipe or the user gives a value; for a settled recipe.

        Args:
            key: The dotted key.
        """
        return self.provenance[key].split(":")[0] not in ("protocol", "default")

    def published(self, ignoring: Collection[str] = ()) -> list[Expected]:
        """Return the published figures of the recipe's methods, at the values that it has.

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
        """Return the keys whose values the user, or `smoke`, has changed."""
        return [k for k, v in self.provenance.items() if v in (COMMAND_LINE, _SMOKE)]

    def smoke(self) -> "Recipe":
        """Return the recipe shrunk to seconds: the same steps, on a handful of images."""
        recipe = self.model_copy(deep=True)
        recipe._smoke = True
        recipe.seeds = 1
        recipe.stage1.epochs = min(2, self.stage1.epochs)
        recipe.stage2.epochs = min(2, self.stage2.epochs)
        recipe.stage1.warmup_epochs = 1 if self.stage1.schedule == "lagged_cosine" else 0
        if recipe.stage1.milestones:
            recipe.stage1.milestones = [1]
        data = recipe.data
        if is_listed(data.dataset):
            data.max_classes, data.n_max, data.test_per_class, data.size = 20, 8, 2, 32
        elif data.dataset in benchmark_names():  # images that a package brings are few already
            data.n_max = max(20, int(data.imbalance_factor or 100))
            data.test_per_class = 10
            if data.transform is not None:  # images that are enlarged one by one
                data.size = 112
        if self.stage1.head_start == "text":
            recipe.stage1.head_start = "class_means"
        if self.model.width:
            recipe.model.width = min(8, self.model.width)
        before = self.flat()
        for key, value in recipe.flat().items():
            if value != before[key]:
                recipe.provenance[key] = _SMOKE
        return recipe
