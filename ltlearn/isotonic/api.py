"""The one public function, what it accepts, and its gradient."""

from collections.abc import Callable
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg.blas import dasum  # the quickest pass over a short row, and it never warns
from scipy.optimize import isotonic_regression
from torch import Tensor, from_numpy

from ltlearn.isotonic import scipy_engine, tensor_ops

__all__ = ["pava"]


class _Engine(NamedTuple):
    solve: Callable[[Tensor, Tensor | None], Tensor]  # increasing fit of y under weights
    blocks: Callable[[Tensor], Any]  # the blocks of a solution, in a form of the engine's own
    block_means: Callable[[Tensor, Any, Tensor | None], Tensor]


_ENGINES = {
    "scipy": _Engine(scipy_engine.solve, scipy_engine.blocks, scipy_engine.block_means),
    "tensor_ops": _Engine(tensor_ops.solve, tensor_ops.blocks, tensor_ops.block_means),
}
_DEVICE_ENGINE = {"cpu": "scipy"}  # a device that is not named: "tensor_ops"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT64, _FLOAT32 = _DTYPES[:2]
_NUMPY_FLOAT32 = np.dtype("float32")
_PLAIN = (Tensor, torch.nn.Parameter)  # no subclass with a `numpy` of its own


def pava(
    y: Tensor,
    weights: Tensor | None = None,
    increasing: bool = True,
    engine: str | None = None,
) -> Tensor:
    """Fit the closest monotone sequence to each row of `y`: L2 isotonic regression.

    The fit is exact. Backward averages the gradient over each pooled block, in time linear in N;
    at a tie between two blocks, where there is no gradient, it takes one that holds nearby.
    There is no second derivative (backward with create_graph=True raises a RuntimeError) and no
    forward-mode derivative.

    Args:
        y: Values, finite. While a CUDA graph is captured they are not checked, because a check
            needs the host.
        weights: Weight of each value in the squared error, positive and finite. None is 1
            everywhere.
        increasing: True for a non-decreasing fit, False for a non-increasing one.
        engine: "scipy" (CPU), "tensor_ops" (any device), or None to follow the device of `y`.

    Shape:
        y is (..., N) with N >= 1, float64, float32, bfloat16 or float16; weights are of the shape
        of y or (N,). The result is of y's shape and dtype. Sums are taken in float64 (float32 on
        MPS, which has no float64).

    Raises:
        TypeError: If `y` or `weights` is no tensor of such a dtype, or `engine` no string.
        ValueError: If `y` has no last dimension or an empty one, a value is not finite, a weight
            is not positive and finite, the shape or the device of `weights` does not fit `y`,
            or `engine` is unknown or cannot work on `y`'s device.

    Source:
        Barlow et al., "Statistical Inference under Order Restrictions", Wiley 1972, for the
        problem; Busing, Journal of Statistical Software 102, 2022, for SciPy's O(N) solver.
    """
    # The commonest call leaves early: the checks below would cost a short row more than its fit.
    if weights is None and increasing and engine is None and type(y) in _PLAIN:
        dtype = y.dtype
        if (dtype is _FLOAT64 or dtype is _FLOAT32) and y.is_cpu and y.ndim == 1:
            needs_grad = y.requires_grad
            fit = isotonic_regression((y.detach() if needs_grad else y).numpy())
            row = fit["x"]
            # A value that is not finite leaves its block so, and with it the sum of magnitudes.
            if row.size and isfinite(dasum(row)):
                if needs_grad and torch.is_grad_enabled():
                    x = from_numpy(row)
                    return _Pava.apply(y, None, (x, fit["blocks"], scipy_engine.block_means))
                return from_numpy(row if dtype is _FLOAT64 else row.astype(_NUMPY_FLOAT32))

    _check_y(y)
    chosen = _choose_engine(engine, y)
    if weights is not None:
        _check_weights(weights, y)
    if not y.numel():
        return y.clone()
    _check_finite(y)
    x = _solve(y.detach(), None if weights is None else weights.detach(), increasing, chosen)
    needs_grad = y.requires_grad or (weights is not None and weights.requires_grad)
    if needs_grad and torch.is_grad_enabled():
        return _Pava.apply(y, weights, (x, chosen.blocks(x), chosen.block_means))
    return x.to(y.dtype)


