"""A classifier whose logits are scaled cosines. Torch alone."""

import math
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError
from ltlearn.heads.scaled import logits_dtype

__all__ = ["CosineLinear"]

_MIN_LENGTH = 1e-12  # a feature of zeros has no direction, and its cosines are 0


class CosineLinear(nn.Module):
    """Classifier of scaled cosines: z_c = scale * cos(w_c, x). No bias, no norms.

    The classifier that LDAM is trained with: give `LDAMLoss` the same scale. The scale is part of
    the head, so that its logits are logits everywhere, in a report on calibration too.

    Args:
        in_features: D, features an image has.
        out_features: C, classes.
        scale: What the cosines are multiplied by, above 0, no unit. It is not trained.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits, in [-scale, scale].

    Raises:
        UserError: If `scale` is not above 0.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413. Departure: there the cosines are scaled in the
        loss; in the loss's value and in all gradients it makes no difference.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0):
        super().__init__()
        check_scale(scale)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_features, in_features)))
        # As a buffer, so that a state dict says all that is needed to build the head again.
        self.register_buffer("cosine_scale", torch.tensor(float(scale)))

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale: float = 30.0) -> "CosineLinear":
        """Build the head from the directions of a linear classifier; its bias is dropped.

        Args:
            linear: The classifier; it is left as it is.
            scale: What the cosines are multiplied by, above 0.

        Raises:
            UserError: If `linear` is none, a row of it is zero or not finite, or `scale` is not
                above 0.
        """
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"CosineLinear.from_linear needs an nn.Linear, got {type(linear).__name__}."
            )
        weight = linear.weight.detach()
        norms = weight.float().norm(dim=1)
        bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"CosineLinear: the weights of class {', '.join(map(str, bad[:5]))}"
                f"{' ...' if len(bad) > 5 else ''} are all zero or not finite, so they have no "
                "direction; train the classifier first."
            )
        head = cls(linear.in_features, linear.out_features, scale)
        head = head.to(weight.device, weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight)
        return head.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype = logits_dtype(x)
        # The scale goes to the C rows, which are fewer than the logits.
        weight = _unit(self.weight) * self.cosine_scale
        # Unit vectors are rounded, logits are not rounded twice.
        return F.linear(_unit(x).to(dtype), weight.to(dtype))

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's effective weight, (C,), float32: the scale, for all."""
        return self.cosine_scale.float().expand(self.out_features).clone()

    def fold(self) -> nn.Linear:
        """Refuse: no linear layer gives cosines.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a CosineLinear head cannot be folded into an nn.Linear: it divides each feature by "
            "its length; keep the head as it is, or take a linear classifier."
        )

    def extra_repr(self) -> str:
        """Say what the head is, for `repr`."""
        scale = "?" if self.cosine_scale.is_meta else f"{self.cosine_scale.item():g}"
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={scale}"

    def _apply(self, fn, recurse=True):
        # `.half()` and the like move the scale, but do not round it.
        def move(values: Tensor) -> Tensor:
            moved = fn(values)
            same = values is not self.cosine_scale or moved.dtype == values.dtype
            return moved if same else values.to(moved.device)

        return super()._apply(move, recurse)


def check_scale(scale: float) -> None:
    """Raise a `UserError` unless `scale` is a finite number above 0."""
    number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        raise UserError(f"scale must be a number above 0 and finite, got {scale!r}.")


def _unit(rows: Tensor) -> Tensor:
    """Divide each row by its length, in float32 or float64."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=_MIN_LENGTH)
