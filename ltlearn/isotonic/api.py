"""`pava`: the public function, its checks and its gradient."""

from math import inf, isfinite

import numpy as np
import torch
from scipy.linalg.blas import dasum  # the fastest sum over a short row, and it never warns
from scipy.optimize import isotonic_regression
from torch import Tensor, from_numpy
from torch.compiler import is_compiling

from ltlearn.isotonic import scipy_engine
from ltlearn.isotonic.engines import Engine, choose_engine, load_engine
from ltlearn.isotonic.ops import gradients, solve_traced
from ltlearn.isotonic.traced import dispatch_modes, is_transformed, jit_tracing

__all__ = ["pava"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT64, _FLOAT32 = _DTYPES[:2]
_NUMPY_FLOAT32 = np.dtype("float32")
_PLAIN = (Tensor, torch.nn.Parameter)  # other subclasses may override `numpy`


def pava(
    y: Tensor,
    weights: Tensor | None = None,
    increasing: bool = True,
    engine: str | None = None,
    check: bool | None = None,
) -> Tensor:
    """Fit the closest monotone sequence to each row of `y`: L2 isotonic regression.

    The fit is exact. Backward averages the gradient over each pooled block, in time linear in N.
    At a tie between two blocks the gradient does not exist; backward returns a gradient that is
    valid nearby. A second derivative and a forward-mode derivative raise a RuntimeError.

    A call on a device never waits for the host. The first call of a kind (dtype, length, arguments)
    compiles a kernel; later calls can be captured in a CUDA graph. `torch.compile` without a graph
    break, `torch.export`, fake tensors and `torch.func.vmap`, `grad` and `vjp` work. Inside them
    the values are unknown, so they are not checked.

    Args:
        y: Values, finite. A row with another value raises an error with checks, and returns NaN
            without.
        weights: Weight of each value in the squared error, positive and finite; checked like y.
            None is 1 everywhere.
        increasing: True for a non-decreasing fit, False for a non-increasing one.
        engine: "scipy" (CPU), "triton" (CUDA; for rows of up to 16,384, "tensor_ops" fits longer
            ones), "tensor_ops" (any device), or None to choose by the device of `y`. "triton"
            returns the same bits in each run, also in backward; backward of "tensor_ops" on CUDA
            does so only under `torch.use_deterministic_algorithms`.
        check: Whether to check values and weights, which on a device waits for the host. None
            checks on the CPU alone.

    Shape:
        y is (..., N) with N >= 1, float64, float32, bfloat16 or float16; weights have the shape of
        y or (N,). The result has y's shape and dtype. Sums are computed in float64 (float32
        on MPS, which has no float64); they overflow for float64 values near 1e308.

    Raises:
        TypeError: If `y` or `weights` is no tensor of such a dtype, or `engine` no string.
        ValueError: If `y` has no last dimension or an empty one, a value is not finite, a weight
            is not positive and finite, the shape or the device of `weights` does not match `y`,
            `engine` is unknown or does not support `y`'s device, or `check` is True where the
            values are unknown.

    Source:
        Barlow et al., "Statistical Inference under Order Restrictions", Wiley 1972, for the
        problem; Busing, Journal of Statistical Software 102, 2022, for SciPy's O(N) solver.

    Example:
        >>> pava(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    # Forward mode too: NumPy and Triton would drop the tangent and call the derivative zero.
    traced = is_compiling() or is_transformed() or dispatch_modes() or jit_tracing()
    # The most frequent call returns early: for a short row, the checks below take longer than the
    # fit.
    if not traced and weights is None and increasing and engine is None and type(y) in _PLAIN:
        dtype = y.dtype
        if (dtype is _FLOAT64 or dtype is _FLOAT32) and y.is_cpu and y.ndim == 1 and not y.is_neg():
            needs_grad = y.requires_grad
            fit = isotonic_regression((y.detach() if needs_grad else y).numpy())
            row = fit["x"]
            # A value that is not finite makes its block, and so the sum of magnitudes, not finite.
            if row.size and isfinite(dasum(row)):
                x = from_numpy(row if dtype is _FLOAT64 else row.astype(_NUMPY_FLOAT32))
                if needs_grad and torch.is_grad_enabled():
                    return _Pava.apply(y, None, (x, None, fit["blocks"], scipy_engine.block_means))
                return x

    _check_y(y)
    name = choose_engine(engine, y)
    if weights is not None:
        _check_weights(weights, y)
    if not y.numel():
        return y.clone()
    traced = traced or y.is_meta
    if traced:
        if check:
            raise ValueError(
                "check must not be True while a function is compiled, exported or transformed by "
                "torch.func, where the values are unknown; leave it at None."
            )
        # A copy even in the same dtype: backward needs the solution, and the caller may change the
        # result in place.
        return solve_traced(y, weights, bool(increasing), name).to(y.dtype, copy=True)
    if y.is_cpu if check is None else check:
        _check_values(y, weights)
    return _solve(y, weights, increasing, load_engine(name))


def _solve(y: Tensor, weights: Tensor | None, increasing: bool, engine: Engine) -> Tensor:
    needs_grad = y.requires_grad or (weights is not None and weights.requires_grad)
    needs_grad = needs_grad and torch.is_grad_enabled()
    w = None if weights is None else weights.detach()
    fit, solution = engine.solve(y.detach(), w, increasing, needs_grad)
    if needs_grad and solution is not None:
        solved = fit, solution, engine.blocks(solution), engine.block_means
        return _Pava.apply(y, weights, solved)
    return fit


class _Pava(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weights, solved):
        # A tuple, so that autograd treats the fit as an output and not as a returned input. The
        # node keeps no part of the fit, which may be changed in place and refers to this node.
        fit, solution, ctx.blocks, ctx.block_means = solved
        ctx.dtype = y.dtype
        ctx.weighted = weights is not None
        if ctx.weighted:
            residual = y.to(solution.dtype) - solution if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(weights, residual)
        return fit

    @staticmethod
    def backward(ctx, grad):
        # Raise here instead of using `once_differentiable`, with which torch.autograd.grad would
        # silently drop a term: its node in the graph is not connected to y.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pava has no second derivative; call backward without create_graph=True."
            )
        if not ctx.weighted:
            means = ctx.block_means(grad, ctx.blocks, None)
            return means if means.dtype is ctx.dtype else means.to(ctx.dtype), None, None
        weights, residual = ctx.saved_tensors
        means = ctx.block_means(grad, ctx.blocks, weights)
        return *gradients(ctx, means, weights, residual, ctx.dtype), None


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


def _check_weights(weights: Tensor, y: Tensor) -> None:
    _check_dtype("weights", weights)
    if weights.shape != y.shape and weights.shape != y.shape[-1:]:
        allowed = " or ".join(str(tuple(s)) for s in dict.fromkeys((y.shape, y.shape[-1:])))
        raise ValueError(f"weights must have shape {allowed}, got {tuple(weights.shape)}.")
    if weights.device != y.device:
        raise ValueError(f"weights must be on y's device {y.device}, got {weights.device}.")


def _check_values(y: Tensor, weights: Tensor | None) -> None:
    # The sum is finite for all but non-finite and huge values: one cheap pass for nearly every y.
    if not isfinite(y.detach().sum().item()):
        bad = ~torch.isfinite(y)
        if bad.any():
            raise ValueError(f"y must be finite, got {_first(y, bad)}.")
    if weights is not None:
        good = (weights > 0) & (weights < inf)
        if not good.all():
            raise ValueError(f"weights must be positive and finite, got {_first(weights, ~good)}.")


def _first(values: Tensor, bad: Tensor) -> str:
    """Describe the first bad value and its position."""
    *row, index = bad.nonzero()[0].tolist()
    position = f"at index {index}"
    if row:
        position += f" of row {row[0] if len(row) == 1 else tuple(row)}"
    return f"{values[(*row, index)].item()} {position}"
