"""Corrections of a trained classifier that need no training, and how their strength is chosen.

All take a head, an `nn.Linear` or one with `.fold()`, and return a new head; the given one is left
as it is.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from ltlearn.errors import UserError, check_whole
from ltlearn.losses.counted import check_number, check_vector
from ltlearn.metrics import _check_finite, _check_lengths, _labels, _unwrap
from ltlearn.models.nearest_mean import NearestClassMean

__all__ = [
    "TAU_GRID",
    "TauChoice",
    "adjust_logits",
    "choose_logit_adjustment",
    "choose_tau",
    "choose_tau_norm",
    "fit_temperature",
    "nearest_class_mean",
    "scale_temperature",
    "tau_normalize",
]

TAU_GRID = tuple(i / 10 for i in range(21))
_PUBLISHED_TAU = 1.0
_FLOOR = 1e-12  # of the authors' logit adjustment: log(share ** tau + 1e-12)
_TEMPERATURES = (1e-3, 1e3)
_BLOCK_NUMBERS = 2**22  # features or logits are read so many at a time: 32 MiB of float64
_EQUAL = 12  # decimals to which two accuracies, or two NLLs, are told apart
_NAMED = 10  # classes that a message names before it says "..."

_log = logging.getLogger("ltlearn")


def tau_normalize(head: nn.Module, tau: float = 1.0, keep_bias: bool = True) -> nn.Linear:
    """Divide the weights of each class by their norm to the power tau.

    Args:
        head: The classifier.
        tau: No unit, at least 0. 0 changes nothing; 1 makes all norms 1.
        keep_bias: Whether the bias stays as it is (Zhang et al.) or is dropped (Kang et al.).

    Raises:
        UserError: If `head` is no linear classifier, `tau` is not allowed, or a class has weights
            that are all zero (with tau above 0), not finite, or do not fit the dtype afterwards.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217. With the bias: Zhang et al., AAAI
        2021 ("Bag of Tricks").
    """
    check_number("tau", tau, 0)
    linear = _linear_of(head)
    weight = linear.weight.detach().double() * _tau_scale(linear, tau)[:, None]
    return _new_linear(linear, weight, linear.bias if keep_bias else None)


def adjust_logits(
    head: nn.Module, class_counts: Tensor | Sequence[float], tau: float = 1.0
) -> nn.Linear:
    """Take tau times the log of each class's share of the training images off its logit.

    The result has a bias whether or not the head had one. A class without training images is
    raised as much as the rarest class that has some, and no more (the authors' floor alone would
    raise it by 27.6, above all others); a warning names it.

    Args:
        head: The classifier.
        class_counts: Training images per class, C of them.
        tau: Strength of the adjustment, no unit, at least 0. 1 is what a calibrated classifier
            needs for images from balanced classes.

    Raises:
        UserError: If `head` is no linear classifier, the counts are no vector of C numbers, or
            `tau` is not allowed.

    Source:
        Menon et al., ICLR 2021, arXiv:2007.07314; as in the authors' code, log(share ** tau
        + 1e-12). Departure: classes without images.
    """
    check_number("tau", tau, 0)
    linear = _linear_of(head)
    counts = _counts_of(class_counts, linear)
    bias = -_log_prior(counts, tau).to(linear.weight.device)
    if linear.bias is not None:
        bias = bias + linear.bias.detach().double()
    return _new_linear(linear, linear.weight, bias)


def scale_temperature(head: nn.Module, temperature: float) -> nn.Linear:
    """Divide the logits by a temperature, which leaves every prediction as it is.

    Args:
        head: The classifier.
        temperature: No unit, above 0; above 1 makes the classifier less sure.

    Raises:
        UserError: If `head` is no linear classifier, or `temperature` is not allowed.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599.
    """
    check_number("temperature", temperature, 0, open_low=True)
    linear = _linear_of(head)
    bias = None if linear.bias is None else linear.bias.detach().double() / temperature
    return _new_linear(linear, linear.weight.detach().double() / temperature, bias)


def fit_temperature(logits: Tensor | np.ndarray, targets: Tensor | Sequence[int]) -> float:
    """Find the temperature with the smallest negative log-likelihood on held-out images.

    The likelihood of logits / T is convex in 1 / T, so its slope has one zero at most. Where there
    is none (all images recognised, or worse than chance) the answer is an end of the range 0.001
    to 1,000; where all logits are alike it is 1.

    Args:
        logits: Of images that the classifier was not trained on.
        targets: The true classes.

    Shape:
        logits is (N, C), any floating dtype, also a memory-mapped array; targets (N,), integer.
        Computed in float64, a block of rows at a time.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a logit is
            not finite.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599.
    """
    logits, targets = _rows_of(logits, targets, "logits")
    spread = 0.0
    for start, block in _blocks(logits):
        _check_finite(block, start, "logits")
        spread = max(spread, float((block.amax(1) - block.amin(1)).max()))
    if spread == 0:
        return 1.0

    def slope(log_temperature: float) -> float:
        """Return d NLL / d (1/T), the mean of E_p[z] - z_y."""
        total = 0.0
        for start, block in _blocks(logits):
            z = block - block.amax(1, keepdim=True)
            p = (z * math.exp(-log_temperature)).softmax(1)
            true = z.gather(1, targets[start : start + len(z), None])
            total += float(((p * z).sum(1) - true[:, 0]).sum())
        return total / len(targets)

    low, high = (math.log(t) for t in _TEMPERATURES)
    if slope(low) <= 0:
        return _TEMPERATURES[0]
    if slope(high) >= 0:
        return _TEMPERATURES[1]
    return math.exp(brentq(slope, low, high, xtol=1e-10))


def nearest_class_mean(
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    num_classes: int,
    centre: bool = True,
    normalize: bool = True,
) -> NearestClassMean:
    """Make a classifier of the mean feature of each class.

    A class without images is never predicted; a warning names it.

    Args:
        features: Of the training images.
        targets: Their classes.
        num_classes: C, at least 1.
        centre: Whether the mean over all images is taken off first.
        normalize: Whether each feature is then divided by its length. The means themselves are not
            normalised again.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.
        Computed in float64, a block of rows at a time.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a feature
            is not finite.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217; centred features of unit length are
        the default of the authors' code.
    """
    check_whole("num_classes", num_classes, 1)
    features, targets = _rows_of(features, targets, "features", num_classes)
    width = features.shape[1]
    head = NearestClassMean(width, num_classes)
    head.normalize.fill_(bool(normalize))
    mu = torch.zeros(width, dtype=torch.float64)
    for start, block in _blocks(features):
        _check_finite(block, start, "features")
        mu += block.sum(0)
    if centre:
        head.centre.copy_(mu / len(targets))
    sums = torch.zeros(num_classes, width, dtype=torch.float64)
    for start, block in _blocks(features):
        sums.index_add_(0, targets[start : start + len(block)], head.transform(block))
    counts = torch.bincount(targets, minlength=num_classes)
    head.means.copy_(sums / counts.clamp(min=1)[:, None])
    head.has_images.copy_(counts > 0)
    _warn_without_images(counts, "it is never predicted")
    return head


class TauChoice(NamedTuple):
    """What `choose_tau` found.

    Args:
        value: The tau chosen.
        curve: Each tau tried, ascending, with its class-balanced accuracy, a fraction in [0, 1].
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

    Of equally accurate values it takes the one with the smallest negative log-likelihood, then the
    nearest to the published default, then the smaller. Classes without held-out images are left
    out of the mean.

    Args:
        make_logits: Gives the corrected logits of all held-out images for a value of tau.
        targets: The true classes.
        num_classes: C, at least 1.
        candidates: Values to try, at least 0. The published grid: 0, 0.1, ..., 2.
        default: The published value.

    Shape:
        make_logits returns (N, C); targets is (N,), integer.

    Raises:
        UserError: If the shapes disagree, there is no image or no candidate, a label is out of
            range, or a value is not allowed.
    """
    check_whole("num_classes", num_classes, 1)

    def read(tau: float) -> tuple[Tensor | np.ndarray, Tensor]:
        logits, labels = _rows_of(make_logits(tau), targets, "logits", num_classes)
        if logits.shape[1] != num_classes:
            raise UserError(
                f"`make_logits` gives {logits.shape[1]} columns for {num_classes} classes."
            )
        return logits, labels

    def accuracies(taus: Sequence[float]) -> list[float]:
        values = []
        for tau in taus:
            logits, labels = read(tau)
            hits = _Hits(labels, num_classes, 1)
            for start, block in _blocks(logits):
                _check_finite(block, start, "logits")
                hits.add(0, start, block)
            values += hits.balanced()
        return values

    def nlls(taus: Sequence[float]) -> list[float]:
        values = []
        for tau in taus:
            logits, labels = read(tau)
            parts = [_nll(b, labels[i : i + len(b)]) for i, b in _blocks(logits)]
            values.append(sum(parts) / len(labels))
        return values

    return _choose(candidates, default, accuracies, nlls)


def choose_tau_norm(
    head: nn.Module,
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    keep_bias: bool = True,
    candidates: Sequence[float] = TAU_GRID,
) -> TauChoice:
    """Choose tau of `tau_normalize` on the features of held-out images, as `choose_tau` does.

    The features meet the weights once, whatever the number of candidates.

    Args:
        head: The classifier.
        features: Of held-out images.
        targets: Their classes.
        keep_bias: As it will be in `tau_normalize`.
        candidates: Values to try, at least 0.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.

    Raises:
        UserError: As `choose_tau` and `tau_normalize`.
    """
    linear = _linear_of(head)
    bias = linear.bias if keep_bias else None

    def correct(tau: float) -> tuple[Tensor, Tensor | None]:
        return _tau_scale(linear, tau), bias

    return _choose_linear(linear, features, targets, candidates, correct)


def choose_logit_adjustment(
    head: nn.Module,
    features: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    class_counts: Tensor | Sequence[float],
    candidates: Sequence[float] = TAU_GRID,
) -> TauChoice:
    """Choose tau of `adjust_logits` on the features of held-out images, as `choose_tau` does.

    The features meet the weights once, whatever the number of candidates.

    Args:
        head: The classifier.
        features: Of held-out images.
        targets: Their classes.
        class_counts: Training images per class, C of them.
        candidates: Values to try, at least 0.

    Shape:
        features is (N, D), any floating dtype, also a memory-mapped array; targets (N,), integer.

    Raises:
        UserError: As `choose_tau` and `adjust_logits`.
    """
    linear = _linear_of(head)
    counts = _counts_of(class_counts, linear)

    def correct(tau: float) -> tuple[None, Tensor]:
        shift = -_log_prior(counts, tau).to(linear.weight.device)
        return None, shift if linear.bias is None else shift + linear.bias.detach().double()

    return _choose_linear(linear, features, targets, candidates, correct)


def _choose_linear(
    linear: nn.Linear, features, targets, candidates, correct: Callable
) -> TauChoice:
    """Choose among corrections that scale and shift each class's logit w . x."""
    num_classes = linear.out_features
    features, targets = _rows_of(features, targets, "features", num_classes)
    if features.shape[1] != linear.in_features:
        raise UserError(
            f"`features` has {features.shape[1]} columns but the classifier takes "
            f"{linear.in_features}."
        )
    weight = linear.weight.detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    checked = False

    def raw_blocks() -> Iterator[tuple[int, Tensor]]:
        for start, block in _blocks(features, num_classes):
            if not checked:
                _check_finite(block, start, "features")
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
                totals[i] += _nll(corrected(raw, scale, shift).double(), true)
        return [total / len(targets) for total in totals]

    return _choose(candidates, _PUBLISHED_TAU, accuracies, nlls)


