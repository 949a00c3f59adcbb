"""Read and check arrays of logits, labels and counts, block by block."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError

__all__ = [
    "IntVector",
    "Matrix",
    "read_rows",
    "are_probabilities",
    "check_logits",
    "unwrap",
    "is_float",
    "read_whole_numbers",
    "read_labels",
    "check_lengths",
    "check_finite",
]

IntVector = Tensor | np.ndarray | Sequence[int]
Matrix = Tensor | np.ndarray

# Numbers per float64 block (128 MiB), so that memory does not grow with the test set.
_BLOCK_NUMBERS = 2**24
# The sum of a row of probabilities may miss 1 by so much, if it was rounded to half precision.
_ROUNDED = 1e-2


def read_rows(
    output: Any, target: Any, probabilities: bool, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate each row of logits or probabilities.

    Args:
        output: Logits or probabilities, (N, C).
        target: The true classes, (N,).
        probabilities: Whether output holds probabilities.
        name: The name of output in errors.

    Shape:
        The result is four (N,) tensors: the predicted class, its probability, -log p of the true
        class, and whether the prediction is correct.
    """
    output = unwrap(output)
    if output.ndim != 2:
        raise UserError(f"{name} has shape {tuple(output.shape)}; it must be (N, C).")
    target = read_labels(target, output.shape[1], "target")
    check_lengths(len(output), len(target), name)
    tiny = torch.finfo(torch.float64).tiny
    kept = []
    for start, block in _float64_blocks(output):
        check_finite(block, start, name)
        true = target[start : start + len(block), None]
        if probabilities:
            _check_distribution(block, start, name)
            p = block
            nll = -p.gather(1, true).clamp(tiny, 1).log()
        else:
            # Subtract the largest logit first, so that exp cannot overflow.
            shifted = block - block.amax(1, keepdim=True)
            log_p = shifted - shifted.exp().sum(1, keepdim=True).log()
            p = log_p.exp()
            nll = -log_p.gather(1, true)
        # argmax of the input: rounding in softmax could make a tie.
        pred = block.argmax(1)
        confidence = p.gather(1, pred[:, None]).clamp(max=1)
        kept.append((pred, confidence[:, 0], nll[:, 0]))
    pred, confidence, nll = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return pred, confidence, nll, pred == target


def are_probabilities(output: Tensor | np.ndarray) -> bool:
    """Return whether all rows are at least 0 and sum to 1, as no rows of logits do by chance.

    Args:
        output: Logits or probabilities, (N, C). With a single row or class the result is False,
            because its logits can be such numbers.
    """
    if output.ndim != 2 or min(output.shape) < 2 or not is_float(output):
        return False
    # Logits end this in the first block.
    return all(bool(_are_distributions(block).all()) for _, block in _float64_blocks(output))


def check_logits(logits: Tensor | np.ndarray, name: str) -> None:
    """Raise a `UserError` for probabilities in place of logits: all results would be wrong.

    Args:
        logits: The rows to check, (N, C).
        name: Their name in the message.
    """
    if are_probabilities(logits):
        raise UserError(
            f"{name} holds probabilities (its rows are at least 0 and sum to 1), not logits; pass "
            f"their logarithm, {name}.log()."
        )


def _float64_blocks(output: Tensor | np.ndarray) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _BLOCK_NUMBERS // max(1, output.shape[1]))
    for start in range(0, len(output), step):
        block = output[start : start + step]
        if isinstance(block, np.ndarray):
            # Always copy: torch warns about the read-only pages of a memory-mapped file.
            yield start, torch.from_numpy(np.array(block, dtype=np.float64))
        else:
            yield start, block.cpu().double()


def unwrap(values: Any) -> Tensor | np.ndarray:
    """Remove tensor subclasses (fastai's) and gradients; convert lists to arrays.

    Args:
        values: A tensor, an array or a list.
    """
    if isinstance(values, Tensor):
        return values.detach().as_subclass(Tensor)
    return np.asarray(values)


def is_float(values: Tensor | np.ndarray) -> bool:
    """Return whether the values are floating-point numbers."""
    if isinstance(values, Tensor):
        return values.is_floating_point()
    return values.dtype.kind not in "iub"


def _are_distributions(block: Tensor) -> Tensor:
    return ((block.sum(1) - 1).abs() <= _ROUNDED) & (block.amin(1) >= 0)


def read_whole_numbers(values: Any, name: str) -> Tensor:
    """Read a vector of whole numbers as int64 on the CPU.

    Args:
        values: A tensor, an array or a list.
        name: The name of the values in messages.
    """
    values = unwrap(values)
    if isinstance(values, Tensor):
        values = values.cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    if values.ndim != 1:
        raise UserError(f"{name} has shape {tuple(values.shape)}; it must be a vector.")
    if values.dtype.kind not in "iubf" and len(values):
        raise UserError(f"{name} holds {values.dtype}; it must hold whole numbers.")
    if values.dtype.kind == "f" and len(values):
        bad = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values))))
        if len(bad):
            raise UserError(
                f"{name} is {values[bad[0]]} at index {bad[0]}; it must hold whole numbers."
            )
    return torch.from_numpy(values.astype(np.int64))


def read_labels(values: Any, num_classes: int, name: str) -> Tensor:
    """Read labels as int64; raise a `UserError` for a label outside 0..C-1.

    Args:
        values: The labels.
        num_classes: C.
        name: The name of the labels in messages.
    """
    labels = read_whole_numbers(values, name)
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise UserError(
            f"{name} is {int(labels[row])} in row {row}; with {num_classes} classes it must be "
            f"0 to {num_classes - 1}."
        )
    return labels


def check_lengths(rows: int, labels: int, name: str, target: str = "target") -> None:
    """Raise a `UserError` if two arrays differ in length or are empty.

    Args:
        rows: Length of the first array.
        labels: Length of the second array.
        name: The name of the first array in messages.
        target: The name of the second array in messages.
    """
    if rows != labels:
        raise UserError(f"{name} has {rows} rows but {target} has {labels}.")
    if rows == 0:
        raise UserError(f"{name} is empty: there is no image to evaluate.")


def check_finite(block: Tensor, start: int, name: str) -> None:
    """Raise a `UserError` if a value is not finite.

    Args:
        block: Some rows of an array.
        start: Number of the first of these rows in the array.
        name: The name of the array in messages.
    """
    # One sum is enough to check; the row is searched only for the message.
    if not math.isfinite(float(block.sum())):
        bad = (~block.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"{name} is {float(block[row, column])} in row {start + row}, column {column}; "
                "every number must be finite."
            )


def _check_distribution(block: Tensor, start: int, name: str) -> None:
    wrong = ~_are_distributions(block)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"{name} row {start + row} sums to {float(block[row].sum()):.4g} with smallest number "
            f"{float(block[row].min()):.4g}; probabilities must be at least 0 and sum to 1."
        )