def _solve(y: Tensor, weights: Tensor | None, increasing: bool, engine: _Engine) -> Tensor:
    if increasing:
        return engine.solve(y, weights)
    flipped = None if weights is None else weights.flip(-1)
    return engine.solve(y.flip(-1), flipped).flip(-1)


class _Pava(torch.autograd.Function):
    # The solution is s_B = sum_B w_j y_j / W_B on each block B, so with G_B = sum_B dL/dx_j
    #   dL/dy_j = w_j G_B / W_B    and    dL/dw_j = (y_j - s_B) G_B / W_B.

    @staticmethod
    def forward(ctx, y, weights, fit):
        # fit is a tuple so that autograd takes x for an output alone, not for an input returned
        x, ctx.blocks, ctx.block_means = fit
        ctx.dtype = y.dtype
        ctx.weighted = weights is not None
        if ctx.weighted:
            residual = y.to(x.dtype) - x if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(weights, residual)
        return x if x.dtype is y.dtype else x.to(y.dtype)

    @staticmethod
    def backward(ctx, grad):
        # Refused here, where `once_differentiable` would let torch.autograd.grad drop a term in
        # silence: the node it leaves in the graph is not connected to y.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pava has no second derivative; go back through it without create_graph=True."
            )
        if not ctx.weighted:
            means = ctx.block_means(grad, ctx.blocks, None)
            return means if means.dtype is ctx.dtype else means.to(ctx.dtype), None, None
        weights, residual = ctx.saved_tensors
        means = ctx.block_means(grad, ctx.blocks, weights)
        grad_y = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_y = (means * weights).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_weights = (means * residual).sum_to_size(weights.shape).to(weights.dtype)
        return grad_y, grad_weights, None


def _check_y(y: Tensor) -> None:
    _check_dtype("y", y)
    if y.ndim == 0:
        raise ValueError("y must have at least one dimension, got a 0-dimensional tensor.")
    if y.shape[-1] == 0:
        raise ValueError(
            f"y must have at least one value in its last dimension, got shape {tuple(y.shape)}."
        )


def _check_dtype(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype) for dtype in _DTYPES)
        raise TypeError(f"{name} must have a dtype among {allowed}, got {value.dtype}.")


def _choose_engine(engine: str | None, y: Tensor) -> _Engine:
    if engine is None:
        return _ENGINES[_DEVICE_ENGINE.get(y.device.type, "tensor_ops")]
    allowed = ", ".join(repr(name) for name in _ENGINES) + " or None"
    if not isinstance(engine, str):
        raise TypeError(f"engine must be {allowed}, got {type(engine).__name__}.")
    if engine not in _ENGINES:
        raise ValueError(f"engine must be {allowed}, got {engine!r}.")
    if engine == "scipy" and not y.is_cpu:
        raise ValueError(
            f"engine 'scipy' works on CPU tensors alone, got y on {y.device}; "
            "engine None or 'tensor_ops' works on every device."
        )
    return _ENGINES[engine]


def _check_finite(y: Tensor) -> None:
    if _is_capturing(y):
        return
    # The sum is finite for all but non-finite and huge values: one cheap pass for nearly every y.
    if isfinite(y.detach().sum().item()):
        return
    bad = ~torch.isfinite(y)
    if bad.any():
        raise ValueError(f"y must be finite, got {_first(y, bad)}.")


def _check_weights(weights: Tensor, y: Tensor) -> None:
    _check_dtype("weights", weights)
    if weights.shape != y.shape and weights.shape != y.shape[-1:]:
        allowed = " or ".join(str(tuple(s)) for s in dict.fromkeys((y.shape, y.shape[-1:])))
        raise ValueError(f"weights must have shape {allowed}, got {tuple(weights.shape)}.")
    if weights.device != y.device:
        raise ValueError(f"weights must be on y's device {y.device}, got {weights.device}.")
    if _is_capturing(y):
        return
    good = (weights > 0) & (weights < inf)
    if not good.all():
        raise ValueError(f"weights must be positive and finite, got {_first(weights, ~good)}.")


def _is_capturing(y: Tensor) -> bool:
    return y.is_cuda and torch.cuda.is_current_stream_capturing()


def _first(values: Tensor, bad: Tensor) -> str:
    """Say what the first bad value is, and where."""
    *row, index = bad.nonzero()[0].tolist()
    place = f"at index {index}"
    if row:
        place += f" of row {row[0] if len(row) == 1 else tuple(row)}"
    return f"{values[(*row, index)].item()} {place}"
