"""The gradients of a head over features in closed form: no autograd, no graph."""

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
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
    "KERNEL_STEPS",
    "CompiledSAMNGradient",
    "CosineGradient",
    "LinearGradient",
    "NormalizedGradient",
    "SAMNGradient",
    "ScaledGradient",
    "closed_form_of",
]

_log = logging.getLogger("ltlearn")

_MAX_EXP = 80.0  # above it, exp overflows in float32, and softplus(q) is q
# A step saves 0.05 ms. numba takes 0.4 s to import, and 1.4 s to compile where it has no cache.
# The rule reads the fit alone, so that a fit has the same digits whatever else a process has run.
KERNEL_STEPS = 20_000


def closed_form_of(head: nn.Module, steps: int = 0) -> "LinearGradient | None":
    """Return the closed form of a head, or None if it has none.

    Args:
        head: A head over features, all of whose parameters are trained.
        steps: Steps of the whole fit. From `KERNEL_STEPS` on, SAMN's part is compiled if numba is
            installed, and equal up to rounding.
    """
    parameters = list(head.parameters())
    if not all(p.requires_grad and p.dtype is torch.float32 for p in parameters):
        return None
    if type(head) is NormalizedFeatureHead:
        inner = closed_form_of(head.inner, steps)
        return None if inner is None else NormalizedGradient(head, inner)
    if type(head) is nn.Linear:
        return LinearGradient(head)
    if type(head) is ScaledLinear:
        return ScaledGradient(head)
    if type(head) is CosineLinear:
        return CosineGradient(head)
    # On a device, NumPy's part would wait for it.
    if type(head) is SAMNLinear and head.project == "step" and head.weight.is_cpu:
        use_kernel = steps >= KERNEL_STEPS and head.weight.is_contiguous() and _kernel()
        return CompiledSAMNGradient(head) if use_kernel else SAMNGradient(head)
    return None


