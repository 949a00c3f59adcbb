"""A linear classifier with a factor on the logits of each class. Torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import check_choice
from ltlearn.heads.foldable import Foldable
from ltlearn.heads.linear import check_linear, logits_dtype

__all__ = ["ScaledLinear"]

TRAINED = ("scale", "all")


class ScaledLinear(Foldable):
    """Linear classifier with a factor per class: z_c = f_c * (w_c . x + b_c).

    The factors start at 1, so the first logits equal the linear layer's. With `train="scale"`,
    weight and bias are buffers: no `unfreeze`, optimiser or weight decay changes them.

    Args:
        in_features: D, features per image.
        out_features: C, classes.
        bias: Whether there is a bias.
        train: The trainable part. "scale": the C factors alone (LWS). "all": factors, weight and
            bias (MiSLAS).

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits.

    Raises:
        UserError: If `train` is unknown.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217 (learnable weight scaling); Zhong et al., CVPR
        2021, arXiv:2104.00466 (MiSLAS). As in both codes, the factor multiplies the bias too.

    Example:
        >>> head = ScaledLinear.from_linear(nn.Linear(64, 10))
        >>> [name for name, _ in head.named_parameters()]
        ['scales']
    """

    # A factor on the gradients of weight and bias. It belongs to a training and not to the weights,
    # so the state dict does not hold it.
    head_lr_factor: float = 1.0
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, train: str = "scale"
    ):
        super().__init__()
        check_choice("train", train, TRAINED)
        self.in_features, self.out_features = in_features, out_features
        start = nn.Linear(in_features, out_features, bias)
        for name, value in (("weight", start.weight), ("bias", start.bias)):
            if train == "all" or value is None:
                self.register_parameter(name, value)  # type: ignore[arg-type]
            else:
                self.register_buffer(name, value.detach())
        self.scales = nn.Parameter(torch.ones(out_features))
        if train == "scale":
            # The keys of the state dict then differ between the two kinds, so that one kind does
            # not load into the other without an error.
            self.register_buffer("trains_scales_alone", torch.tensor(True))

    @classmethod
    def from_linear(cls, linear: nn.Linear, train: str = "scale") -> "ScaledLinear":
        """Build the head from a trained linear classifier, with the same logits.

        Args:
            linear: The classifier; it is not changed.
            train: "scale" or "all".

        Raises:
            UserError: If `linear` is no `nn.Linear`, or `train` is unknown.
        """
        check_linear(linear, cls.__name__)
        weight, bias = linear.weight.detach(), linear.bias
        head = cls(linear.in_features, linear.out_features, bias is not None, train)
        head = head.to(weight.device, weight.dtype)
        with torch.no_grad():
            head.weight.copy_(weight)
            if head.bias is not None:
                head.bias.copy_(bias)
        return head.train(linear.training)

    @property
    def trains(self) -> str:
        """Return the trainable part, "scale" or "all"."""
        return "all" if isinstance(self.weight, nn.Parameter) else "scale"

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype = logits_dtype(x)
        weight, bias, scales = self.weight, self.bias, self.scales
        if self.head_lr_factor != 1 and torch.is_grad_enabled():
            weight, bias = self._slowed(weight), None if bias is None else self._slowed(bias)
        bias = None if bias is None else bias.to(dtype)
        logits = F.linear(x.to(dtype), weight.to(dtype), bias)
        # The factors keep full precision: their gradients are sums over the N images.
        return (logits * scales).to(dtype)

    def _slowed(self, values: Tensor) -> Tensor:
        """Return the same values with a gradient multiplied by `head_lr_factor`."""
        if not values.requires_grad:
            return values
        constant = values.detach()
        return constant + self.head_lr_factor * (values - constant)

    @torch.no_grad()
    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight (C, D) and the bias (C,) of the equal linear layer."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scales = self.scales.to(wide)
        bias = None if self.bias is None else self.bias.to(wide) * scales
        return self.weight.to(wide) * scales[:, None], bias

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, train={self.trains!r}"
        )