def _choose(
    candidates: Sequence[float], default: float, accuracies: Callable, nlls: Callable
) -> TauChoice:
    taus = sorted(set(_candidates(candidates)))
    curve = accuracies(taus)
    best = max(round(a, _EQUAL) for a in curve)
    tied = [tau for tau, a in zip(taus, curve, strict=True) if round(a, _EQUAL) == best]
    # The likelihood is computed only where it decides.
    keys = [0.0] if len(tied) == 1 else [round(v, _EQUAL) for v in nlls(tied)]
    ranked = [(nll, abs(tau - default), tau) for nll, tau in zip(keys, tied, strict=True)]
    return TauChoice(min(ranked)[2], list(zip(taus, curve, strict=True)))


def _candidates(candidates: Sequence[float]) -> list[float]:
    taus = list(candidates)
    if not taus:
        raise UserError("`candidates` is empty; give a value to try.")
    for tau in taus:
        check_number("each of candidates", tau, 0)
    return [float(tau) for tau in taus]


class _Hits:
    """Recognised images per class, for several classifiers at once."""

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


def _nll(logits: Tensor, targets: Tensor) -> float:
    """Return the summed negative log-likelihood."""
    return float(nn.functional.cross_entropy(logits, targets, reduction="sum"))


def _tau_scale(linear: nn.Linear, tau: float) -> Tensor:
    """Return 1 / ||w_c|| ** tau, (C,), float64."""
    norms = linear.weight.detach().double().norm(dim=1)
    bad = ~norms.isfinite() | ((norms == 0) & (tau > 0))
    if bad.any():
        raise UserError(
            f"the weights of class {_listed(bad)} are all zero or not finite, so they cannot be "
            "divided by their norm; train the classifier first."
        )
    return norms**-tau if tau else torch.ones_like(norms)


