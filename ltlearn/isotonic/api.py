"""The one public function, what it accepts, and its gradient."""

from math import inf, isfinite

import numpy as np
import torch
from scipy.linalg.blas import dasum  # the quickest pass over a short row, and it never warns
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
_PLAIN = (Tensor, torch.nn.Parameter)  # no subclass with a `numpy` of its own


def pava(
    y: Tensor,
    weights: Tensor | None = None,
    increasing: bool = True,
    engine: str | None = None,
    check: bool | None = None,
) -> Tensor:
    """Fit the closest monotone sequence to each row of `y`: L2 isotonic regression.

    The fit is exact. Backward averages the gradient over each pooled block, in time linear in N;
    at a tie between two blocks, where there is no gradient, it takes one that holds nearby.
    There is no second derivative (a RuntimeError says so) and no forward-mode derivative.

    On a device nothing waits for the host: after a first call of the same kind (dtype, length,
    arguments), which compiles a kernel, the call can be captured in a CUDA graph.
    `torch.compile` without a graph break, `torch.export`, fake tensors and `torch.func.vmap`,
    `grad` and `vjp` work; inside them the values cannot be looked at, so none is checked.

    Args:
        y: Values, finite. A row with one that is not is an error where values are checked, and
            comes back as NaN where they are not.
        weights: Weight of each value in the squared error, positive and finite; checked as y is.
            None is 1 everywhere.
        increasing: True for a non-decreasing fit, False for a non-increasing one.
        engine: "scipy" (CPU), "triton" (CUDA; rows of up to 16,384, "tensor_ops" takes longer
            ones), "tensor_ops" (any device), or None to follow the device of `y`. "triton" gives
            the same bits from run to run, backward too; backward of "tensor_ops" on CUDA does so
            under `torch.use_deterministic_algorithms` alone.
        check: Whether to look for values and weights that are not allowed. On a device that waits
            for the host. None: on the CPU alone.

    Shape:
        y is (..., N) with N >= 1, float64, float32, bfloat16 or float16; weights are of the shape
        of y or (N,). The result is of y's shape and dtype. Sums are taken in float64 (float32 on
        MPS, which has no float64); of float64 values near 1e308 they overflow.

    Raises:
        TypeError: If `y` or `weights` is no tensor of such a dtype, or `engine` no string.
        ValueError: If `y` has no last dimension or an empty one, a value is not finite, a weight
            is not positive and finite, the shape or the device of `weights` does not fit `y`,
            `engine` is unknown or cannot work on `y`'s device, or `check` is True where values
            cannot be looked at.

    Source:
        Barlow et al., "Statistical Inference under Order Restrictions", Wiley 1972, for the
        problem; Busing, Journal of Statistical Software 102, 2022, for SciPy's O(N) solver.
    """
    # Forward mode too: NumPy and Triton would drop the tangent and call the derivative zero.
    traced = is_compiling() or is_transformed() or dispatch_modes() or jit_tracing()
    # The commonest call leaves early: the checks below would cost a short row more than its fit.
    if not traced and weights is None and increasing and engine is None and type(y) in _PLAIN:
        dtype = y.dtype
        if (dtype is _FLOAT64 or dtype is _FLOAT32) and y.is_cpu and y.ndim == 1 and not y.is_neg():
            needs_grad = y.requires_grad
            fit = isotonic_regression((y.detach() if needs_grad else y).numpy())
            row = fit["x"]
            # A value that is not finite leaves its block so, and with it the sum of magnitudes.
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
                "check=True looks at values, and there are none while a function is compiled, "
                "exported or transformed by torch.func; leave it at None."
            )
        # A copy even in the solution's own dtype: backward needs that one, whatever befalls ours.
        return solve_traced(y, weights, bool(increasing), name).to(y.dtype, copy=True)
    if y.is_cpu if check is None else check:
        _check_values(y, weights)
    return _solve(y, weights, increasing, load_engine(name))


def _solve(y: Tensor, weights: Tensor | None, increasing: bool, engine: Engine) -> Tensor:
    needs_grad = y.requires_grad or (weights is not None and weights.requires_grad)
    needs_grad = needs_grad and torch.is_grad_enabled()
    w = None if weights is None else weights.detach()
    fit, solution = engine.solve(y.detach(), w, increasing, needs_grad)
    if needs_grad:
        solved = fit, solution, engine.blocks(solution), engine.block_means
        return _Pava.apply(y, weights, solved)
    return fit


class _Pava(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weights, solved):
        # A tuple, so that autograd takes the fit for an output alone, not for an input returned.
        # Nothing of the fit is kept: it may be changed in place, and it refers back to this node.
        fit, solution, ctx.blocks, ctx.block_means = solved
        ctx.dtype = y.dtype
        ctx.weighted = weights is not None
        if ctx.weighted:
            residual = y.to(solution.dtype) - solution if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(weights, residual)
        return fit

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
    """Say what the first bad value is, and where."""
    *row, index = bad.nonzero()[0].tolist()
    place = f"at index {index}"
    if row:
        place += f" of row {row[0] if len(row) == 1 else tuple(row)}"
    return f"{values[(*row, index)].item()} {place}"
