"""Read and build the linear layers that post-hoc corrections work on."""

import logging

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.utils.text import name_classes

__all__ = ["warn_without_images", "as_linear_layer", "new_linear"]

_log = logging.getLogger("ltlearn")


def warn_without_images(counts: Tensor, consequence: str) -> None:
    """Log a warning about classes without images.

    Args:
        counts: Training images per class, (C,).
        consequence: What happens to such a class, for the warning.
    """
    empty = counts == 0
    if empty.any():
        _log.warning("no training images of class %s; %s.", name_classes(empty), consequence)


def as_linear_layer(head: nn.Module) -> nn.Linear:
    """Return the plain linear layer that is equal to a head: itself, or the folded head."""
    fold = getattr(head, "fold", None)
    linear = fold() if callable(fold) else head
    if not isinstance(linear, nn.Linear):
        raise UserError(
            "the classifier must be an nn.Linear or a head whose fold() returns one, got "
            f"{type(head).__name__}."
        )
    return linear


@torch.no_grad()
def new_linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Create a linear layer with the given weight and bias.

    Args:
        like: Layer with the same sizes, dtype, device and mode.
        weight: The weight, (C, D).
        bias: The bias, (C,), or None.
    """
    # `skip_init` leaves the random number generator as it is.
    linear = nn.utils.skip_init(
        nn.Linear,
        like.in_features,
        like.out_features,
        bias=bias is not None,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    bad = ~linear.weight.isfinite().all(1)
    if bias is not None:
        bad |= ~linear.bias.isfinite()
    if bad.any():
        raise UserError(
            f"the corrected classifier of class {name_classes(bad)} is not finite in "
            f"{like.weight.dtype}; use float32, or a weaker correction."
        )
    return linear.train(like.training)