def _log_prior(counts: Tensor, tau: float) -> Tensor:
    """Return log(share ** tau + 1e-12), (C,), float64, with no share below the rarest class's."""
    share = counts / counts.sum()
    return (share.clamp(min=share[share > 0].min()) ** tau + _FLOOR).log()


def _counts_of(class_counts: Tensor | Sequence[float], linear: nn.Linear) -> Tensor:
    counts = check_vector("class_counts", class_counts)
    if len(counts) != linear.out_features:
        raise UserError(
            f"class_counts has {len(counts)} numbers for a classifier of {linear.out_features} "
            "classes."
        )
    _warn_without_images(counts, "its logit is raised as much as that of the rarest class")
    return counts


def _warn_without_images(counts: Tensor, consequence: str) -> None:
    empty = counts == 0
    if empty.any():
        _log.warning("no training images of class %s; %s.", _listed(empty), consequence)


def _listed(mask: Tensor) -> str:
    classes = mask.nonzero().flatten().tolist()
    return ", ".join(map(str, classes[:_NAMED])) + (" ..." if len(classes) > _NAMED else "")


def _linear_of(head: nn.Module) -> nn.Linear:
    """Return the plain linear layer that a head is, or stands for."""
    fold = getattr(head, "fold", None)
    linear = fold() if callable(fold) else head
    if not isinstance(linear, nn.Linear):
        raise UserError(
            "the classifier must be an nn.Linear, or a head with .fold() that gives one, got "
            f"{type(head).__name__}."
        )
    return linear


