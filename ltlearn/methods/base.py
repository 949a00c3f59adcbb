"""`Method` and `Sweep`: the row of a method, with all facts that other modules need."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ltlearn.errors import UserError, check_choice, check_number
from ltlearn.names import RESERVED_OPTIONS, SAMPLER_NAMES, TRAINED_PARTS

if TYPE_CHECKING:  # these imports need torch; the table of methods does not
    from torch import nn

    from ltlearn.posthoc.choose import TauChoice
    from ltlearn.posthoc.data import PosthocData

__all__ = ["ASSUMED_PRIORS", "HEADS", "KINDS", "Method", "Sweep"]

KINDS = ("stage 1", "stage 2", "post hoc")
# "stage 1" is the prior of the stage 1 that a method comes after.
ASSUMED_PRIORS = ("train", "uniform", "stage 1")
# "any" accepts every classifier. A function of the user's has it.
HEADS = ("linear", "cosine", "experts", "any")
_VALUES = ("epochs", "lr", "wd", "bs")


@dataclass(frozen=True)
class Sweep:
    """A method's own hyper-parameter, over the range that was published.

    Args:
        parameter: Its name on an axis.
        values: Values to try, ascending.
        default: The method's own value, one of `values`.
        arguments: Returns arguments of `retrain_classifier` for a value.
        log: Whether the axis is logarithmic.

    Raises:
        UserError: If the values do not ascend, or the default is none of them.

    Example:
        >>> Sweep("weight decay", (1e-3, 1e-2, 0.1), 0.1, lambda value: {"wd": value})
    """

    parameter: str
    values: tuple[float, ...]
    default: float
    arguments: Callable[[float], dict[str, Any]]
    log: bool = True

    def __post_init__(self):
        for value in self.values:
            check_number("each of values", value)
        if list(self.values) != sorted(set(self.values)) or self.default not in self.values:
            raise UserError(
                f"values must ascend and contain the default, got values={self.values!r} and "
                f"default={self.default!r}."
            )


@dataclass(frozen=True)
class Method:
    """A way to train a stage 1, or to get from a finished stage 1 to a classifier.

    Args:
        label: The name in tables and plots.
        kind: "stage 1" trains backbone and classifier. "stage 2" retrains the classifier on the
            frozen backbone. "post hoc" corrects the classifier without training.
        source: The publication.
        values_from: Where the training values come from.
        sampler: Sampler of stage 2, by name. A stage 1 gets its sampler from `fit_stage1`.
        loss: Makes the loss from the loss options. None: cross-entropy.
        callbacks: Makes the callbacks from the callback options, new ones at each call.
        reset: Whether stage 2 begins with a new classifier.
        values: Overrides for `retrain_classifier`: epochs, lr, wd, bs. Defaults (SAMN's): 20
            epochs, batch size 64, learning rate 5e-4 with a cosine schedule, no weight decay. A
            stage 1 that trains the head alone has epochs, wd, and lr for batches of 64.
        post: Name of a post-hoc method that follows stage 2.
        sweep: The method's own hyper-parameter and its published range.
        prior: The class prior that the logits assume: "train" (the training frequencies),
            "uniform", or "stage 1" (unchanged from the stage 1 before it); see `prior_of`.
        after: Name of the stage-1 method that this method was published for. None: any.
        loss_options: Options of `loss` with their defaults, finite numbers.
        callback_options: Options of `callbacks` with their defaults, finite numbers.
        apply: Post hoc only. Makes the corrected classifier from a `PosthocData` and a strength
            (None without `choose`).
        choose: Post hoc only. Chooses the strength from a `PosthocData` of the validation images,
            as a `TauChoice`. None: the method has no strength.
        published_value: Strength if the validation set is too small to choose on.
        strength: Post hoc only. Name of the strength in reports.
        uses_features_only: Post hoc only. Whether `apply` ignores the trained classifier and needs
            the features of the training images.
        uses_validation: Post hoc only. Whether `apply` gets the features of the validation images,
            unless there are too few.
        head: The classifier that the method trains, and goes on with: "linear", "cosine",
            "experts" or "any". A cosine classifier goes on as a linear one over features of one
            length. A later stage with "experts" goes only with a stage 1 that trains experts.
        trains: Stage 1 only. "all" trains backbone and classifier on images. "head" leaves the
            backbone as it is, and trains a new linear classifier on its features.
        pretrained: Stage 1 only. Whether the method is for a backbone with pre-trained weights.
        choices: Options that are words, with the words allowed, the default first.

    Raises:
        UserError: If a field has a value that is not allowed, or has no meaning for the kind.

    Example:
        >>> Method("mine", "stage 2", "me, 2026", "own", loss=MyLoss, loss_options={"gamma": 2.0})
    """

    label: str
    kind: str
    source: str
    values_from: str = ""
    sampler: str = "instance"
    loss: Callable[..., Any] | None = None
    callbacks: Callable[..., list] = field(default=list)
    reset: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    post: str | None = None
    sweep: Sweep | None = None
    prior: str = "uniform"
    after: str | None = None
    loss_options: Mapping[str, float] = field(default_factory=dict)
    callback_options: Mapping[str, float] = field(default_factory=dict)
    apply: "Callable[[PosthocData, float | None], nn.Module] | None" = None
    choose: "Callable[[PosthocData], TauChoice] | None" = None
    published_value: float = 1.0
    strength: str = "tau"
    uses_features_only: bool = False
    uses_validation: bool = False
    head: str = "linear"
    trains: str = "all"
    pretrained: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        # Read-only copies: a row must not change with the dictionaries it was made from.
        for name in ("values", "loss_options", "callback_options", "choices"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name in ("label", "source"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise UserError(f"{name} must be a text, got {getattr(self, name)!r}.")
        check_choice("kind", self.kind, KINDS)
        check_choice("prior", self.prior, ASSUMED_PRIORS)
        check_choice("head", self.head, HEADS)
        check_choice("trains", self.trains, TRAINED_PARTS)
        check_choice("sampler", self.sampler, SAMPLER_NAMES)
        for name in self.values:
            check_choice("each of values", name, _VALUES)
        for name, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
                raise UserError(f"the name of an option must be an identifier, got {name!r}.")
            if name not in self.choices:
                check_number(name, value)
                self._check_option(name)
        self._check_kind()

    def _check_option(self, name: str) -> None:
        """Refuse an option that a recipe cannot hold."""
        if name in RESERVED_OPTIONS.get(self.kind, ()):
            raise UserError(
                f"the option {name!r} of a method of the kind {self.kind!r} has the name of a "
                "recipe key; give it another name."
            )
        # One value of an option goes to the loss and to the callbacks.
        defaults = [o[name] for o in (self.loss_options, self.callback_options) if name in o]
        if defaults[0] != defaults[-1]:
            raise UserError(
                f"the option {name!r} must have the same default in loss_options and "
                f"callback_options, got {defaults[0]!r} and {defaults[1]!r}."
            )

    def _check_kind(self) -> None:
        """Refuse fields that would have no effect for this kind of method."""
        if self.kind == "post hoc" and self.apply is None:
            raise UserError("a post-hoc method needs apply, which makes the corrected classifier.")
        trained = ("loss", "reset", "values", "loss_options", "callback_options", "post", "sweep")
        of_stage1 = ("pretrained", "choices")
        unused = {
            "stage 1": ("reset", "values", "post", "sweep", "after", "apply", "choose"),
            "stage 2": ("apply", "choose", "uses_features_only", "uses_validation", *of_stage1),
            "post hoc": (*trained, *of_stage1),
        }[self.kind]
        if self.trains == "head":
            if self.kind != "stage 1":
                raise UserError(f"trains has no meaning for a method of the kind {self.kind!r}.")
            missing = [name for name in ("epochs", "lr", "wd") if name not in self.values]
            if missing:
                raise UserError(f"a method that trains the head alone needs values: {missing[0]}.")
            unused = tuple(name for name in unused if name != "values")
        elif self.choices:
            raise UserError("choices has no meaning for a method that trains the backbone.")
        for name in unused:
            if getattr(self, name):
                raise UserError(f"{name} has no meaning for a method of the kind {self.kind!r}.")
        if self.kind == "post hoc" and self.callbacks is not list:
            raise UserError("callbacks has no meaning for a method of the kind 'post hoc'.")
        if self.kind != "stage 2" and self.sampler != "instance":
            raise UserError(f"sampler has no meaning for a method of the kind {self.kind!r}.")
        if self.kind == "stage 1" and self.prior == "stage 1":
            raise UserError("prior must be 'train' or 'uniform' for a stage 1, got 'stage 1'.")

    @property
    def stage(self) -> int:
        """Return 1 for a method of stage 1, 2 for all others."""
        return 1 if self.kind == "stage 1" else 2

    @property
    def options(self) -> Mapping[str, float]:
        """Return the options of loss and callbacks, and the choices, with their defaults."""
        words = {name: allowed[0] for name, allowed in self.choices.items()}
        return MappingProxyType({**self.loss_options, **self.callback_options, **words})

    @property
    def recipe_options(self) -> Mapping[str, float]:
        """Return the options that a recipe can set: those of the method, or its strength."""
        if self.choose is None:
            return self.options
        return MappingProxyType({self.strength: self.published_value})

    @property
    def draws(self) -> bool:
        """Return whether the outcome after stage 1 depends on the seed."""
        return self.kind == "stage 2" and (self.values.get("epochs") != 0 or self.reset)

    @property
    def needs_trained_head(self) -> bool:
        """Return whether the method goes on with the classifier of stage 1."""
        return not (self.reset or self.uses_features_only)

    def fits(self, stage1: "Method") -> bool:
        """Return whether the method can go on with the classifier of a stage 1.

        Args:
            stage1: The method of stage 1.
        """
        if self.head == "experts":
            return stage1.head == "experts"
        is_known = stage1.head in ("linear", "cosine")
        return not self.needs_trained_head or is_known or self.head == "any"

    def arguments(self, **options: float) -> dict[str, Any]:
        """Return the method as arguments of `retrain_classifier`.

        Args:
            **options: Options with another value than their default.

        Raises:
            UserError: If the method has no such option, or a word is not an allowed one.

        Example:
            >>> METHODS["crt"].arguments()["sampler"]
            'class_balanced'
        """
        for name in options:
            if name not in self.options:
                names = ", ".join(self.options) or "none"
                raise UserError(f"{self.label} has no option {name!r}; its options: {names}.")
            if name in self.choices:
                check_choice(name, options[name], self.choices[name])
        loss_options = {k: options.get(k, v) for k, v in self.loss_options.items()}
        callback_options = {k: options.get(k, v) for k, v in self.callback_options.items()}
        return {
            "sampler": self.sampler,
            "loss": self.loss(**loss_options) if self.loss is not None else None,
            "reset": self.reset,
            "cbs": self.callbacks(**callback_options),
            **self.values,
        }
