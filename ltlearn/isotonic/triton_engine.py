"""Isotonic regression on CUDA: one Triton program per row, one launch for all rows.

The algorithm of `tensor_ops`, divide and conquer in log2(N) levels, arranged for one thread block:
the halves of a level are in scratch memory, which the block's threads read and write between
barriers. At each level

1. a segmented scan computes mass and moment of every prefix of every half, outward from the cut;
2. a binary search in one half, with a second search inside it in the other half, finds the pooled
   part of each half, and with it the common mean of the pair;
3. both halves are clipped at this mean.

No loop's length depends on the values, no value leaves the device, and the shape alone decides the
order of every sum: the result is the same to the bit in each run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["MAX_LENGTH", "block_means", "blocks", "solve"]

MAX_LENGTH = 16_384  # one thread block per row; for longer rows `tensor_ops` uses the whole device
_MAX_TILE = 2_048  # entries that a thread block holds in registers at a time
# No load may be moved across a barrier, as pipelining does; without fused multiply-add the device
# computes what the interpreter computes.
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": False}


@triton.jit
def _rounded(x, like_ptr):
    """Round to a pointer's dtype; to 16 bits through float32, as torch does."""
    if like_ptr.dtype.element_ty.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    return x.to(like_ptr.dtype.element_ty)


@triton.jit
def _join(mass, moment, last, start, next_mass, next_moment, next_last, next_start):
    """Join two neighbouring runs; a run in which a segment starts drops the run before it."""
    both = next_moment + (moment + mass * (next_last - last))
    return (
        tl.where(next_start != 0, next_mass, mass + next_mass),
        tl.where(next_start != 0, next_moment, both),
        next_last,
        start | next_start,
    )