@torch.no_grad()
def _new_linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # `skip_init`: a correction takes nothing from the generator of random numbers.
    linear = nn.utils.skip_init(
        nn.Linear,
        like.in_features,
        like.out_features,
        bias=bias is not None,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    bad = ~linear.weight.isfinite().all(1)
    if bias is not None:
        bad |= ~linear.bias.isfinite()
    if bad.any():
        raise UserError(
            f"the corrected classifier of class {_listed(bad)} is not finite in "
            f"{like.weight.dtype}; use float32, or a weaker correction."
        )
    return linear.train(like.training)


def _rows_of(
    rows, targets, name: str, num_classes: int | None = None
) -> tuple[Tensor | np.ndarray, Tensor]:
    """Check (N, K) rows and their (N,) labels; without `num_classes`, there are K of them."""
    rows = _unwrap(rows)
    if rows.ndim != 2:
        raise UserError(f"`{name}` has shape {tuple(rows.shape)}; it must have two dimensions.")
    targets = _labels(targets, num_classes or rows.shape[1], "targets")
    _check_lengths(len(rows), len(targets), name, "targets")
    return rows, targets


def _blocks(rows: Tensor | np.ndarray, width: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Read rows in float64 blocks on the CPU, fewer at a time where they become `width` wide."""
    step = max(1, _BLOCK_NUMBERS // max(1, rows.shape[1], width))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if isinstance(block, np.ndarray):
            # A copy in any case: torch warns about the read-only pages of a memory-mapped file.
            block = torch.from_numpy(np.array(block, dtype=np.float64))
        yield start, block.cpu().double()
