"""Convert values to what JSON and CSV files can hold."""

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["plain_cell", "plain_tensors", "plain_value"]


def plain_value(obj: object) -> Any:
    """Convert a value to dictionaries, lists, numbers, text and None.

    Args:
        obj: Mappings, sequences, sets, numbers and text; also dataclasses, pydantic models, paths,
            dates, enum members, and NumPy or torch scalars, arrays and tensors.

    Raises:
        TypeError: If it is or contains something else.

    Example:
        >>> plain_value({"loss": float("nan"), "classes": {"b", "a"}})
        {'loss': None, 'classes': ['a', 'b']}
    """
    if isinstance(obj, enum.Enum):
        return plain_value(obj.value)
    if obj is None or isinstance(obj, bool | str):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(plain_value(key)): plain_value(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain_value(value) for value in obj]
    if isinstance(obj, set | frozenset):
        return sorted(plain_value(value) for value in obj)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, date):
        return obj.isoformat()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain_value(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if hasattr(obj, "model_dump"):  # a pydantic model
        return plain_value(obj.model_dump())
    if hasattr(obj, "tolist"):  # a NumPy or torch scalar, array or tensor
        return plain_value(obj.tolist())
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON: {obj!r}")


def plain_cell(value: object) -> str | int | float | None:
    """Convert a value to a cell of a table.

    Args:
        value: As for `plain_value`. Not-a-number and infinity stay; None becomes an empty cell.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    return str(plain_value(value))


def plain_tensors(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return dense tensors on the CPU that share no memory, which safetensors requires.

    Args:
        tensors: Name to dense tensor, on any device.

    Raises:
        TypeError: If a value is not a dense tensor.
    """
    import torch

    plain, seen = {}, set()
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            kind = getattr(value, "layout", type(value).__name__)
            raise TypeError(f"tensors[{key!r}] must be a dense tensor, got {kind}")
        value = value.detach().as_subclass(torch.Tensor).cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[key] = value.clone() if storage in seen else value
        seen.add(storage)
    return plain
