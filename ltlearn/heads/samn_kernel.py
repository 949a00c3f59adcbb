"""The part of a step of `SAMNGradient` that has no matrix product, compiled by numba.

NumPy needs some thirty calls for it, which cost more than their work at a hundred classes.
Importing this module imports numba and compiles, or loads the compiled code from numba's cache.

The rows of `work` are: the scale exp(s) and its logarithmic derivative by the raw norm, first for
the weight, then for the bias; the factor of the logits; the squared norms; the shift of the logits.
"""

import math

import numpy as np
from numba import boolean, float32, float64, int64, njit, void

from ltlearn.heads.samn import EPS

__all__ = ["WORK_ROWS", "fill_gradients", "project_rows", "scale_logits"]

WORK_ROWS = 7
_SCALE, _SLOPE, _FACTOR, _SQUARE, _SHIFT = 0, 1, 4, 5, 6  # the bias has its first two in 2 and 3
_LOG2_E, _LN2 = math.log2(math.e), math.log(2)
_MAX_EXP = 700.0  # above it, exp overflows in float64
_TO_BITS = 1.5 * 2.0**52  # added to a float64, it leaves an integer in the lowest bits
_ZERO, _ONE = np.float32(0), np.float32(1)
# Sums in another order can use vectors. NaN and infinity stay as they are.
_ANY_ORDER = {"reassoc", "contract"}
_matrix = float32[:, ::1]


def _compiled(signature, fastmath=False):
    """Return a decorator that compiles a function at once, and caches the result if it can."""

    def decorate(function):
        options = {"fastmath": fastmath, "error_model": "numpy"}
        try:
            return njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder can be written, or the disk is full
            return njit(signature, **options)(function)

    return decorate


@njit(error_model="numpy")
def _exp(x):
    """Return exp of a float64 to ten digits. The compiler cannot use vectors with `math.exp`."""
    x = -_MAX_EXP if x < -_MAX_EXP else x
    x = _MAX_EXP if x > _MAX_EXP else x
    # Right also where a caller's sums in another order are inlined here.
    whole = math.floor(x * _LOG2_E + 0.5)
    r = x - whole * _LN2
    power = np.int64((np.float64(whole + _TO_BITS).view(np.int64) + 1023) << 52)
    series = 1 / 5040 + r / 40320
    series = 1 / 120 + r * (1 / 720 + r * series)
    series = 1 / 6 + r * (1 / 24 + r * series)
    return (1 + r * (1 + r * (1 / 2 + r * series))) * power.view(np.float64)


@njit(error_model="numpy")
def _log_of_one_plus(u):
    """Return log(1 + u) of a float64 in [0, 1], to nine digits."""
    f = u / (u + 2)  # log(1 + u) = 2 artanh(f)
    z = f * f
    series = 1 / 15 + z * (1 / 17 + z * (1 / 19))
    series = 1 / 9 + z * (1 / 11 + z * (1 / 13 + z * series))
    series = 1 / 3 + z * (1 / 5 + z * (1 / 7 + z * series))
    return 2 * f * (1 + z * series)


@_compiled(void(_matrix, _matrix, _matrix, _matrix, boolean, boolean, float32), fastmath=_ANY_ORDER)
def scale_logits(matrix, weight, logits, work, on_weight, on_bias, norm_scale):
    """Turn x W^T into the logits, in place, and fill `work`.

    Args:
        matrix: The vectors of the head: the bias if there is one, and the raw norms.
        weight: The weight of the head.
        logits: The product of the features with the weight.
        work: Memory that `fill_gradients` reads.
        on_weight: Whether the first raw norms are those of the weight.
        on_bias: Whether the last raw norms are those of the bias.
        norm_scale: The `norm_scale` of the head, or 1.

    Shape:
        matrix is (P, C), weight (C, D), logits (N, C), work (WORK_ROWS, C); all float32.
    """
    raws = on_weight + on_bias
    first = len(matrix) - raws
    for row in range(raws):
        raw, scale, slope = matrix[first + row], work[2 * row + _SCALE], work[2 * row + _SLOPE]
        for c in range(len(weight)):
            q = np.float64(raw[c])
            u = _exp(-abs(q))
            s = 1 / ((q if q > 0 else 0.0) + _log_of_one_plus(u) + EPS)
            scale[c] = _exp(s)
            slope[c] = -s * s * (1.0 if q > 0 else u) / (1 + u)
    factor, square, shift = work[_FACTOR], work[_SQUARE], work[_SHIFT]
    scale_of_bias = work[2 * raws - 2 + _SCALE]
    for c in range(len(weight)):
        factor[c] = _ONE
        if on_weight:
            total = _ZERO
            for d in range(weight.shape[1]):
                total += weight[c, d] * weight[c, d]
            square[c] = total
            factor[c] = work[_SCALE, c] / math.sqrt(total) * norm_scale
        shift[c] = matrix[0, c] if first else _ZERO
        if on_bias:
            shift[c] += scale_of_bias[c]
    for n in range(len(logits)):
        for c in range(len(weight)):
            logits[n, c] = logits[n, c] * factor[c] + shift[c]


