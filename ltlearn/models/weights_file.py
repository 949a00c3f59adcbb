"""Read a file of weights, and find a model's tensors in it, whatever wrote the file."""

import argparse
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltlearn.errors import UserError, spell
from ltlearn.models.backbone import LTModel, is_adapter_tensor
from ltlearn.models.experts import plain_key
from ltlearn.utils.stored_weights import check_stored_weights, read_shapes
from ltlearn.utils.system_errors import unreadable

__all__ = [
    "FoundWeights",
    "check_sizes",
    "describe_some",
    "find_weights",
    "read_weights_file",
]

_FORMATS = (
    "give a model's state_dict() as saved by safetensors (.safetensors) or by torch.save "
    "(.pth, .pt, .bin)"
)
# Objects that training frameworks store beside the weights. They are read as inert stand-ins.
_STAND_INS = (
    "numpy.", "pathlib.", "datetime.", "collections.", "types.SimpleNamespace", "functools.partial",
    "fastcore.foundation.L", "lightning.", "lightning_fabric.", "pytorch_lightning.", "omegaconf.",
    "yacs.", "easydict.", "addict.", "mmengine.", "mmcv.", "torch.optim.", "torch.torch_version.",
)  # fmt: skip
_DICTIONARIES = ("Dict", "dict", "CfgNode")
# What wrappers put before every name, for files whose other names differ from timm's.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
_MAX_DEPTH = 3  # dictionaries inside each other
_MOST = 0.5  # the share of a model's tensors that makes a set of tensors its weights
_MAX_FREE_HEAD = 10_000_000  # numbers in a head, whatever the size of the model's own
_SIMILAR = 0.9  # sets with this share of the best set's tensors compete with it


