"""Recipes for a user's dataset. Options that are not given are derived from the images."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltlearn.defaults import BATCH_SIZE, SMALL_SIDE, choose_defaults
from ltlearn.errors import UserError, mute_log, spell, spell_call
from ltlearn.experiments.read_recipe import apply_override, check_recipe, look_up, put
from ltlearn.experiments.recipe import COMMAND_LINE, Recipe
from ltlearn.experiments.sections import READING
from ltlearn.methods import (
    DEFAULT_STAGE1,
    LARGEST_SCALED_BATCH,
    METHODS,
    Method,
    find_methods,
    head_rate,
    usual_rate,
)
from ltlearn.names import PROBE

__all__ = ["fitting_methods", "own_recipe", "read_classes", "read_statistics"]

_log = logging.getLogger("ltlearn")
# The values of SAMN's code.
_VALUES = {
    "stage1.weight_decay": (5e-4, "code: SAMN"),
    "stage2.epochs": (20, "code: SAMN"),
    "stage2.lr": (5e-4, "code: SAMN, cross-entropy variant"),
    "stage2.batch_size": (64, "code: SAMN"),
    "stage2.weight_decay": (0.0, "code: SAMN"),
}
# Keys that the arguments of `own_recipe` decide.
_DECIDED = ("data.dataset", "data.source", "name", "title", "methods")


class _Draft:
    """The tables of a recipe in the making.

    Args:
        overrides: "section.key=value", as for `load_recipe`.
        options: Values by their key; None is a value that was not given.
    """

    def __init__(self, overrides: Sequence[str], options: Mapping[str, Any]):
        self.raw: dict[str, Any] = {"provenance": {}}
        for override in overrides:
            apply_override(self.raw, override)
        for key in _DECIDED:
            if self.get(key) is not None:
                raise UserError(
                    f"{spell('overrides')} cannot set {key}, which the images and methods given "
                    "decide; leave it out."
                )
        for key, value in options.items():
            if value is not None:
                put(self.raw, key.split("."), value)
                self.raw["provenance"][key] = COMMAND_LINE

    def get(self, key: str) -> Any:
        """Return the value of a key; None if there is none."""
        return look_up(self.raw, key)

    def choose(self, key: str, value: Any, source: str) -> Any:
        """Set a value that was not given, with its source; return the value in force."""
        if self.get(key) is None:
            put(self.raw, key.split("."), value)
            self.raw["provenance"][key] = source
        return self.get(key)

    @property
    def stage1(self) -> Method | None:
        """Return the method of stage 1; None if it is not chosen yet, or unknown."""
        name = self.get("stage1.method")
        return METHODS.get(name) if isinstance(name, str) else None

    @property
    def probe(self) -> Method | None:
        """Return the method of stage 1 if it trains the classifier alone; None otherwise."""
        return self.stage1 if self.stage1 is not None and self.stage1.trains == "head" else None


def own_recipe(
    source: str | Path,
    methods: Sequence[str],
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | Path | None = None,
    reset: bool = False,
    skip_bad: bool = False,
) -> Recipe:
    """Build a recipe for a user's dataset. Options that are not given are derived from the images.

    Args:
        source: The folder or file of the images, as for `LTDataLoaders.from_path`.
        methods: Names of `ltlearn.methods.METHODS`, beside the classifier of stage 1.
        options: Values by their key in a recipe, such as {"stage1.epochs": 10}; None is a value
            that was not given.
        overrides: "section.key=value", as for `load_recipe`.
        checkpoint: The file of a trained model, which replaces stage 1.
        reset: Whether the classifier in that file is left out, and a new one made.
        skip_bad: Whether listed images may be missing.

    Raises:
        UserError: If there are no such images, a value is impossible, or weights are missing.

    Example:
        >>> own_recipe("photos", ["samn"]).model.arch  # doctest: +SKIP
        'resnet50'
    """
    source = Path(os.path.abspath(Path(source).expanduser()))
    draft = _Draft(overrides, options or {})
    _choose_data(draft, source)
    _choose_size(draft, source, skip_bad)
    arch = _choose_arch(draft)
    _choose_weights(draft, arch, checkpoint, reset)
    if checkpoint is not None and reset:
        _choose_probe(draft, methods)
    _choose_stage1(draft, trained=checkpoint is not None)
    for key, (value, why) in _VALUES.items():
        draft.choose(key, value, why)
    first = draft.choose("stage1.method", DEFAULT_STAGE1, "own: the plainest")
    # A new, untrained classifier is not listed as a result of stage 1.
    is_untrained = checkpoint is not None and reset and draft.probe is None
    raw = draft.raw
    raw["methods"] = list(dict.fromkeys([*([] if is_untrained else [first]), *methods]))
    name = re.sub(r"-*[^A-Za-z0-9_.-]+-*", "-", source.name if source.is_dir() else source.stem)
    name = name.strip("-.") or "images"
    raw["name"] = f"own-{name}" + ("" if checkpoint is None else "-retrained")
    raw["title"] = f"{source.name}: {arch}"
    recipe = check_recipe(raw, "these options", "these options")
    fitting_methods(recipe, recipe.methods)
    return recipe


def _choose_data(draft: _Draft, source: Path) -> None:
    draft.choose("data.dataset", "own", COMMAND_LINE)
    draft.choose("data.source", str(source), COMMAND_LINE)
    draft.choose("data.valid_pct", 0.2, "own: where there is no folder of validation images")
    for key in ("images", "valid", "test", "counts"):
        if isinstance(draft.get(f"data.{key}"), str):
            path = os.path.expanduser(draft.raw["data"][key])
            draft.raw["data"][key] = os.path.abspath(path)


def _choose_size(draft: _Draft, source: Path, skip_bad: bool) -> None:
    side = _common_side(source, skip_bad, {key: draft.get(f"data.{key}") for key in READING})
    why = f"own: the images are {side} x {side} pixels"
    if side is None:
        why = (
            f"own: the images differ in size, or are larger than {SMALL_SIDE} pixels or not square"
        )
    draft.choose("data.size", choose_defaults(side).size, why)


def _common_side(source: Path, skip_bad: bool, reading: dict[str, Any]) -> int | None:
    """Return the side of the images if all are small squares of one size."""
    from ltlearn.data.datasets import look_at
    from ltlearn.data.readers.sources import list_images

    # The loaders log the same warnings when they read the images.
    with mute_log():
        listed = list_images(source, skip_bad, **reading)
    return look_at(listed.parts["train"]).side


def _given_size(draft: _Draft) -> int | None:
    size = draft.get("data.size")
    return size if isinstance(size, int) else None  # validation reports another type


def _choose_arch(draft: _Draft) -> Any:
    defaults = choose_defaults(None, size=_given_size(draft))
    limit = "up to" if defaults.small else "more than"
    return draft.choose(
        "model.arch", defaults.arch, f"own: for images of {limit} {SMALL_SIDE} pixels"
    )


def _choose_weights(draft: _Draft, arch: Any, checkpoint: str | Path | None, reset: bool) -> None:
    """Decide what the model starts from, and check that it is there."""
    if checkpoint is not None:
        draft.choose("model.pretrained", str(checkpoint), COMMAND_LINE)
        draft.choose("model.keep_head", not reset, COMMAND_LINE)
        draft.raw["model"]["pretrained"] = str(checkpoint)
    given = draft.get("model.pretrained")
    if isinstance(given, str | Path):
        file = os.path.abspath(os.path.expanduser(given))
        if not os.path.isfile(file):
            raise UserError(f"there is no weights file {file}; give a .safetensors or .pth file.")
        draft.raw["model"]["pretrained"] = file
    if isinstance(arch, str) and arch.startswith(("hf-hub:", "hf_hub:")) and given is not None:
        from ltlearn.models.pretrained import check_weights

        check_weights(arch, needed=given is True)
    elif given is None or given is True:
        from ltlearn.models.pretrained import check_weights

        # Missing weights are reported before the images are read, which may take minutes.
        exist = check_weights(arch)
        if given and not exist:
            raise UserError(
                f"timm has no pre-trained weights of {arch}; give "
                f"{spell('model.pretrained', False)} to start from random weights, "
                f"{spell('model.pretrained', 'FILE')}, or another {spell('model.arch')}."
            )
        draft.choose(
            "model.pretrained", exist, f"own: timm has {'' if exist else 'no '}weights for it"
        )


def _choose_probe(draft: _Draft, methods: Sequence[str]) -> None:
    """Let stage 1 train a classifier on frozen features if a method needs one to begin with."""
    needing = [name for name in methods if name in METHODS and METHODS[name].needs_trained_head]
    if not needing or draft.get("stage1.method") is not None:
        return
    draft.choose("stage1.method", PROBE, "own: these methods need a trained classifier")
    _log.info(
        "%s needs a trained classifier, and %s leaves none: stage 1 trains one on the features of "
        "the frozen backbone (method %s)",
        needing[0], spell("reset", True), PROBE,
    )  # fmt: skip


def _choose_probe_values(draft: _Draft, row: Method) -> None:
    """Choose epochs, batch size, learning rate and weight decay of a stage 1 on features."""
    source = f"own: as the method {draft.get('stage1.method')} has it"
    draft.choose("stage1.epochs", row.values["epochs"], source)
    draft.choose("stage1.weight_decay", row.values["wd"], source)
    batch = draft.choose("stage1.batch_size", BATCH_SIZE, "own")
    if isinstance(batch, int):  # validation reports another type
        draft.choose("stage1.lr", head_rate(row.values["lr"], batch), source)


def _check_pretrained(draft: _Draft, row: Method) -> None:
    """Raise an error if the backbone has random weights, and the user did not ask for that."""
    use, arch = "adapts a pre-trained backbone", "vit_small_patch16_224"
    if row.trains == "head":
        use, arch = "leaves the backbone as it is", "resnet50"
    is_asked = draft.raw["provenance"].get("model.pretrained") == COMMAND_LINE
    if not draft.get("model.pretrained") and not is_asked:
        raise UserError(
            f"stage1.method = {draft.get('stage1.method')!r} {use}, and there are no pre-trained "
            f"weights of {draft.get('model.arch')}; give another {spell('model.arch')}, such as "
            f"{arch}, or weights ({spell('weights', 'FILE')})."
        )


def _choose_stage1(draft: _Draft, trained: bool) -> None:
    """Choose epochs, batch size and learning rate of stage 1.

    Raises:
        UserError: If a trained model is to be trained further, or the method needs pre-trained
            weights, there are none, and the user did not ask for random ones.
    """
    if not trained and draft.stage1 is not None and draft.stage1.pretrained:
        _check_pretrained(draft, draft.stage1)
    if (probe := draft.probe) is not None:
        _choose_probe_values(draft, probe)
        return
    pretrained = bool(draft.get("model.pretrained"))
    start = "pre-trained weights" if pretrained else "random weights"
    if trained:
        if draft.get("stage1.epochs"):
            train = spell_call("own_recipe", source="DIR", pretrained="FILE")
            raise UserError(
                f"stage1.epochs = {draft.get('stage1.epochs')} trains the backbone, but a given "
                f"model keeps its backbone; use {train} to train it further."
            )
        draft.choose("stage1.epochs", 0, "own: the model comes trained")
    defaults = choose_defaults(None, size=_given_size(draft), pretrained=pretrained)
    draft.choose("stage1.epochs", defaults.epochs, f"own: usual from {start}")
    batch = draft.choose("stage1.batch_size", BATCH_SIZE, "own")
    if isinstance(batch, int):  # validation reports another type
        why = f"own: {'.01' if pretrained else '.1'} per 256 images, from {start}"
        if batch > LARGEST_SCALED_BATCH:
            why += f"; as for a batch of {LARGEST_SCALED_BATCH}, beyond which it does not grow"
        draft.choose("stage1.lr", usual_rate(batch, pretrained), why)


def read_classes(text: str | None) -> list[str] | None:
    """Return the class names that an option gives.

    Args:
        text: Names separated by commas, or a file: a name on each line, or JSON of a list or of a
            mapping between names and numbers. None gives None.

    Raises:
        UserError: If there are fewer than two names, or the file cannot be read.
    """
    if text is None:
        return None
    path = Path(text).expanduser()
    names: Sequence[str] | None = [name.strip() for name in text.split(",")]
    if len(names) < 2:
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or "it is no text in UTF-8"
            raise UserError(
                f"{spell('classes', text)} is neither a list of names with commas between them nor "
                f"a file that can be read ({reason}); correct it."
            ) from None
        if content.lstrip()[:1] in ("[", "{"):
            from ltlearn.models.origin import class_names

            names = class_names(content)
        else:
            names = [line.strip() for line in content.splitlines() if line.strip()]
    names = list(names or ())
    if len(names) < 2 or not all(names):
        raise UserError(
            f"{spell('classes', text)} must name at least two classes, in the order of the model's "
            "outputs."
        )
    return names


def read_statistics(name: str, text: str | None) -> list[float] | None:
    """Return the statistics that an option gives, one per channel.

    Args:
        name: The option, "mean" or "std".
        text: One number for all channels, or three with commas between them. None gives None.

    Raises:
        UserError: If these are no numbers.
    """
    if text is None:
        return None
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise UserError(
            f"{spell(name, text)} must be three numbers with commas between them, such as "
            "0.485,0.456,0.406, or one number."
        )
    return values * (3 // len(values))


def fitting_methods(
    recipe: Recipe, methods: Sequence[str] | str | None
) -> Sequence[str] | str | None:
    """Return the methods that fit the stage 1 of a run.

    Args:
        recipe: The run's recipe.
        methods: Names, as for `ltlearn.methods.find_methods`; None takes all that fit.

    Raises:
        UserError: If a method needs a trained classifier, and the given model has none.
    """
    if not recipe.starts_without_head:
        return methods
    fitting = [name for name, row in METHODS.items() if not row.needs_trained_head]
    if methods is None:
        return fitting
    names = find_methods(methods)
    for name in names:
        if name not in fitting:
            raise UserError(
                f"{name} needs a trained classifier, and {spell('reset', True)} leaves none; "
                f"choose from {', '.join(fitting)}, or make a run that begins with a linear probe: "
                f"{spell('stage1.method', PROBE)}."
            )
    return names
