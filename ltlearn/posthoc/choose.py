"""Choose the strength of a post-hoc correction on validation images."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.metrics.rows import check_finite, check_lengths, read_labels, unwrap

__all__ = [
    "TAU_GRID",
    "EQUAL_DECIMALS",
    "TauChoice",
    "choose_tau",
    "choose_linear",
    "mean_nll",
    "read_features",
    "iterate_blocks",
]

TAU_GRID = tuple(i / 10 for i in range(21))
_PUBLISHED_TAU = 1.0
_BLOCK_NUMBERS = 2**22  # numbers in a block of features or logits: 32 MiB of float64
EQUAL_DECIMALS = 12  # accuracies, or NLLs, that agree to so many decimals count as equal


class TauChoice(NamedTuple):
    """The chosen strength of a correction, and the accuracy at each strength.

    Args:
        value: The chosen strength.
        curve: Pairs of a strength, ascending, and its class-balanced accuracy in [0, 1].
    """

    value: float
    curve: list[tuple[float, float]]


def choose_tau(
    make_logits: Callable[[float], Tensor | np.ndarray],
    targets: Tensor | Sequence[int],
    num_classes: int,
    candidates: Sequence[float] = TAU_GRID,
    default: float = 1.0,
) -> TauChoice:
    """Choose the strength of a correction by class-balanced accuracy on held-out images.

    Among equally accurate values, the smallest negative log-likelihood decides, then the distance
    to the published default, then the smaller value. The mean leaves out classes without held-out
    images.

    Args:
        make_logits: Returns the corrected logits of all held-out images for a value of tau.
        targets: The true classes.
        num_classes: C, at least 1.
        candidates: Values to try, at least 0. The published grid: 0, 0.1, ..., 2.
        default: The published value.

    Shape:
        make_logits returns (N, C); targets is (N,), integer.

    Raises:
        UserError: If the shapes disagree, there is no image or no candidate, a label is out of
            range, or a value is not allowed.

    Example:
        >>> choose_tau(lambda tau: logits - tau * log_prior, targets, num_classes=10).value
        1.2
    """
    check_whole("num_classes", num_classes, 1)

    def read(tau: float) -> tuple[Tensor | np.ndarray, Tensor]:
        logits, labels = read_features(make_logits(tau), targets, "logits", num_classes)
        if logits.shape[1] != num_classes:
            raise UserError(
                f"make_logits must return (N, {num_classes}), got {logits.shape[1]} columns."
            )
        return logits, labels

    def accuracies(taus: Sequence[float]) -> list[float]:
        values = []
        for tau in taus:
            logits, labels = read(tau)
            hits = _Hits(labels, num_classes, 1)
            for start, block in iterate_blocks(logits):
                check_finite(block, start, "logits")
                hits.add(0, start, block)
            values += hits.balanced()
        return values

    def nlls(taus: Sequence[float]) -> list[float]:
        values = []
        for tau in taus:
            logits, labels = read(tau)
            parts = [mean_nll(b, labels[i : i + len(b)]) for i, b in iterate_blocks(logits)]
            values.append(sum(parts) / len(labels))
        return values

    return _choose(candidates, default, accuracies, nlls)


def choose_linear(linear: nn.Linear, features, targets, candidates, correct: Callable) -> TauChoice:
    """Choose among corrections that scale and shift the logit w . x of each class.

    Args:
        linear: The classifier.
        features: Features of the held-out images, (N, D).
        targets: Their classes, (N,).
        candidates: Values to try, at least 0.
        correct: Returns scale and shift, (C,) or None, for a value.
    """
    num_classes = linear.out_features
    features, targets = read_features(features, targets, "features", num_classes)
    if features.shape[1] != linear.in_features:
        raise UserError(
            f"features must have the {linear.in_features} columns that the classifier takes, got "
            f"{features.shape[1]}."
        )
    weight = linear.weight.detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    checked = False

    def raw_blocks() -> Iterator[tuple[int, Tensor]]:
        for start, block in iterate_blocks(features, num_classes):
            if not checked:
                check_finite(block, start, "features")
            yield start, block.to(weight) @ weight.T

    def corrected(raw: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        logits = raw if scale is None else raw * scale.to(raw.dtype)
        return (logits if shift is None else logits + shift.detach().to(raw.dtype)).cpu()

    def accuracies(taus: Sequence[float]) -> list[float]:
        nonlocal checked
        hits, corrections = _Hits(targets, num_classes, len(taus)), [correct(t) for t in taus]
        for start, raw in raw_blocks():
            for i, (scale, shift) in enumerate(corrections):
                hits.add(i, start, corrected(raw, scale, shift))
        checked = True
        return hits.balanced()

    def nlls(taus: Sequence[float]) -> list[float]:
        totals, corrections = [0.0] * len(taus), [correct(t) for t in taus]
        for start, raw in raw_blocks():
            true = targets[start : start + len(raw)]
            for i, (scale, shift) in enumerate(corrections):
                totals[i] += mean_nll(corrected(raw, scale, shift).double(), true)
        return [total / len(targets) for total in totals]

    return _choose(candidates, _PUBLISHED_TAU, accuracies, nlls)


def _choose(
    candidates: Sequence[float], default: float, accuracies: Callable, nlls: Callable
) -> TauChoice:
    taus = sorted(set(_candidates(candidates)))
    curve = accuracies(taus)
    best = max(round(a, EQUAL_DECIMALS) for a in curve)
    tied = [tau for tau, a in zip(taus, curve, strict=True) if round(a, EQUAL_DECIMALS) == best]
    # The likelihood decides between equal accuracies only, and is computed for these.
    keys = [0.0] if len(tied) == 1 else [round(v, EQUAL_DECIMALS) for v in nlls(tied)]
    ranked = [(nll, abs(tau - default), tau) for nll, tau in zip(keys, tied, strict=True)]
    return TauChoice(min(ranked)[2], list(zip(taus, curve, strict=True)))


def _candidates(candidates: Sequence[float]) -> list[float]:
    taus = list(candidates)
    if not taus:
        raise UserError("candidates must contain at least one value, got none.")
    for tau in taus:
        check_number("each of candidates", tau, 0)
    return [float(tau) for tau in taus]


class _Hits:
    """Count correctly classified images per class, for several classifiers at once."""

    def __init__(self, targets: Tensor, num_classes: int, classifiers: int):
        self.targets, self.num_classes = targets, num_classes
        self.hits = torch.zeros(classifiers, num_classes, dtype=torch.int64)

    def add(self, classifier: int, start: int, logits: Tensor) -> None:
        true = self.targets[start : start + len(logits)]
        right = true[logits.argmax(1) == true]
        self.hits[classifier] += torch.bincount(right, minlength=self.num_classes)

    def balanced(self) -> list[float]:
        total = torch.bincount(self.targets, minlength=self.num_classes)
        return (self.hits.double() / total)[:, total > 0].mean(1).tolist()


def mean_nll(logits: Tensor, targets: Tensor) -> float:
    """Return the negative log-likelihood, summed over the images."""
    return float(nn.functional.cross_entropy(logits, targets, reduction="sum"))


def read_features(
    rows, targets, name: str, num_classes: int | None = None
) -> tuple[Tensor | np.ndarray, Tensor]:
    """Check rows (N, K) and their labels (N,) and return both.

    Args:
        rows: The rows.
        targets: The labels.
        name: Name of `rows` in messages.
        num_classes: Number of classes. None: K.
    """
    rows = unwrap(rows)
    if rows.ndim != 2:
        raise UserError(f"{name} must have two dimensions, got shape {tuple(rows.shape)}.")
    targets = read_labels(targets, num_classes or rows.shape[1], "targets")
    check_lengths(len(rows), len(targets), name, "targets")
    return rows, targets


def iterate_blocks(rows: Tensor | np.ndarray, width: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Read rows in float64 blocks on the CPU.

    Args:
        rows: The rows, (N, K).
        width: Columns of the result that is computed from a block, if there are more than K.
    """
    step = max(1, _BLOCK_NUMBERS // max(1, rows.shape[1], width))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if isinstance(block, np.ndarray):
            # A copy in any case: torch warns about the read-only pages of a memory-mapped file.
            block = torch.from_numpy(np.array(block, dtype=np.float64))
        yield start, block.cpu().double()