class _StandIn:
    """Takes the place of an object that is no tensor. It runs and keeps nothing of the file."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


@dataclass(frozen=True)
class FoundWeights:
    """The tensors of one model in a file.

    Args:
        inside: The model's tensors, by the model's own names.
        outside: Tensors that stand beside the model, such as a classifier of its own.
        key: Where the tensors are in the file; "" if they are the whole file.
    """

    inside: dict[str, Tensor]
    outside: dict[str, Tensor] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True)
class _Set:
    """Named tensors in a file.

    Args:
        key: Where they are, with dots between the keys.
        parent: The key of the dictionary that contains them.
        tensors: The tensors by name.
    """

    key: str
    parent: str
    tensors: dict[str, Tensor]


def read_weights_file(path: Path) -> dict[str, Any]:
    """Read a file of weights with all that it holds, and run no code in it.

    Args:
        path: A file that safetensors or `torch.save` wrote.

    Raises:
        UserError: If there is no such file, it is damaged, or holds objects that could run code.
    """
    if not os.path.isfile(path):  # a name that is too long raises an error in `Path.is_file`
        raise UserError(
            f"there is no weights file {path}; give a .safetensors or .pth file, or "
            f"{spell('pretrained', False)}."
        )
    check_stored_weights(path)
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            content = _read_pickle(path)
    except Exception as e:
        if "Unsupported global" in f"{e} {e.__cause__}":
            raise UserError(
                f"{path} holds Python objects besides tensors, which could run code when loaded, "
                "so it is not opened; save the model's state_dict() alone, best as .safetensors."
            ) from None
        if isinstance(e, OSError):
            raise unreadable(path, e) from e
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch tensors"
        raise UserError(
            f"{path} cannot be read: it is no file of {kind}, or damaged; {_FORMATS}."
        ) from e
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, but no named tensors; {_FORMATS}."
        )
    if not any(True for _ in _sets_in(content)):
        names = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(f"{path} holds {names}, but no named tensors; {_FORMATS}.")
    return dict(content)


def check_sizes(path: Path, model: LTModel) -> None:
    """Check the header of a safetensors file against a model, before its tensors take memory.

    Args:
        path: The file. It may lack tensors, and hold the head of another kind, or adapters.
        model: The model; it may be on the device "meta".

    Raises:
        UserError: If a tensor of the backbone has another shape, the head is far too large, the
            adapters are larger than the backbone, or the file is missing or damaged.
    """
    shapes, own = read_shapes(path), model.state_dict()
    of_head = {key: shape for key, shape in shapes.items() if key.startswith("head.")}
    allowed = max(_MAX_FREE_HEAD, 4 * sum(v.numel() for v in model.head.state_dict().values()))
    # The model gets adapters only when they are loaded.
    new = {k: v for k, v in shapes.items() if k not in own and is_adapter_tensor(k)}
    # Each expert has the shapes of a model without experts.
    rest = shapes.keys() - of_head.keys() - new.keys()
    plain = {key: own.get(key, own.get(plain_key(key))) for key in rest}
    fits = all(v is not None and v.shape == shapes[key] for key, v in plain.items())
    fits &= sum(map(math.prod, new.values())) <= sum(v.numel() for v in own.values())
    if not fits or sum(map(math.prod, of_head.values())) > allowed:
        raise UserError(f"{path} holds the weights of another model.")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # Metadata is text, so it cannot be mistaken for a tensor of the same name.
    return {**metadata, **tensors}


def _read_pickle(path: Path) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # an old format, or damaged: reading the file will raise
        names = [
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ] + ["numpy.dtype", "numpy.ndarray"]
    safe: list[Any] = [argparse.Namespace]
    for name in names:
        if name.startswith(_STAND_INS):
            safe.append((dict if name.endswith(_DICTIONARIES) else _StandIn, name))
    with torch.serialization.safe_globals(safe):
        return torch.load(path, map_location="cpu", weights_only=True)


def find_weights(
    content: Mapping[str, Any], path: Path, names: Collection[str], key: str | None = None
) -> FoundWeights:
    """Find the weights of a model in a file.

    They may lie in dictionaries inside each other and below a prefix, such as "module.".

    Args:
        content: The content of the file.
        path: The file, for messages.
        names: The names of the model's tensors.
        key: Which of several sets of weights is taken; None takes the only one.

    Raises:
        UserError: If the file has no such set, or holds several that differ and `key` is None.
    """
    names, sets = set(names), list(_sets_in(content))
    found = [(one, prefix, n) for one in sets for prefix, n in _prefixes(one, names)]
    most = max((n for *_, n in found), default=0)
    if most < _MOST * len(names):
        # The file has names of its own, which a filter of timm may know.
        found = [(one, _wrapper(one), len(one.tensors)) for one in sets]
        most = max(n for *_, n in found)
    found = [(one, prefix) for one, prefix, n in found if n >= _SIMILAR * most]
    one, prefix = _choose(found, path, key)
    inside = {k.removeprefix(prefix): v for k, v in one.tensors.items() if k.startswith(prefix)}
    outside = {k: v for k, v in one.tensors.items() if not k.startswith(prefix)}
    for other in sets:
        # Some codes store backbone and classifier side by side.
        if (
            other.parent == one.parent
            and other.key != one.key
            and other not in [s for s, _ in found]
        ):
            outside |= {f"{other.key}.{k}".lstrip("."): v for k, v in other.tensors.items()}
    return FoundWeights(inside, outside, _label(one, prefix))


def _sets_in(
    content: Mapping[str, Any], key: str = "", parent: str = "", depth: int = 0
) -> Iterator[_Set]:
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield _Set(key, parent, tensors)
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _sets_in(value, f"{key}.{name}".lstrip("."), key, depth + 1)


def _prefixes(one: _Set, names: set[str]) -> list[tuple[str, int]]:
    """Return the prefixes below which the names are found, and how many of them are."""
    counts: dict[str, int] = {}
    for key in one.tensors:
        start = 0
        while start >= 0:
            if key[start:] in names:
                counts[key[:start]] = counts.get(key[:start], 0) + 1
            start = key.find(".", start) + 1 or -1
    return list(counts.items())


def _wrapper(one: _Set) -> str:
    """Return the wrappers that stand before every name."""
    prefix = ""
    while True:
        more = [w for w in _WRAPPERS if all(k.startswith(prefix + w) for k in one.tensors)]
        if not more:
            return prefix
        prefix += more[0]


def _label(one: _Set, prefix: str) -> str:
    return ".".join(part for part in (one.key, prefix.rstrip(".")) if part)


def _choose(found: list[tuple[_Set, str]], path: Path, key: str | None) -> tuple[_Set, str]:
    """Return the set of weights that `key` names, or the only one."""
    if key is not None:
        fitting = [(s, p) for s, p in found if key in (s.key, p.rstrip("."), _label(s, p))]
        if not fitting:
            labels = ", ".join(filter(None, (_label(s, p) for s, p in found)))
            has = f"has {labels}" if labels else "is one set of weights without a name"
            raise UserError(
                f"{spell('weights_key', key)} names no weights in {path}, which {has}; correct it "
                "or leave it out."
            )
        found = fitting
    first = _tensors_of(*found[0])
    if all(_are_equal(first, _tensors_of(*other)) for other in found[1:]):
        return found[0]
    labels = [_label(s, p) for s, p in found]
    named = ", ".join(label or "one without a name" for label in labels)
    raise UserError(
        f"{path} holds several sets of weights that differ: {named} (a moving average often has "
        f"ema in its name); choose one, for example with {spell('weights_key', max(labels))}."
    )


def _tensors_of(one: _Set, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in one.tensors.items() if k.startswith(prefix)}


def _are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        v.shape == second[k].shape and torch.equal(v, second[k]) for k, v in first.items()
    )


def describe_some(names: list[str]) -> str:
    """Describe tensors by their number and the first one's name.

    Args:
        names: Their names, at least one.
    """
    if len(names) == 1:
        return f"a tensor {names[0]}"
    return f"{len(names)} tensors such as {names[0]}"
