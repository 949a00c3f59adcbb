"""Vectors with one number per class: check them, and store them exactly. Torch alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltlearn.errors import UserError

__all__ = ["check_vector", "exact_counts", "reversed_ranks"]


def check_vector(
    name: str,
    values: Tensor | Sequence[float],
    *,
    min_length: int = 2,
    allow_zeros: bool = False,
) -> Tensor:
    """Check a vector with one number per class and return a float64 copy on the CPU.

    Args:
        name: The parameter, for the error.
        values: Finite numbers of at least 0.
        min_length: The fewest classes allowed.
        allow_zeros: Whether all numbers may be 0.

    Raises:
        UserError: If the values are no such vector.
    """
    try:
        vector = torch.as_tensor(values).as_subclass(Tensor).detach().cpu().double().clone()
    except (ValueError, TypeError, RuntimeError):
        raise UserError(f"{name} must be a vector of numbers, got {values!r}.") from None
    if vector.ndim != 1 or len(vector) < min_length:
        raise UserError(
            f"{name} must be a vector of numbers, one for each of at least {min_length} "
            f"{'class' if min_length == 1 else 'classes'}, got shape {tuple(vector.shape)}."
        )
    bad = (~torch.isfinite(vector) | (vector < 0)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"{name}[{bad[0]}] is {vector[bad[0]].item():g}; it must be finite and not negative."
        )
    if not allow_zeros and not vector.any():
        raise UserError(f"{name} must not be 0 for all {len(vector)} classes.")
    return vector


def exact_counts(counts: Tensor) -> Tensor:
    """Convert float64 counts to int64 if all are whole, else to float32.

    Integers stay exact when a module is converted by `.half()` or `.bfloat16()`.

    Args:
        counts: Training images per class, float64.
    """
    is_whole = bool((counts == counts.round()).all()) and counts.max() < 2**53
    return counts.long() if is_whole else counts.float()


def reversed_ranks(counts: Tensor) -> Tensor:
    """Give the rarest class the largest count, and so on; equal counts rank in label order.

    Args:
        counts: One number per class.

    Shape:
        counts is (C,). The result is a new tensor, (C,), with the same values in another order.
    """
    most_frequent_first = torch.argsort(counts, descending=True, stable=True)
    result = counts.clone()
    result[most_frequent_first] = counts[most_frequent_first.flip(0)]
    return result
