"""The gradients of a head over features in closed form: no autograd, no graph."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.heads.samn import EPS, SAMNLinear

__all__ = ["LinearGradient", "SAMNGradient", "closed_form_of"]

_norm_backward = torch.ops.aten._weight_norm_interface_backward.default


def closed_form_of(head: nn.Module) -> "LinearGradient | None":
    """Return the closed form of a head, or None if it has none.

    Args:
        head: A head over features, all of whose parameters are trained.
    """
    parameters = list(head.parameters())
    if not all(p.requires_grad and p.dtype is torch.float32 for p in parameters):
        return None
    if type(head) is nn.Linear:
        return LinearGradient(head)
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
        self.head = head
        self.parameters = list(head.parameters())

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        return F.linear(x, self.head.weight, self.head.bias)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_weight = grad.t() @ x
        return [of_weight] if self.head.bias is None else [of_weight, grad.sum(0)]


class SAMNGradient(LinearGradient):
    """The same for a `SAMNLinear` on the CPU that projects after each step.

    NumPy computes what has one number per class: a torch operation would take longer to start than
    to run. The formulas are those of `SAMNLinear`.

    Args:
        head: The head; its raw norms are monotone and above their limit, as `project_` leaves them.
    """

    def __init__(self, head: SAMNLinear):
        super().__init__(head)
        raws = (head.raw_norm_weight, head.raw_norm_bias)
        self._raws = [raw.detach().numpy() for raw in raws if raw is not None]
        self._q = np.empty((len(self._raws), head.out_features), np.float32)
        self._of_scale = np.empty_like(self._q)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        head, q = self.head, self._q
        for row, raw in zip(q, self._raws, strict=True):
            row[:] = raw
        exp = np.exp(np.minimum(q, 80))
        # log(1 + exp(q)), and q itself where exp would overflow.
        self._s = s = 1 / (np.maximum(np.log1p(exp), q) + EPS)
        scale = np.exp(s)
        # d scale / d q
        self._slope = -scale * s * s * (exp / (1 + exp))
        layer, shift = head.weight, head.bias
        if head.raw_norm_weight is not None:
            self._scale = torch.from_numpy(scale[0]).unsqueeze(1)
            layer, self._length = torch._weight_norm_interface(head.weight, self._scale, 0)
        if head.raw_norm_bias is not None:
            shift = shift + torch.from_numpy(scale[-1])
        return F.linear(x, layer, shift)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `parameters`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        head, of_scale = self.head, self._of_scale
        of_weight, of_bias = grad.t() @ x, grad.sum(0)
        if head.raw_norm_weight is not None:
            of_weight, of_length = _norm_backward(
                of_weight, head.weight, self._scale, self._length, 0
            )
            of_scale[0] = of_length.numpy()[:, 0]
        if head.raw_norm_bias is not None:
            of_scale[-1] = of_bias.numpy()
        of_raws = torch.from_numpy(of_scale * self._slope).unbind()
        return [of_weight, *of_raws] if head.bias is None else [of_weight, of_bias, *of_raws]
