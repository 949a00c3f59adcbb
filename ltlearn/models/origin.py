"""What a file of weights, or timm, states about a model: its normalisation and its classes."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from ltlearn.defaults import IMAGENET_STATS
from ltlearn.errors import UserError, spell
from ltlearn.utils.statistics import is_triple
from ltlearn.utils.text import short_repr

__all__ = ["Origin", "class_names", "find_origin", "match_outputs"]

# Where training programs keep what they know of the data.
_SECTIONS = (
    "pretrained_cfg", "config", "cfg", "hyper_parameters", "hparams", "args", "meta",
    "dataset_meta", "data",
)  # fmt: skip
_CLASS_KEYS = (
    "classes", "class_names", "label_names", "class_to_idx", "idx_to_class", "categories", "vocab",
    "id2label", "labels", "CLASSES",
)  # fmt: skip
_MOST_BYTES = 64 << 20  # of a file that describes a model


@dataclass(frozen=True)
class Origin:
    """Where the weights of a model are from, and what is known about its input and output.

    Args:
        trained: Whether the weights are trained, not random.
        mean: Mean per channel for pixels in [0, 1]; None if nothing states it.
        std: Standard deviation per channel; None if nothing states it.
        stats_from: What states them.
        is_stated: Whether the file of the weights, or a file beside it, states them.
        classes: The classes in the order of the outputs; None if nothing states it.
        classes_from: What states it.
        crop: Share of the image that timm evaluates on, in (0, 1]; None if nothing states it.
        interpolation: How timm resizes images for evaluation; "" if nothing states it.
    """

    trained: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stats_from: str = ""
    is_stated: bool = False
    classes: tuple[str, ...] | None = None
    classes_from: str = ""
    crop: float | None = None
    interpolation: str = ""


def find_origin(
    path: Path | None,
    content: Mapping[str, Any],
    arch: str,
    config: Mapping[str, Any],
    is_ours: bool = False,
) -> Origin:
    """Find the statements about a trained model, the most specific one first.

    Args:
        path: The file of the weights; None for weights of timm.
        content: The content of that file.
        arch: The architecture.
        config: timm's configuration of the architecture.
        is_ours: Whether ltlearn wrote the file.

    Raises:
        UserError: If a file that describes the model is damaged.
    """
    origin = Origin(trained=True)
    if path is not None:
        statements = [(str(path), part) for part in _sections(content)]
        statements += _files_beside(path, arch)
        for source, part in statements:
            origin = _with_statement(origin, part, source)
        origin = replace(origin, is_stated=origin.mean is not None)
    published = bool(config.get("hf_hub_id") or config.get("url") or config.get("file"))
    # Our own training from random weights normalises as for ImageNet.
    if published or not is_ours:
        source = f"timm's configuration of {arch}"
        if path is None:
            origin = _with_statement(origin, config, source)
        elif origin.mean is None:
            found = _with_statement(origin, config, f"{source}, because the file states none")
            # The classes of timm's own weights are not those of the file.
            origin = replace(found, classes=origin.classes, classes_from=origin.classes_from)
    if origin.mean is None:
        mean, std = IMAGENET_STATS
        origin = replace(
            origin, mean=mean, std=std, stats_from="ImageNet, because nothing states others"
        )
    return origin


def _sections(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the dictionaries in a file that may describe the model."""
    found = [content]
    for name in _SECTIONS:
        value = content.get(name)
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, str) and value[:1] == "{":  # the metadata of safetensors is text
            value = _parsed(value)
        if isinstance(value, Mapping):
            found.append(value)
            found += [v for k, v in value.items() if k in _SECTIONS and isinstance(v, Mapping)]
    return found


