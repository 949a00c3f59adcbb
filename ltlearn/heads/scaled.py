"""A linear classifier whose logits are scaled class by class. Torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_choice
from ltlearn.heads.foldable import Foldable

__all__ = ["ScaledLinear", "logits_dtype"]

TRAINED = ("scale", "all")


class ScaledLinear(Foldable):
    """Linear classifier with a factor per class: z_c = f_c * (w_c . x + b_c).

    The factors start at 1, and with them as the linear layer's own logits. With `train="scale"`
    weight and bias are buffers: no `unfreeze`, optimiser or weight decay reaches them.

    Args:
        in_features: D, features an image has.
        out_features: C, classes.
        bias: Whether there is a bias.
        train: What can be trained. "scale": the C factors alone (LWS). "all": factors, weight and
            bias together (MiSLAS).

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits.

    Raises:
        UserError: If `train` is unknown.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (learnable weight scaling); Zhong et al., CVPR
        2021, arXiv:2104.00466 (MiSLAS). As in the code of both, the factor multiplies the bias too.
    """

    # What the gradients of weight and bias are multiplied by. It belongs to a training, not to the
    # weights, so the state dict does not know of it.
    head_lr_factor: float = 1.0

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, train: str = "scale"
    ):
        super().__init__()
        check_choice("train", train, TRAINED)
        self.in_features, self.out_features = in_features, out_features
        start = nn.Linear(in_features, out_features, bias)
        for name, value in (("weight", start.weight), ("bias", start.bias)):
            if train == "all" or value is None:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach())
        self.scales = nn.Parameter(torch.ones(out_features))
        if train == "scale":
            # A state dict then tells by its keys what the head is, and one kind does not load as
            # the other unnoticed.
            self.register_buffer("trains_scales_alone", torch.tensor(True))

    @classmethod
    def from_linear(cls, linear: nn.Linear, train: str = "scale") -> "ScaledLinear":
        """Build the head from a trained linear classifier, with the same logits.

        Args:
            linear: The classifier; it is left as it is.
            train: "scale" or "all".

        Raises:
            UserError: If `linear` is none, or `train` is unknown.
        """
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"ScaledLinear.from_linear needs an nn.Linear, got {type(linear).__name__}."
            )
        weight, bias = linear.weight.detach(), linear.bias
        head = cls(linear.in_features, linear.out_features, bias is not None, train)
        head = head.to(weight.device, weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias is not None:
                head.bias.copy_(bias)
        return head.train(linear.training)

    @property
    def trains(self) -> str:
        """Return what can be trained, "scale" or "all"."""
        return "all" if isinstance(self.weight, nn.Parameter) else "scale"

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype = logits_dtype(x)
        weight, bias, scales = self.weight, self.bias, self.scales
        if self.head_lr_factor != 1 and torch.is_grad_enabled():
            weight, bias = self._slowed(weight), self._slowed(bias)
        bias = None if bias is None else bias.to(dtype)
        logits = F.linear(x.to(dtype), weight.to(dtype), bias)
        # The factors keep their digits: each is read N times, and its gradient is a sum over N.
        return (logits * scales).to(dtype)

    def _slowed(self, values: Tensor | None) -> Tensor | None:
        """Return the same values, whose gradient is multiplied by `head_lr_factor`."""
        if values is None or not values.requires_grad:
            return values
        still = values.detach()
        return still + self.head_lr_factor * (values - still)

    @torch.no_grad()
    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (C, D) and bias (C,) of the linear layer that this head stands for."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scales = self.scales.to(wide)
        bias = None if self.bias is None else self.bias.to(wide) * scales
        return self.weight.to(wide) * scales[:, None], bias

    def extra_repr(self) -> str:
        """Say what the head is, for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, train={self.trains!r}"
        )


def logits_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a head answers: that of its input, or of autocast around it."""
    kind = x.device.type
    # Autocast leaves float64 as it is.
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype
