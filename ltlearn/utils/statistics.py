"""The mean and the standard deviation that images are normalised with."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ltlearn.errors import UserError
from ltlearn.utils.text import short_repr

__all__ = ["check_statistics", "is_triple"]


def check_statistics(mean: Any, std: Any) -> None:
    """Raise a `UserError` unless mean and standard deviation have three usable numbers each.

    Args:
        mean: Mean per channel for pixels in [0, 1].
        std: Standard deviation per channel for pixels in [0, 1].
    """
    for name, values in (("mean", mean), ("std", std)):
        values = values.tolist() if hasattr(values, "tolist") else values
        low = 0 if name == "mean" else 1e-6
        good = is_triple(values) and all(low <= v <= 1 for v in values)
        if not good:
            raise UserError(
                f"{name} must be three numbers from 0 to 1{'' if name == 'mean' else ', above 0'}, "
                f"one per channel, for pixels from 0 to 1; got {short_repr(values)}. Values for "
                "pixels from 0 to 255 are divided by 255."
            )


def is_triple(values: Any) -> bool:
    """Return whether values are three finite numbers in a sequence.

    Args:
        values: Anything.
    """
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) == 3
        and all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
        and all(math.isfinite(v) for v in values)
    )