@cache
def _kernel() -> ModuleType | None:
    """Return the compiled functions, or None if numba is not installed or not in use."""
    try:
        from ltlearn.heads import samn_kernel
    except ImportError as e:  # also where numba refuses a NumPy that it does not know
        _log.debug("SAMN trains without numba: %s", e)
        return None
    # NUMBA_DISABLE_JIT leaves Python functions, which would take a second for a step.
    return samn_kernel if hasattr(samn_kernel.scale_logits, "signatures") else None


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
        self.parameters: list[Tensor] = list(head.parameters())
        self.updated = self.parameters  # the tensors that an update changes
        # A module takes longer to look up an attribute.
        self.weight: Any = head.weight
        self.bias: Any = getattr(head, "bias", None)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        return F.linear(x, self.weight, self.bias)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `updated`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        of_weight = grad.t() @ x
        return [of_weight] if self.bias is None else [of_weight, grad.sum(0)]

    def momenta(self, momentum_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the momenta of `updated`.

        Args:
            momentum_of: Returns the momentum of a parameter.
        """
        return [momentum_of(p) for p in self.parameters]

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
        self.inner, self.parameters, self.updated = inner, inner.parameters, inner.updated

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        self._x = self.head.scaled(x)
        return self.inner.logits(self._x)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `updated`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        return self.inner.gradients(self._x, grad)

    def momenta(self, momentum_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the momenta of `updated`.

        Args:
            momentum_of: Returns the momentum of a parameter.
        """
        return self.inner.momenta(momentum_of)

    def close(self) -> None:
        """Release what the gradients needed."""
        self.inner.close()


class SAMNGradient(LinearGradient):
    """The same for a `SAMNLinear` on the CPU that projects after each step.

    The formulas are those of `SAMNLinear`. Here a call costs more than its work, and most of that
    is code that the rest of the step has evicted from the cache. So there are few kinds of calls:
    NumPy computes what has one number per class, in memory that it shares with torch, and all
    vectors of the head are rows of one matrix until `close`, with one update.

    Args:
        head: The head; its raw norms are as `project_` leaves them.
    """

    def __init__(self, head: SAMNLinear):
        super().__init__(head)
        self._norm_scale = None if head.norm_scale is None else np.float32(head.norm_scale)
        self._on_weight = head.raw_norm_weight is not None
        self._on_bias = head.raw_norm_bias is not None
        self._vectors = self.parameters[1:]
        matrix = torch.stack([vector.detach() for vector in self._vectors])
        for vector, row in zip(self._vectors, matrix.unbind(), strict=True):
            vector.data = row
        self._momenta: list[tuple[Tensor, Tensor]] = []
        # Memory that each step writes to again. Without it, the heads of thousands of classes would
        # wait for the system to clear fresh pages.
        of_matrix, of_weight = torch.empty_like(matrix), torch.empty_like(self.weight)
        self._gradients, self.updated = [of_weight, of_matrix], [self.weight, matrix]
        self._transposed = self.weight.detach().t()
        self._reserve(head.rank_to_class.numpy())

    def _reserve(self, order: np.ndarray) -> None:
        """Reserve memory for NumPy's part, and views of the memory that it shares with torch."""
        of_weight, of_matrix = self._gradients
        raws, size = self._on_weight + self._on_bias, len(order)
        self._monotone = MonotoneRows(order, raws, MIN_RAW)
        # The raw norms are the last rows. NumPy is faster with a flat array than with a matrix.
        rows, of_rows = self.updated[1].numpy(), of_matrix.numpy()
        start = (len(rows) - raws) * size
        self._q, self._bias_row = rows.reshape(-1)[start:], rows[0]
        # Where the first and the last of these rows have their highest raw norm.
        self._top, self._last_top = int(order[-1]), int(order[-1]) + (raws - 1) * size
        self._of_bias = of_matrix[0]
        self._of_bias_row, self._of_norms, self._of_shift = of_rows[0], of_rows[-raws], of_rows[-1]
        self._of_raws = of_rows.reshape(-1)[start:]
        self._rows, self._of_rows = self.weight.detach().numpy(), of_weight.numpy()
        work = of_matrix.new_empty(4, size)
        self._shift, self._factor, along, _ = work.unbind()
        self._along_column = along.unsqueeze(1)
        self._shift_row, self._factor_row, self._along, self._square = work.numpy()
        # The last two rows hold constants: NumPy is slower with a Python number than with an array.
        memory = np.empty((5, raws * size), np.float32)
        self._exp, self._s, scale, self._eps, self._minus_one = memory
        memory[3], memory[4] = EPS, -1
        self._scale, self._scale_of_weight, self._scale_of_bias = scale, scale[:size], scale[-size:]

    def momenta(self, momentum_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the momenta of `updated`; those of `parameters` get their values in `close`.

        Args:
            momentum_of: Returns the momentum of a parameter.
        """
        own = [momentum_of(vector) for vector in self._vectors]
        together = torch.stack(own)
        self._momenta = list(zip(own, together.unbind(), strict=True))
        return [momentum_of(self.weight), together]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        q, exp, s, scale = self._q, self._exp, self._s, self._scale
        if q.item(self._top) > _MAX_EXP or q.item(self._last_top) > _MAX_EXP:
            np.exp(q.clip(max=_MAX_EXP), out=exp)
            np.maximum(np.log1p(exp, out=s), q, out=s)
        else:
            np.exp(q, out=exp)
            np.log1p(exp, out=s)
        s += self._eps
        np.reciprocal(s, out=s)
        np.exp(s, out=scale)
        shift = self.bias
        if self._on_bias:
            np.add(self._bias_row, self._scale_of_bias, out=self._shift_row)
            shift = self._shift
        if not self._on_weight:
            return F.linear(x, self.weight, shift)
        # Scale the logits, not the weight: a batch has fewer images than a row has features.
        rows, factor = self._rows, self._factor_row
        np.vecdot(rows, rows, out=self._square)
        np.sqrt(self._square, out=factor)
        np.divide(self._scale_of_weight, factor, out=factor)
        if self._norm_scale is not None:
            factor *= self._norm_scale
        logits = torch.mm(x, self._transposed)
        if shift is None:
            return logits.mul_(self._factor)
        return torch.addcmul(shift, logits, self._factor, out=logits)

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `updated`, once after each call of `logits`.

        The next call writes to the same memory.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits; its memory is used.
        """
        s, exp, of_weight = self._s, self._exp, self._gradients[0]
        if self.bias is not None:
            torch.sum(grad, 0, out=self._of_bias)
        if self._on_bias:
            np.multiply(self._of_bias_row, self._scale_of_bias, out=self._of_shift)
        if self._on_weight:
            torch.mm(grad.mul_(self._factor).t(), x, out=of_weight)
            # With B = (scale / ||W||) G^T x: the gradient of s is B . W, and the gradient of W is
            # B - (B . W / ||W||^2) W.
            np.vecdot(self._of_rows, self._rows, out=self._of_norms)
            np.divide(self._of_norms, self._square, out=self._along)
            of_weight.addcmul_(self.weight, self._along_column, value=-1)
        else:
            torch.mm(grad.t(), x, out=of_weight)
        # ds / dq = -s^2 exp / (1 + exp)
        s *= s
        s *= exp
        np.subtract(self._minus_one, exp, out=exp)
        s /= exp
        self._of_raws *= s
        return self._gradients

    def project_(self) -> None:
        """Project the raw norms, as `SAMNLinear.project_` does.

        Raises:
            UserError: If a raw norm is not finite.
        """
        if not self._monotone(self._q):
            raise UserError(DIVERGED)

    def close(self) -> None:
        """Give each vector and its momentum memory of its own again."""
        for vector in self._vectors:
            vector.data = vector.data.clone()
        for own, row in self._momenta:
            own.copy_(row)


class CompiledSAMNGradient(SAMNGradient):
    """The same by `samn_kernel`: torch multiplies matrices, and three functions do the rest."""

    def _reserve(self, order: np.ndarray) -> None:
        """Reserve memory for the functions, and views of the memory that they share with torch."""
        # Not imported with this module, because it needs numba and compiles.
        from ltlearn.heads import samn_kernel

        self._scale_logits = samn_kernel.scale_logits
        self._fill_gradients = samn_kernel.fill_gradients
        self._project_rows = samn_kernel.project_rows
        self._parts = self._on_weight, self._on_bias
        raws = self._raws = sum(self._parts)
        self._order = np.ascontiguousarray(order)
        self._rows, self._vector_rows = self.weight.detach().numpy(), self.updated[1].numpy()
        self._of_rows, self._of_vector_rows = (of.numpy() for of in self._gradients)
        self._work = np.empty((samn_kernel.WORK_ROWS, len(order)), np.float32)
        self._ranked = np.empty((raws + 1, len(order)))
        self._ends = np.empty(len(order) + 1, np.int64)
        self._scale_of_norms = 1.0 if self._norm_scale is None else float(self._norm_scale)
        self._logits: dict[int, tuple[Tensor, np.ndarray]] = {}

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (N, C); the next call writes to the same memory."""
        if len(x) not in self._logits:
            memory = self.weight.new_empty(len(x), len(self.weight))
            self._logits[len(x)] = memory, memory.numpy()
        logits, array = self._logits[len(x)]
        torch.mm(x, self._transposed, out=logits)
        self._scale_logits(
            self._vector_rows, self._rows, array, self._work, *self._parts, self._scale_of_norms
        )
        return logits

    def gradients(self, x: Tensor, grad: Tensor) -> list[Tensor]:
        """Return the gradients of `updated`, once after each call of `logits`.

        The next call writes to the same memory.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits.
        """
        torch.mm(grad.t(), x, out=self._gradients[0])
        self._fill_gradients(
            grad.contiguous().numpy(), self._of_rows, self._of_vector_rows, self._rows,
            self._work, *self._parts,
        )  # fmt: skip
        return self._gradients

    def project_(self) -> None:
        """Project the raw norms, as `SAMNLinear.project_` does.

        Raises:
            UserError: If a raw norm is not finite.
        """
        if not self._project_rows(
            self._vector_rows, self._order, self._ranked, self._ends, self._raws, MIN_RAW
        ):
            raise UserError(DIVERGED)
