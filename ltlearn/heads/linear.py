"""Checks and rules that the heads share. Torch alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.utils.text import name_classes

__all__ = [
    "check_directions",
    "check_linear",
    "in_full_precision",
    "logits_dtype",
    "unit_rows",
    "without_rounding",
]

_MIN_LENGTH = 1e-12  # a shorter row has no direction


def check_linear(linear: nn.Module, head: str) -> None:
    """Raise a `UserError` unless a head is built from an `nn.Linear`.

    Args:
        linear: The classifier to build from.
        head: The name of the head's class.
    """
    if not isinstance(linear, nn.Linear):
        raise UserError(f"{head}.from_linear needs an nn.Linear, got {type(linear).__name__}.")


def check_directions(linear: nn.Linear, head: str) -> Tensor:
    """Return the norm of each row; raise a `UserError` if one is zero or not finite.

    Args:
        linear: The classifier to build from.
        head: The name of the head's class.
    """
    norms = linear.weight.detach().float().norm(dim=1)
    has_none = ~torch.isfinite(norms) | (norms == 0)
    if has_none.any():
        raise UserError(
            f"{head}: the weights of class {name_classes(has_none)} are all zero or not finite, so "
            "they have no direction; train the classifier first."
        )
    return norms


def logits_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a head's logits: the input's, or autocast's inside autocast."""
    kind = x.device.type
    # Autocast leaves float64 unchanged.
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def in_full_precision(values: Tensor) -> Tensor:
    """Return values in float32, or in their own dtype if that is longer.

    Args:
        values: The values, any floating dtype.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(rows: Tensor) -> Tensor:
    """Divide each row by its length; a row without a length becomes 0, and so does its gradient.

    Args:
        rows: The rows.

    Shape:
        rows is (..., D), float32 or float64, and so is the result.
    """
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # A clamp of the length would give a row of zeros a gradient of 1 / _MIN_LENGTH.
    has_none = lengths < _MIN_LENGTH
    return (rows / lengths.masked_fill(has_none, 1)).masked_fill(has_none, 0)


def without_rounding(fn: Callable[[Tensor], Tensor], *exact: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function of `nn.Module._apply` that moves some buffers but keeps their dtype.

    `.half()` and similar calls would round them.

    Args:
        fn: The function that `_apply` got.
        *exact: The buffers.
    """

    def move(values: Tensor) -> Tensor:
        moved = fn(values)
        same = all(values is not one for one in exact) or moved.dtype == values.dtype
        return moved if same else values.to(moved.device)

    return move