@_compiled(void(_matrix, _matrix, _matrix, _matrix, _matrix, boolean, boolean), fastmath=_ANY_ORDER)
def fill_gradients(grad, of_weight, of_matrix, weight, work, on_weight, on_bias):
    """Turn G^T x into the gradient of the weight, in place, and fill the gradients of the vectors.

    With B = (scale / ||W||) G^T x: the gradient of s is B . W, and the gradient of W is
    B - (B . W / ||W||^2) W.

    Args:
        grad: The gradient of the logits, G.
        of_weight: The product of G^T with the features.
        of_matrix: The gradients of the vectors, as `scale_logits` orders the vectors.
        weight: The weight of the head.
        work: What the last call of `scale_logits` has filled.
        on_weight: Whether the first raw norms are those of the weight.
        on_bias: Whether the last raw norms are those of the bias.

    Shape:
        grad is (N, C), of_weight and weight are (C, D), of_matrix is (P, C), work (WORK_ROWS, C);
        all float32.
    """
    raws = on_weight + on_bias
    first = len(of_matrix) - raws
    if first:
        of_bias = of_matrix[0]
        of_bias[:] = 0
        for n in range(len(grad)):
            for c in range(len(weight)):
                of_bias[c] += grad[n, c]
        if on_bias:
            scale, slope = work[2 * raws - 2 + _SCALE], work[2 * raws - 2 + _SLOPE]
            for c in range(len(weight)):
                of_matrix[-1, c] = of_bias[c] * scale[c] * slope[c]
    if on_weight:
        for c in range(len(weight)):
            along = _ZERO
            for d in range(weight.shape[1]):
                along += of_weight[c, d] * weight[c, d]
            factor = work[_FACTOR, c]
            along *= factor
            of_matrix[first, c] = along * work[_SLOPE, c]
            along /= work[_SQUARE, c]
            for d in range(weight.shape[1]):
                of_weight[c, d] = factor * of_weight[c, d] - along * weight[c, d]


@_compiled(boolean(_matrix, int64[::1], float64[:, ::1], int64[::1], int64, float64))
def project_rows(matrix, order, memory, ends, raws, least):
    """Project the last rows onto the vectors that increase along an order, in place.

    The pools and their means are those of `MonotoneRows`.

    Args:
        matrix: The rows.
        order: Indices from the lowest value to the highest.
        memory: Memory for values and weights.
        ends: Memory for the ends of the blocks.
        raws: How many rows to project.
        least: The least value.

    Shape:
        matrix is (P, C), float32; order (C,); memory (raws + 1, C); ends (C + 1,).

    Returns:
        Whether all values are finite; if not, `matrix` does not change.

    Source:
        Busing, Journal of Statistical Software 102, 2022, algorithm 1, as SciPy has it.
    """
    size, first, w = len(order), len(matrix) - raws, memory[raws]
    for row in range(raws):
        for i in range(size):
            memory[row, i] = matrix[first + row, order[i]]
            if not math.isfinite(memory[row, i]):
                return False
    ends[0] = 0
    for row in range(raws):
        x = memory[row]
        w[:] = 1
        block, i = 0, 0
        while i < size:
            mean, total, images = x[i], x[i], 1.0
            if block and x[block - 1] >= mean:
                block -= 1
                total, images = total + w[block] * x[block], images + w[block]
                mean = total / images
                while i < size - 1 and mean >= x[i + 1]:
                    i += 1
                    total, images = total + x[i], images + 1
                    mean = total / images
                while block and x[block - 1] >= mean:
                    block -= 1
                    total, images = total + w[block] * x[block], images + w[block]
                    mean = total / images
            x[block], w[block] = mean, images
            i += 1
            block += 1
            ends[block] = i
        for b in range(block):
            mean = max(x[b], least)
            for i in range(ends[b], ends[b + 1]):
                matrix[first + row, order[i]] = mean
    return True