@triton.jit
def _solve_kernel(
    y_ptr,
    weights_ptr,
    out_ptr,
    kept_ptr,  # (rows, n) float64: the solution before it is rounded to y's dtype
    scratch_ptr,  # (rows, 4 * size) float64
    n,
    weights_stride,  # n, or 0 where all rows share their weights
    size,  # n rounded up to a power of two
    levels,  # log2(size)
    WEIGHTED: tl.constexpr,
    DECREASING: tl.constexpr,
    KEEP: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y_ptr += row * n
    weights_ptr += row * weights_stride
    out_ptr += row * n
    kept_ptr += row * n
    x_ptr = scratch_ptr + row * 4 * size
    mass_ptr = x_ptr + size
    moment_ptr = mass_ptr + size
    level_ptr = moment_ptr + size
    inf = float("inf")
    lane = tl.arange(0, TILE)

    # Padded with the row's maximum, which no pooled mean exceeds: the padding is never pooled.
    top = tl.full([TILE], -inf, tl.float64)
    wrong = tl.zeros([TILE], tl.int32)
    for begin in range(0, size, TILE):
        i = begin + lane
        at = n - 1 - i if DECREASING else i
        value = tl.load(y_ptr + at, mask=i < n, other=-inf).to(tl.float64)
        wrong |= ((i < n) & ~(tl.abs(value) < inf)).to(tl.int32)
        if WEIGHTED:
            weight = tl.load(weights_ptr + at, mask=i < n, other=1.0).to(tl.float64)
            wrong |= (~((weight > 0) & (weight < inf))).to(tl.int32)
        top = tl.maximum(top, value)
    highest = tl.max(top, axis=0)
    refused = tl.max(wrong, axis=0) != 0
    for begin in range(0, size, TILE):
        i = begin + lane
        at = n - 1 - i if DECREASING else i
        value = tl.load(y_ptr + at, mask=i < n, other=0.0).to(tl.float64)
        tl.store(x_ptr + i, tl.where(i < n, value, highest))
    tl.debug_barrier()

    for level in range(levels):
        half = 1 << level

        # 1. Slot t of the prefixes: the halves in turn, each outward from the cut of its pair.
        for begin in range(0, size, TILE):
            t = begin + lane
            rank = t & (half - 1)
            right = ((t >> level) & 1) != 0
            cut = ((t >> (level + 1)) << (level + 1)) + half
            i = tl.where(right, cut + rank, cut - 1 - rank)
            low = tl.load(x_ptr + cut)
            x = tl.load(x_ptr + i)
            # Outward from the cut, ascending, and as small as the violation is.
            v = tl.where(right, x - low, low - x)
            if WEIGHTED:
                at = n - 1 - i if DECREASING else i
                weight = tl.load(weights_ptr + at, mask=i < n, other=1.0).to(tl.float64)
            else:
                weight = tl.full([TILE], 1.0, tl.float64)
            # moment[k] = sum_{i<=k} w_i (v_k - v_i), from terms of one sign: nothing cancels
            mass, moment, _, _ = tl.associative_scan(
                (weight, tl.zeros([TILE], tl.float64), v, (rank == 0).to(tl.int32)), 0, _join
            )
            # A half that is longer than a tile continues from the tile before.
            inside = (begin & (half - 1)) != 0
            before = begin - 1
            cut_before = ((before >> (level + 1)) << (level + 1)) + half
            rank_before = before & (half - 1)
            right_before = ((before >> level) & 1) != 0
            sign_before = tl.where(right_before, 1, -1)
            first_before = tl.where(right_before, cut_before, cut_before - 1)
            i_before = first_before + sign_before * rank_before
            mass_before = tl.load(mass_ptr + before, mask=inside, other=0.0)
            moment_before = tl.load(moment_ptr + before, mask=inside, other=0.0)
            x_before = tl.load(x_ptr + i_before, mask=inside, other=0.0)
            low_before = tl.load(x_ptr + cut_before, mask=inside, other=0.0)
            v_before = (x_before - low_before) * sign_before
            tl.store(mass_ptr + t, mass + mass_before)
            tl.store(moment_ptr + t, moment + (moment_before + mass_before * (v - v_before)))
            tl.debug_barrier()

        # 2. One lane per half; two neighbouring lanes are a pair.
        for begin in range(0, size >> level, TILE):
            side = tl.arange(0, 2)[None, :]
            q = begin + 2 * tl.arange(0, TILE // 2)[:, None] + side
            valid = q < (size >> level)
            sign = 2 * side - 1  # -1 to the left of the cut, where x falls outward, 1 to the right
            cut = (q >> 1) * 2 * half + half
            first = cut - 1 + side  # the entry beside the cut
            other_sign = -sign
            other_first = cut - side
            low = tl.load(x_ptr + cut, mask=valid, other=0.0)
            # The pooled mean m is the root of
            #   g(m) = sum_{L_i > m} w_i (L_i - m) - sum_{R_j < m} w_j (m - R_j),
            # which decreases. An entry is pooled if the moment of its own half up to it is less
            # than the moment of the other half up to the same height.
            last = tl.zeros_like(q)
            step = half >> 1
            for _ in range(level):
                candidate = last + step
                x = tl.load(x_ptr + first + sign * candidate, mask=valid, other=0.0)
                height = (low - x) * sign  # in the coordinates of the other half
                index = tl.zeros_like(q)
                inner = half >> 1
                for _ in range(level):
                    probe = index + inner
                    z = tl.load(x_ptr + other_first + other_sign * probe, mask=valid, other=0.0)
                    index = tl.where((z - low) * other_sign < height, probe, index)
                    inner = inner >> 1
                z = tl.load(x_ptr + other_first + other_sign * index, mask=valid, other=0.0)
                reach = height - (z - low) * other_sign
                reach = tl.where(reach > 0, reach, 0.0)  # 0 where no entry lies below
                slot = (q ^ 1) * half + index
                opposite = tl.load(moment_ptr + slot, mask=valid, other=0.0)
                opposite += tl.load(mass_ptr + slot, mask=valid, other=0.0) * reach
                own = tl.load(moment_ptr + q * half + candidate, mask=valid, other=0.0)
                last = tl.where(opposite > own, candidate, last)
                step = step >> 1
            x = tl.load(x_ptr + first + sign * last, mask=valid, other=0.0)
            mass = tl.load(mass_ptr + q * half + last, mask=valid, other=1.0)
            moment = tl.load(moment_ptr + q * half + last, mask=valid, other=0.0)
            # Sum of w_i (x_i - low) over the pooled entries of both halves.
            total = tl.sum(mass * (x - low) - moment * sign, axis=1)
            pair = begin // 2 + tl.arange(0, TILE // 2)
            valid = pair < (size >> (level + 1))
            low = tl.load(x_ptr + pair * 2 * half + half, mask=valid, other=0.0)
            high = tl.load(x_ptr + pair * 2 * half + half - 1, mask=valid, other=0.0)
            mean = low + total / tl.sum(mass, axis=1)
            mean = tl.where((high > low) & (mean < high), mean, high)
            tl.store(level_ptr + pair, mean, mask=valid)
        tl.debug_barrier()

        # 3. Clipping writes the mean into both runs, splits no block and is monotone to the bit.
        for begin in range(0, size, TILE):
            i = begin + lane
            mean = tl.load(level_ptr + (i >> (level + 1)))
            x = tl.load(x_ptr + i)
            right = ((i >> level) & 1) != 0
            clip = (right & (x < mean)) | (~right & (x > mean))
            tl.store(x_ptr + i, tl.where(clip, mean, x))
        tl.debug_barrier()

    for begin in range(0, size, TILE):
        i = begin + lane
        at = n - 1 - i if DECREASING else i
        x = tl.load(x_ptr + i)
        x = tl.where(refused, float("nan"), x)
        tl.store(out_ptr + at, _rounded(x, out_ptr), mask=i < n)
        if KEEP:
            tl.store(kept_ptr + at, x, mask=i < n)


@triton.jit
def _add(total, mass, start, next_total, next_mass, next_start):
    """Add two neighbouring runs; a run in which a block starts drops the run before it."""
    return (
        tl.where(next_start != 0, next_total, total + next_total),
        tl.where(next_start != 0, next_mass, mass + next_mass),
        start | next_start,
    )


@triton.jit
def _take(value, passed, next_value, next_passed):
    """Keep the value of the nearest end of a block that the scan has passed."""
    return tl.where(next_passed != 0, next_value, value), passed | next_passed


@triton.jit
def _block_means_kernel(
    grad_ptr,
    solution_ptr,
    weights_ptr,
    out_ptr,
    scratch_ptr,  # (rows, 2 * n) float64
    n,
    weights_stride,
    WEIGHTED: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    grad_ptr += row * n
    solution_ptr += row * n
    weights_ptr += row * weights_stride
    out_ptr += row * n
    total_ptr = scratch_ptr + row * 2 * n
    mass_ptr = total_ptr + n
    lane = tl.arange(0, TILE)

    # Sums from the start of each block up to each entry.
    for begin in range(0, n, TILE):
        i = begin + lane
        inside = i < n
        x = tl.load(solution_ptr + i, mask=inside, other=0.0)
        x_before = tl.load(solution_ptr + i - 1, mask=inside & (i > 0), other=0.0)
        starts = ((i == 0) | (x != x_before)).to(tl.int32)
        grad = tl.load(grad_ptr + i, mask=inside, other=0.0).to(tl.float64)
        if WEIGHTED:
            weight = tl.load(weights_ptr + i, mask=inside, other=1.0).to(tl.float64)
        else:
            weight = tl.full([TILE], 1.0, tl.float64)
        total, mass, started = tl.associative_scan((grad, weight, starts), 0, _add)
        # A block that a tile cuts continues from the tile before.
        total_before = tl.load(total_ptr + begin - 1, mask=begin > 0, other=0.0)
        mass_before = tl.load(mass_ptr + begin - 1, mask=begin > 0, other=0.0)
        total = tl.where(started != 0, total, total + total_before)
        mass = tl.where(started != 0, mass, mass + mass_before)
        tl.store(total_ptr + i, total, mask=inside)
        tl.store(mass_ptr + i, mass, mask=inside)
        tl.debug_barrier()

    # The mean of a block is at its end; a reverse scan copies it over the block.
    tiles = tl.cdiv(n, TILE)
    for k in range(tiles):
        begin = (tiles - 1 - k) * TILE
        i = begin + lane
        inside = i < n
        x = tl.load(solution_ptr + i, mask=inside, other=0.0)
        x_after = tl.load(solution_ptr + i + 1, mask=i + 1 < n, other=0.0)
        ends = ((i >= n - 1) | (x != x_after)).to(tl.int32)
        total = tl.load(total_ptr + i, mask=inside, other=0.0)
        mean = total / tl.load(mass_ptr + i, mask=inside, other=1.0)
        mean, passed = tl.associative_scan((mean, ends), 0, _take, reverse=True)
        # Only the tile after this one has changed its entries, and it no longer needs them.
        after = begin + TILE
        mean_after = tl.load(total_ptr + after, mask=after < n, other=0.0)
        mean = tl.where(passed != 0, mean, mean_after)
        tl.debug_barrier()
        tl.store(total_ptr + i, mean, mask=inside)
        tl.store(out_ptr + i, _rounded(mean, out_ptr), mask=inside)
        tl.debug_barrier()


def _tile(size: int) -> tuple[int, int]:
    """Return the number of entries that a program holds at a time, and its warps."""
    tile = min(size, _MAX_TILE)
    return tile, max(1, min(16, tile // 32))


def _power_of_two(n: int) -> int:
    return max(2, triton.next_power_of_2(n))


def _in_memory(values: Tensor) -> Tensor:
    """Return the values contiguous in memory, with a lazy negation resolved."""
    return values.resolve_neg().contiguous()


def _weights_of(weights: Tensor | None, y: Tensor) -> tuple[Tensor, int]:
    """Return the weights in memory, and the distance between two of their rows."""
    if weights is None:
        return y, 0  # not read
    return _in_memory(weights), 0 if weights.ndim < y.ndim else y.shape[-1]


def solve(
    y: Tensor, weights: Tensor | None = None, increasing: bool = True, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Solve every row of `y`, in one launch.

    Args:
        y: Values, of any float dtype. The fit of a row with a value that is not finite is NaN.
        weights: Positive weights, or None for 1 everywhere. The fit of a row with a weight that is
            not positive and finite is NaN.
        increasing: True for a non-decreasing fit.
        keep: Whether to return the solution in float64 too.

    Shape:
        y is (..., N) with 1 <= N <= MAX_LENGTH, weights (..., N) or (N,). The fit is (..., N), of
        y's dtype; the solution (..., N), float64, None without `keep`.
    """
    n = y.shape[-1]
    rows = y.numel() // n
    y = _in_memory(y)
    w, stride = _weights_of(weights, y)
    size = _power_of_two(n)
    tile, warps = _tile(size)
    fit = torch.empty_like(y)
    scratch = y.new_empty((rows, 4 * size), dtype=torch.float64)
    # Separate from the fit, which may be changed in place, even if their dtypes are the same.
    kept = torch.empty_like(y, dtype=torch.float64) if keep else None
    with torch.cuda.device_of(y):
        _solve_kernel[(rows,)](
            y, w, fit, fit if kept is None else kept, scratch,
            n, stride, size, size.bit_length() - 1,
            WEIGHTED=weights is not None, DECREASING=not increasing,
            KEEP=keep, TILE=tile, num_warps=warps, **_OPTIONS,
        )  # fmt: skip
    return fit, kept


def blocks(solution: Tensor) -> Tensor:
    """Return the solution: its runs of equal values are the blocks."""
    return solution


def block_means(grad: Tensor, solution: Tensor, weights: Tensor | None = None) -> Tensor:
    """Divide the sum of `grad` over each block by the weight of the block, in one launch.

    Args:
        grad: Incoming gradient.
        solution: The solution in float64, whose runs of equal values are the blocks.
        weights: Positive weights, or None for 1 everywhere.

    Shape:
        grad and solution are (..., N), weights (..., N) or (N,). The result is (..., N), with one
        value per block, and float64 (without weights: grad's dtype).
    """
    n = grad.shape[-1]
    rows = grad.numel() // n
    grad, solution = _in_memory(grad), solution.contiguous()
    w, stride = _weights_of(weights, grad)
    tile, warps = _tile(_power_of_two(n))
    means = torch.empty_like(grad, dtype=grad.dtype if weights is None else torch.float64)
    scratch = grad.new_empty((rows, 2 * n), dtype=torch.float64)
    with torch.cuda.device_of(grad):
        _block_means_kernel[(rows,)](
            grad, solution, w, means, scratch, n, stride,
            WEIGHTED=weights is not None, TILE=tile, num_warps=warps, **_OPTIONS,
        )  # fmt: skip
    return means
