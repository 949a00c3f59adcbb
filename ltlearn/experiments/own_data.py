"""Recipes for somebody's own images: what is not asked for is chosen by what the images are."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltlearn.errors import UserError, mute_log
from ltlearn.experiments.read_recipe import apply_override, check_recipe, look_up, put
from ltlearn.experiments.recipe import READING, Recipe
from ltlearn.methods import LARGEST_SCALED_BATCH, usual_rate

__all__ = ["read_images", "own_recipe", "fitting_methods"]

_SMALL = 96  # pixels; up to this side the loaders hold images in memory
_USUAL_SIZE = 224
_EPOCHS = {True: 30, False: 90}  # from pre-trained weights, from random ones
_BATCH = 64
# What the command line calls a key.
_FLAGS = {
    "data.size": "--size", "model.arch": "--arch", "stage1.epochs": "--epochs",
    "stage1.method": "--stage1", "stage1.lr": "--lr", "stage1.batch_size": "--batch-size",
    "seeds": "--seeds", "protocol": "--protocol",
}  # fmt: skip


def read_images(source: str | Path, **kwargs):
    """Return the `LTDataLoaders` of somebody's own images.

    Args:
        source: The folder or file, as for `LTDataLoaders.from_path`.
        **kwargs: For that.
    """
    from ltlearn.data import LTDataLoaders

    return LTDataLoaders.from_path(source, **kwargs)


def common_side(source: Path, skip_bad: bool, reading: dict[str, Any]) -> int | None:
    """Return the side of the images if all are small squares of one size."""
    from ltlearn.data.datasets import common_side
    from ltlearn.data.readers.sources import list_images, reading_options, source_kind

    if source_kind(source) == "hf":  # no files
        reading_options(source, reading)
        return None
    # What is odd about the images is said when they are read to train on.
    with mute_log():
        listed = list_images(source, skip_bad, **reading)
    return common_side(listed.parts["train"])


def own_recipe(
    source: str | Path,
    methods: Sequence[str],
    options: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | Path | None = None,
    reset: bool = False,
    skip_bad: bool = False,
) -> Recipe:
    """Describe both stages on somebody's own images.

    Args:
        source: The images.
        methods: Names of `ltlearn.methods.METHODS`, beside the classifier of stage 1.
        options: Values by their key in a recipe, such as {"stage1.epochs": 10}; None is one that
            was not given.
        overrides: "section.key=value", as for `load_recipe`.
        checkpoint: A trained model's file: it takes the place of stage 1.
        reset: Whether the classifier in that file is left out, and a new one made.
        skip_bad: Whether listed images may be missing.

    Raises:
        UserError: If there are no such images, a value does not fit, or weights cannot be had.
    """
    source = Path(os.path.abspath(Path(source).expanduser()))
    raw: dict[str, Any] = {"provenance": {}}
    for override in overrides:
        apply_override(raw, override)
    for key in ("data.dataset", "data.source", "name", "title", "methods"):
        if look_up(raw, key) is not None:
            raise UserError(f"{key} is not for --set here: the arguments of the command decide it.")
    for key, value in (options or {}).items():
        if value is not None:
            put(raw, key.split("."), value)
            raw["provenance"][key] = "command line"

    def choose(key: str, value: Any, why: str) -> Any:
        """Take a value that is not given, and note why; return the one in force."""
        if look_up(raw, key) is None:
            put(raw, key.split("."), value)
            raw["provenance"][key] = why
        return look_up(raw, key)

    choose("data.dataset", "own", "command line")
    choose("data.source", str(source), "command line")
    choose("data.valid_pct", 0.2, "own: where there is no folder of validation images")
    for key in ("images", "valid", "test"):
        if isinstance(look_up(raw, f"data.{key}"), str):
            raw["data"][key] = os.path.abspath(os.path.expanduser(raw["data"][key]))
    side = common_side(source, skip_bad, {k: look_up(raw, f"data.{k}") for k in READING})
    if side is None:
        why = f"own: the images differ in size, or are larger than {_SMALL} pixels or not square"
    else:
        why = f"own: the images are {side} x {side} pixels"
    size = choose("data.size", side or _USUAL_SIZE, why)
    small = isinstance(size, int) and size <= _SMALL
    arch = choose(
        "model.arch",
        "resnet32_cifar" if small else "resnet50",
        f"own: for images of {'up to' if small else 'more than'} {_SMALL} pixels",
    )
    _choose_weights(choose, raw, arch, checkpoint, reset)
    trained = bool(look_up(raw, "model.pretrained"))
    begun = "pre-trained weights" if trained else "random weights"
    if checkpoint is None:
        choose("stage1.epochs", _EPOCHS[trained], f"own: usual from {begun}")
    else:
        if look_up(raw, "stage1.epochs"):
            raise UserError(
                "stage1.epochs trains the backbone, which this command takes as it is; use "
                "`ltlearn train --weights FILE` to train it further."
            )
        choose("stage1.epochs", 0, "own: the model comes trained")
    batch = choose("stage1.batch_size", _BATCH, "own")
    if isinstance(batch, int):
        # Of a batch that cannot be, too: what is wrong then is the batch, which validation says.
        why = f"own: {'.01' if trained else '.1'} a 256 images, from {begun}"
        if batch > LARGEST_SCALED_BATCH:
            why += f"; as of a batch of {LARGEST_SCALED_BATCH}, beyond which it does not grow"
        choose("stage1.lr", usual_rate(batch, trained), why)
    choose("stage1.weight_decay", 5e-4, "code: SAMN")
    choose("stage2.epochs", 20, "code: SAMN")
    choose("stage2.lr", 5e-4, "code: SAMN, cross-entropy variant")
    choose("stage2.batch_size", 64, "code: SAMN")
    choose("stage2.weight_decay", 0.0, "code: SAMN")
    stage1 = choose("stage1.method", "ce", "own: the plainest")
    first = [] if checkpoint is not None and reset else [stage1]
    raw["methods"] = list(dict.fromkeys([*first, *methods]))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stem if source.is_file() else source.name)
    name = name.strip("-.") or "images"
    raw["name"] = f"own-{name}" + ("" if checkpoint is None else "-retrained")
    raw["title"] = f"{source.name}: {arch}"
    typed = {key for key, value in (options or {}).items() if value is not None}
    flags = {key: flag for key, flag in _FLAGS.items() if key in typed}
    recipe = check_recipe(raw, "these options", "these options", flags)
    fitting_methods(recipe, recipe.methods)
    return recipe


def _choose_weights(choose, raw: dict, arch, checkpoint, reset: bool) -> None:
    """Decide what the model starts from, and make sure that it is there."""
    given = look_up(raw, "model.pretrained")
    if checkpoint is not None:
        given = str(checkpoint)
        choose("model.pretrained", given, "command line")
        choose("model.keep_head", not reset, "command line")
    if isinstance(given, str | Path):
        file = os.path.abspath(os.path.expanduser(given))
        if not os.path.isfile(file):
            raise UserError(f"there is no weights file {file}; give a .safetensors or .pth file.")
        raw["model"]["pretrained"] = file
    elif given is not False:
        from ltlearn.models.pretrained import check_weights

        # Before images are read, which may take minutes.
        found = check_weights(arch)
        if given and not found:
            raise UserError(
                f"timm has no pre-trained weights of {arch}; give --no-pretrained to start from "
                "random weights, --weights FILE, or another --arch."
            )
        choose("model.pretrained", found, f"own: timm has {'' if found else 'no '}weights of it")


def fitting_methods(recipe: Recipe, methods) -> list[str] | str | None:
    """Return the methods, or those that there are for None, which a run's stage 1 allows.

    Args:
        recipe: The run's recipe.
        methods: Names, as for `ltlearn.methods.find_methods`.

    Raises:
        UserError: If a method needs a trained classifier, and there is none: a model that came
            trained, without its own.
    """
    from ltlearn.methods import METHODS, find_methods

    untrained = (
        recipe.data.dataset == "own"
        and recipe.stage1.epochs == 0
        and isinstance(recipe.model.pretrained, str)
        and not recipe.model.keep_head
    )
    if not untrained:
        return methods
    # The nearest class mean asks the features alone.
    fit = [name for name, row in METHODS.items() if row.reset or name == "ncm"]
    if methods is None:
        return fit
    names = find_methods(methods)
    wrong = [name for name in names if name not in fit]
    if wrong:
        raise UserError(
            f"{wrong[0]} begins with a trained classifier, and with --reset there is none; take "
            f"any of {', '.join(fit)}."
        )
    return names
