"""The gradients of a head over features in closed form: no autograd, no graph."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.linear import unit_rows
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.samn import DIVERGED, EPS, MIN_RAW, SAMNLinear
from ltlearn.heads.scaled import ScaledLinear
from ltlearn.isotonic.scipy_engine import MonotoneRows

__all__ = [
    "CosineGradient",
    "LinearGradient",
    "NormalizedGradient",
    "SAMNGradient",
    "ScaledGradient",
    "closed_form_of",
]

_MAX_EXP = 80.0  # above it, exp overflows in float32, and softplus(q) is q
_EPS, _MINUS_ONE = np.float32(EPS), np.float32(-1)  # NumPy is slower to convert a Python float
_norm_backward = torch.ops.aten._weight_norm_interface_backward.default


def closed_form_of(head: nn.Module) -> "LinearGradient | None":
    """Return the closed form of a head, or None if it has none.

    Args:
        head: A head over features, all of whose parameters are trained.
    """
    parameters = list(head.parameters())
    if not all(p.requires_grad and p.dtype is torch.float32 for p in parameters):
        return None
    if type(head) is NormalizedFeatureHead:
        inner = closed_form_of(head.inner)
        return None if inner is None else NormalizedGradient(head, inner)
    if type(head) is nn.Linear:
        return LinearGradient(head)
    if type(head) is ScaledLinear:
        return ScaledGradient(head)
    if type(head) is CosineLinear:
        return CosineGradient(head)
    # On a device, NumPy's part would wait for it.
    if type(head) is SAMNLinear and head.project == "step" and head.weight.is_cpu:
        return SAMNGradient(head)
    return None


class LinearGradient:
    """Logits of a linear layer, and the gradients of its parameters from those of the logits.

    Args:
        head: The layer.

    Example:
        >>> form = LinearGradient(nn.Linear(2, 3))
        >>> form.logits(x).shape
        torch.Size([8, 3])
    """

    def __init__(self, head: nn.Module):
        self.head: Any = head
        self.parameters = list(head.parameters())
        # A module takes longer to look up an attribute.
        self.weight: Any = head.weight
        self.bias: Any = getattr(head, "bias", None)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        return F.linear(x, self.weight, self.bias)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_weight = grad.t() @ x
        return [of_weight] if self.bias is None else [of_weight, grad.sum(0)]

    def close(self) -> None:
        """Release what the gradients needed."""


class ScaledGradient(LinearGradient):
    """The same for a `ScaledLinear`."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        self._unscaled = super().logits(x)
        return self._unscaled * self.head.scales

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_scales = (grad * self._unscaled).sum(0)
        if self.head.trains == "scale":
            return [of_scales]
        of_linear = super().gradients(x, grad * self.head.scales)
        return [*(of.mul_(self.head.head_lr_factor) for of in of_linear), of_scales]


class CosineGradient(LinearGradient):
    """The same for a `CosineLinear`."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        self._x = unit_rows(x)
        self._rows = torch.linalg.vector_norm(self.head.weight, dim=1, keepdim=True)
        self._rows.clamp_(min=torch.finfo(x.dtype).tiny)
        self._unit = self.head.weight / self._rows
        return F.linear(self._x, self._unit * self.head.cosine_scale)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradient of the weight.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_unit = grad.t() @ self._x
        along = (of_unit * self._unit).sum(1, keepdim=True)
        of_unit.addcmul_(self._unit, along, value=-1)
        return [of_unit.mul_(self.head.cosine_scale / self._rows)]


class NormalizedGradient(LinearGradient):
    """The same for a `NormalizedFeatureHead`, by the closed form of its inner head.

    Args:
        head: The head.
        inner: The closed form of its inner head.
    """

    def __init__(self, head: NormalizedFeatureHead, inner: LinearGradient):
        self.head: Any = head
        self.inner, self.parameters = inner, inner.parameters

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        self._x = self.head.scaled(x)
        return self.inner.logits(self._x)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        return self.inner.gradients(self._x, grad)

    def close(self) -> None:
        """Release what the gradients needed."""
        self.inner.close()


class SAMNGradient(LinearGradient):
    """The same for a `SAMNLinear` on the CPU that projects after each step.

    The formulas are those of `SAMNLinear`. NumPy computes what has one number per class: a torch
    operation would take longer to start than to run. For this, both raw vectors share one piece of
    memory until `close`.

    Args:
        head: The head; its raw norms are as `project_` leaves them.
    """

    def __init__(self, head: SAMNLinear):
        super().__init__(head)
        raws = [head.raw_norm_weight, head.raw_norm_bias]
        self._on_weight, self._on_bias = (raw is not None for raw in raws)
        self._raws = [raw for raw in raws if raw is not None]
        together = torch.stack([raw.detach() for raw in self._raws])
        for raw, row in zip(self._raws, together, strict=True):
            raw.data = row
        self._q = q = together.numpy()
        # Memory that each step writes to again.
        self._exp, self._s = np.empty_like(q), np.empty_like(q)
        scale, of_raws = torch.empty_like(together), torch.empty_like(together)
        self._scale, self._of_raws = scale.numpy(), of_raws.numpy()
        self._scale_column, self._scale_of_bias = scale[0].unsqueeze(1), scale[-1]
        self._of_raws_by_row = of_raws.unbind()
        order = head.rank_to_class.numpy()
        self._top = order[-1]  # the class of the highest raw norm
        self._monotone = MonotoneRows(order, len(self._raws), MIN_RAW)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        q, exp, s, scale = self._q, self._exp, self._s, self._scale
        if q[0, self._top] > _MAX_EXP or q[-1, self._top] > _MAX_EXP:
            np.exp(q.clip(max=_MAX_EXP), out=exp)
            np.maximum(np.log1p(exp, out=s), q, out=s)
        else:
            np.exp(q, out=exp)
            np.log1p(exp, out=s)
        s += _EPS
        np.reciprocal(s, out=s)
        np.exp(s, out=scale)
        layer, shift = self.weight, self.bias
        if self._on_weight:
            layer, self._length = torch._weight_norm_interface(layer, self._scale_column, 0)
        if self._on_bias:
            shift = shift + self._scale_of_bias
        return F.linear(x, layer, shift)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`, once after each call of `logits`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_raws, scale, s, exp = self._of_raws, self._scale, self._s, self._exp
        of_weight, of_bias = grad.t() @ x, grad.sum(0)
        if self._on_weight:
            of_weight, of_length = _norm_backward(
                of_weight, self.weight, self._scale_column, self._length, 0
            )
            np.multiply(of_length.numpy()[:, 0], scale[0], out=of_raws[0])
        if self._on_bias:
            np.multiply(of_bias.numpy(), scale[-1], out=of_raws[-1])
        # d scale / d q = -scale s^2 exp / (1 + exp)
        s *= s
        of_raws *= s
        of_raws *= exp
        np.subtract(_MINUS_ONE, exp, out=exp)
        of_raws /= exp
        of_linear = [of_weight] if self.bias is None else [of_weight, of_bias]
        return [*of_linear, *self._of_raws_by_row]

    def project_(self) -> None:
        """Project the raw norms, as `SAMNLinear.project_` does.

        Raises:
            UserError: If a raw norm is not finite.
        """
        if not self._monotone(self._q.reshape(-1)):
            raise UserError(DIVERGED)

    def close(self) -> None:
        """Give each raw vector memory of its own again."""
        for raw in self._raws:
            raw.data = raw.data.clone()