def _files_beside(path: Path, arch: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the files that describe the weights: a run's model.json, or timm's config.json."""
    folder = path.absolute().parent
    found = []
    for file in (folder / "model.json", folder.parent / "model.json", folder / "config.json"):
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            text = opened.read(_MOST_BYTES)
        facts = _parsed(text)
        is_run = file.name == "model.json"
        named = facts.get("arch" if is_run else "architecture") if facts else None
        if not isinstance(named, str) or named.split(".")[0] != arch.split(".")[0]:
            continue  # of another model
        if is_run and not (_triple(facts.get("mean")) and _triple(facts.get("std"))):
            raise UserError(
                f"{file} is damaged: it has no mean and std; restore it, or move {path.name} away "
                "from it."
            )
        found += [(str(file), part) for part in _sections(facts)]
    return found


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _with_statement(origin: Origin, part: Mapping[str, Any], source: str) -> Origin:
    """Add what a dictionary states, unless a statement before it was more specific."""
    mean, std = _triple(part.get("mean")), _triple(part.get("std"))
    if origin.mean is None and mean and std:
        if max(*mean, *std) > 3:  # for pixels from 0 to 255
            mean, std = (tuple(v / 255 for v in values) for values in (mean, std))
        if all(v > 0 for v in std):
            origin = replace(origin, mean=mean, std=std, stats_from=source)
    classes = next(filter(None, (class_names(part.get(key)) for key in _CLASS_KEYS)), None)
    if origin.classes is None and classes:
        origin = replace(origin, classes=classes, classes_from=source)
    crop = part.get("crop_pct")
    if origin.crop is None and isinstance(crop, Real) and 0 < crop <= 1:
        how = part.get("interpolation")
        how = how if isinstance(how, str) else ""
        origin = replace(origin, crop=float(crop), interpolation=how)
    return origin


def _triple(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, str):  # safetensors' metadata, or an option of a command line
        try:
            values = json.loads(values)
        except (ValueError, RecursionError):
            return None
    return tuple(map(float, values)) if is_triple(values) else None


def class_names(value: Any) -> tuple[str, ...] | None:
    """Return class names in the order of the outputs, from any of the usual forms.

    Args:
        value: A list of names, a mapping from name to number or from number to name, or JSON of
            these. Anything else, and numbers in place of names, gives None.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping):
        numbers, names = list(value.values()), list(value)
        if not _are_numbers(numbers):  # from number to name
            numbers, names = names, numbers
        if not _are_numbers(numbers):
            return None
        pairs = sorted(zip(map(int, numbers), names, strict=True), key=lambda pair: pair[0])
        if [n for n, _ in pairs] != list(range(len(pairs))):
            return None
        value = [name for _, name in pairs]
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    if not all(isinstance(v, str) for v in value) or len(set(value)) < len(value):
        return None
    if list(value) == [str(i) for i in range(len(value))]:
        return None  # numbers of outputs, not names
    return tuple(value)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(
        (isinstance(v, int) and not isinstance(v, bool)) or (isinstance(v, str) and v.isdecimal())
        for v in values
    )


def match_outputs(outputs: Sequence[str], classes: Sequence[str], source: str) -> list[int]:
    """Return for each class of the data the number of the model's output.

    Args:
        outputs: The classes in the order of the model's outputs.
        classes: The classes of the data.
        source: What states the order of the outputs, for messages.

    Raises:
        UserError: If the two are not the same classes.
    """
    outputs, classes = [str(name) for name in outputs], [str(name) for name in classes]
    plain = (lambda n: n, lambda n: " ".join(n.replace("_", " ").casefold().split()))
    for form in plain:
        place = {form(name): i for i, name in enumerate(outputs)}
        if len(place) == len(outputs) == len(classes) and place.keys() == set(map(form, classes)):
            return [place[form(name)] for name in classes]
    # Sets and counts, because a stranger's file may have any number of names, of any length.
    in_model, in_data = set(outputs), set(classes)
    lost = [name for name in classes if name not in in_model]
    extra = [name for name in outputs if name not in in_data]
    double = [name for name, count in Counter(outputs).items() if count > 1]
    problems = [
        f"{text} {', '.join(map(short_repr, names[:3]))}{' and more' if len(names) > 3 else ''}"
        for text, names in (("twice", double), ("not in the data:", extra), ("lacking:", lost))
        if names
    ]
    raise UserError(
        f"the {len(outputs)} classes of the model ({source}) are not the {len(classes)} classes of "
        f"the data ({'; '.join(problems)}); give the names of the data's classes in the order of "
        f"the model's outputs as {spell('classes')}."
    )
