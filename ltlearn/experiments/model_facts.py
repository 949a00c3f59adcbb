"""`model.json`: what it takes to use the weights of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ltlearn.data.datasets import ImagesInMemory
from ltlearn.errors import UserError, spell
from ltlearn.experiments.manifest import MANIFEST_FILE, read_manifest
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.sections import ModelSection
from ltlearn.exporting.facts import Bits, ClassCounts, Classes, Means, Size, Stds
from ltlearn.methods import METHODS, labels_of, prior_of
from ltlearn.training.records import Record
from ltlearn.utils.older_runs import checked_fields
from ltlearn.utils.run_folder import Run
from ltlearn.utils.text import clean, short_repr, validation_reason

__all__ = ["MODEL_FILE", "ModelFacts", "describe_model", "read_model_facts", "write_model_facts"]

MODEL_FILE = "model.json"
_FORMAT = 1
# Keys of a recipe's [model] that are no arguments of the network.
_NO_ARGUMENTS = {"arch", "pretrained", "keep_head", "classes", "weights_key"}
# It becomes part of a path.
_MethodName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]


@dataclass(eq=False, kw_only=True)
class ModelFacts(Record):
    """What it takes to use the weights of a run: the content of its `model.json`.

    Args:
        format: The version of the file's format.
        arch: The architecture.
        arguments: Further arguments of `create_lt_model`, such as width.
        classes: The names of the classes.
        class_counts: Training images per class.
        size: Height and width of the images.
        in_memory: Whether the training held the images in memory, at one size.
        transform: The augmentation of the training.
        mean: The mean of the pixels per channel, from 0 to 1.
        std: The standard deviation of the pixels per channel.
        methods: Label, head and prior of each method, by its name.
        weights: Where the weights of a method are.
        bits: Bits that the values of 16-bit images take, from 8 to 15; None for 16.
    """

    format: int
    arch: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: dict[str, Any]
    classes: Classes
    class_counts: ClassCounts
    size: Size
    in_memory: bool
    transform: str = ""
    mean: Means
    std: Stds
    methods: Annotated[dict[_MethodName, dict[str, str]], Field(min_length=1)]
    weights: str = ""
    bits: Bits = None

    _optional = frozenset({"bits"})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelFacts":
        """Return the facts in a file, which another version or a stranger may have written.

        Args:
            values: What the file holds.

        Raises:
            UserError: If a field is missing or impossible. The caller names the file.
        """
        facts = cls(**checked_fields(cls, values))
        if len(facts.classes) != len(facts.class_counts):
            raise UserError(
                f"it has {len(facts.classes)} classes, but counts of {len(facts.class_counts)}."
            )
        for name, method in facts.methods.items():
            if method.get("prior") not in ("train", "uniform"):
                raise UserError(f"the class prior of the method {name} must be train or uniform.")
        _check_arguments(facts.arguments)
        return facts


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Allow only the keys and values that a recipe has for a network.

    timm passes any others on: some open a file or the network, or make a network of any size.
    """
    unknown = arguments.keys() - ModelSection.model_fields.keys() | arguments.keys() & _NO_ARGUMENTS
    if unknown:
        raise UserError(f"arguments has the key {clean(min(unknown))[:200]}, which no run writes.")
    try:
        ModelSection.model_validate({"arch": "any", **arguments}, strict=True)
    except ValidationError as e:
        error = e.errors(include_url=False)[0]
        key = clean(".".join(map(str, error["loc"])))[:200]
        raise UserError(
            f"arguments.{key} = {short_repr(error['input'])} is not possible; "
            f"{validation_reason(error)}."
        ) from None


def describe_model(recipe: Recipe, learn, heads: Mapping[str, str]) -> ModelFacts:
    """Return what it takes to use the weights of a run.

    Args:
        recipe: The run's recipe.
        learn: A learner of the recipe, which has its data.
        heads: The kind of the classifier that each method left, by the method's name.
    """
    dls = learn.dls
    mean, std = dls.normalize.stats
    train = dls.train.dataset
    return ModelFacts(
        format=_FORMAT,
        arch=recipe.model.arch,
        arguments=recipe.model.model_dump(
            exclude=_NO_ARGUMENTS, exclude_none=True
        ),
        classes=dls.vocab,
        class_counts=dls.shot_counts.tolist(),
        size=list(dls.size),
        in_memory=isinstance(dls.valid.dataset, ImagesInMemory),
        transform=getattr(train.transform, "name", train.transform),
        mean=mean,
        std=std,
        methods={
            name: {
                "label": label, "head": heads[name], "prior": _prior(recipe, name)
            }
            for name, label in labels_of(recipe.methods, recipe.named_stage1).items()
        },
        weights="checkpoints/seed{seed}-{method}.safetensors; for a method of stage 1: -stage1",
        bits=dls.bits if dls.bits < 16 else None,
    )  # fmt: skip


def _prior(recipe: Recipe, method: str) -> str:
    """Return the class prior that a method's logits assume: "train" or "uniform"."""
    row = METHODS[method]
    if row.kind != "stage 1" and row.prior != "stage 1":
        return row.prior
    # A sampler that balances the classes leaves a classifier that assumes a uniform prior.
    return prior_of(recipe.stage1.method) if recipe.stage1.sampler == "instance" else "uniform"


def write_model_facts(run: Run, facts: ModelFacts) -> None:
    """Write `model.json`, with a checksum of its content.

    Args:
        run: The run's folder.
        facts: Its content.
    """
    run.write_json(MODEL_FILE, facts.to_dict(), sealed=True)


def read_model_facts(folder: Path) -> ModelFacts:
    """Read `model.json`. Runs of early versions have no checksum in it.

    Args:
        folder: The run's folder.

    Raises:
        UserError: If there is none, another version or a stranger wrote what this version does not
            use, or the file is damaged.
    """
    run, file = Run(folder), folder / MODEL_FILE
    if not file.is_file():
        finished = read_manifest(run).is_finished
        why = "an earlier version of ltlearn made it" if finished else "it is not finished"
        raise UserError(
            f"the run {folder} has no {MODEL_FILE}, because {why}; the command in its "
            f"{MANIFEST_FILE} with {spell('resume', True)} writes one."
        )
    content = run.read_json(MODEL_FILE, sealed=None)
    version = content.get("format", _FORMAT)
    if isinstance(version, int) and version > _FORMAT:
        raise UserError(
            f"{file} has the format {short_repr(version)}, which this version of ltlearn does "
            "not read; use a newer version."
        )
    try:
        return ModelFacts.from_dict(content)
    except UserError as e:
        raise UserError(f"{file} is damaged: {e}") from None
