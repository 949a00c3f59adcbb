"""A classifier whose logits are scaled cosines. Torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_number
from ltlearn.heads.linear import (
    check_directions,
    check_linear,
    in_full_precision,
    logits_dtype,
    unit_rows,
    without_rounding,
)

__all__ = ["CosineLinear"]


class CosineLinear(nn.Module):
    """Classifier of scaled cosines: z_c = scale * cos(w_c, x). No bias, no norms.

    LDAM trains this classifier; give `LDAMLoss` the same scale. The head applies the scale itself,
    so its output can be used as logits everywhere, also to measure calibration.

    Args:
        in_features: D, features per image.
        out_features: C, classes.
        scale: The factor on the cosines, > 0, no unit. It is not trained.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits, in [-scale, scale].

    Raises:
        UserError: If `scale` is not above 0.

    Source:
        Cao et al., NeurIPS 2019, arXiv:1906.07413. Departure: the authors scale the cosines in the
        loss; the loss and all gradients are the same.

    Example:
        >>> head = CosineLinear(in_features=64, out_features=10)
        >>> head(torch.randn(8, 64)).shape
        torch.Size([8, 10])
    """

    cosine_scale: Tensor

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0):
        super().__init__()
        check_number("scale", scale, 0, above=True)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_features, in_features)))
        # A buffer, so that the head can be rebuilt from its state dict alone.
        self.register_buffer("cosine_scale", torch.tensor(float(scale)))

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale: float = 30.0) -> "CosineLinear":
        """Build the head from the directions of a linear classifier; its bias is dropped.

        Args:
            linear: The classifier; it is not changed.
            scale: The factor on the cosines, > 0.

        Raises:
            UserError: If `linear` is no `nn.Linear`, one of its rows is zero or not finite, or
                `scale` is not above 0.
        """
        check_linear(linear, cls.__name__)
        check_directions(linear, cls.__name__)
        weight = linear.weight.detach()
        head = cls(linear.in_features, linear.out_features, scale)
        head = head.to(weight.device, weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight)
        return head.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype = logits_dtype(x)
        # Scale the C weight rows rather than the N x C logits.
        weight = unit_rows(in_full_precision(self.weight)) * self.cosine_scale
        # Round the unit vectors to the output dtype; the logits are then rounded only once.
        return F.linear(unit_rows(in_full_precision(x)).to(dtype), weight.to(dtype))

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's effective weight, (C,), float32: always the scale."""
        return self.cosine_scale.float().expand(self.out_features).clone()

    def fold(self) -> nn.Linear:
        """Raise: a linear layer cannot compute cosines.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a CosineLinear head cannot be folded into an nn.Linear: it divides each feature by "
            "its length; keep the head, or use a linear classifier."
        )

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        scale = "?" if self.cosine_scale.is_meta else f"{self.cosine_scale.item():g}"
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={scale}"

    def _apply(self, fn, recurse=True):
        return super()._apply(without_rounding(fn, self.cosine_scale), recurse)
