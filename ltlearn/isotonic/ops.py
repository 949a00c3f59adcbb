"""`pava` as operators of torch: for `torch.compile`, export, fake tensors and `torch.func`.

`ltlearn::isotonic` returns the solution in float64, `ltlearn::isotonic_block_means` its gradient.
"""

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.library import custom_op

from ltlearn.isotonic.dtypes import wide_dtype
from ltlearn.isotonic.engines import load_engine
from ltlearn.isotonic.traced import is_transformed

__all__ = ["gradients", "isotonic", "isotonic_block_means", "solve_traced"]


def gradients(ctx, means: Tensor, weights: Tensor, residual: Tensor | None, dtype: torch.dtype):
    """Return the gradients of y and of the weights, computed from the mean gradient of each block.

    Args:
        ctx: The context of autograd.
        means: The mean gradient of the block of each value.
        weights: The weights.
        residual: y minus the solution; None if the weights need no gradient.
        dtype: The dtype of y.
    """
    # The solution is s_B = sum_B w_j y_j / W_B on each block B, so with G_B = sum_B dL/dx_j
    #   dL/dy_j = w_j G_B / W_B    and    dL/dw_j = (y_j - s_B) G_B / W_B.
    grad_y = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_y = (means * weights).to(dtype)
    if ctx.needs_input_grad[1] and residual is not None:
        grad_weights = (means * residual).sum_to_size(weights.shape).to(weights.dtype)
    return grad_y, grad_weights


@custom_op("ltlearn::isotonic", mutates_args=())
def isotonic(y: Tensor, weights: Tensor | None, increasing: bool, engine: str) -> Tensor:
    """Solve every row of `y`; see `pava`. The solution has dtype float64 (float32 on MPS).

    Args:
        y: Values.
        weights: Weights, or None for 1 everywhere.
        increasing: True for a non-decreasing fit.
        engine: Name of the engine.
    """
    if not y.numel():
        return y.new_empty(y.shape, dtype=wide_dtype(y.device))
    solution = load_engine(engine).solve(y, weights, increasing, True)[1]
    return solution.contiguous()  # type: ignore[union-attr]  # it is there where asked for


@isotonic.register_fake
def _(y, weights, increasing, engine):
    return y.new_empty(y.shape, dtype=wide_dtype(y.device))


@custom_op("ltlearn::isotonic_block_means", mutates_args=())
def isotonic_block_means(
    grad: Tensor, solution: Tensor, weights: Tensor | None, engine: str
) -> Tensor:
    """Divide the sum of `grad` over each block of the solution by the weight of the block.

    Args:
        grad: Incoming gradient.
        solution: The solution of `isotonic`.
        weights: Weights, or None for 1 everywhere.
        engine: Name of the engine.
    """
    if not grad.numel():
        return solution.new_empty(solution.shape)
    chosen = load_engine(engine)
    means = chosen.block_means(grad, chosen.blocks(solution), weights)
    return means.to(solution.dtype).contiguous()


@isotonic_block_means.register_fake
def _(grad, solution, weights, engine):
    return solution.new_empty(solution.shape)


def _set_up(ctx, inputs, output):
    y, weights, _, ctx.engine = inputs
    ctx.save_for_backward(y, weights, output)


def _backward(ctx, grad):
    y, weights, solution = ctx.saved_tensors
    means = _means(grad, solution, weights, ctx.engine)
    if weights is None:
        return means.to(y.dtype), None, None, None
    residual = y.to(solution.dtype) - solution
    return *gradients(ctx, means, weights, residual, y.dtype), None, None


def _means(grad, solution, weights, engine):
    if not is_compiling() and is_transformed():
        return _FunctionalMeans.apply(grad, solution, weights, engine)
    return isotonic_block_means(grad, solution, weights, engine)


def _set_up_nothing(ctx, inputs, output):
    pass


def _refuse(ctx, grad):
    raise RuntimeError("pava has no second derivative.")


def _refuse_forward(ctx, *tangents):
    raise RuntimeError("pava has no forward-mode derivative; use torch.func.grad, vjp or jacrev.")


isotonic.register_autograd(_backward, setup_context=_set_up)
# Without this formula, torch's error would name an internal operator.
isotonic_block_means.register_autograd(_refuse)


# torch.func does not differentiate custom operators (torch 2.15), but it does differentiate these.


class _Functional(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(isotonic)
    setup_context = staticmethod(_set_up)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward)


class _FunctionalMeans(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(isotonic_block_means)
    setup_context = staticmethod(_set_up_nothing)
    backward = staticmethod(_refuse)
    jvp = staticmethod(_refuse_forward)


def solve_traced(y: Tensor, weights: Tensor | None, increasing: bool, engine: str) -> Tensor:
    """Solve every row of `y` by the operator, inside any active transformation.

    Args:
        y: Values.
        weights: Weights, or None for 1 everywhere.
        increasing: True for a non-decreasing fit.
        engine: Name of the engine.
    """
    # Also in forward mode: `_Functional` raises there, where the operator would drop the tangent.
    if not is_compiling() and is_transformed():
        return _Functional.apply(y, weights, increasing, engine)
    return isotonic(y, weights, increasing, engine)


def _batched(tensor: Tensor, dim: int | None, size: int, shape: torch.Size | None = None) -> Tensor:
    """Move the mapped dimension to the front; repeat a tensor that has none along a new one."""
    if dim is not None:
        return tensor.movedim(dim, 0)
    return tensor.expand(size, *(tensor.shape if shape is None else shape))


def _weights_like(y: Tensor, weights: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Expand the weights to the shape of `y`, whose mapped dimension is the first."""
    if weights is None:
        return None
    weights = _batched(weights, dim, size)
    while weights.ndim < y.ndim:
        weights = weights.unsqueeze(1)
    return weights.expand(y.shape)


@isotonic.register_vmap
def _(info, in_dims, y, weights, increasing, engine):
    y = _batched(y, in_dims[0], info.batch_size)
    weights = _weights_like(y, weights, in_dims[1], info.batch_size)
    return isotonic(y, weights, increasing, engine), 0


@isotonic_block_means.register_vmap
def _(info, in_dims, grad, solution, weights, engine):
    grad = _batched(grad, in_dims[0], info.batch_size)
    solution = _batched(solution, in_dims[1], info.batch_size)
    weights = _weights_like(grad, weights, in_dims[2], info.batch_size)
    return isotonic_block_means(grad, solution, weights, engine), 0
