"""Other class distributions: correct a classifier for one, and evaluate under one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice
from ltlearn.metrics.calibration import calibration_error_of
from ltlearn.metrics.rows import check_lengths, check_logits, read_labels, read_rows, unwrap
from ltlearn.names import PRIORS
from ltlearn.utils.text import name_classes
from ltlearn.utils.vectors import check_vector, reversed_ranks

__all__ = ["PRIORS", "prior_vector", "correct_for_prior", "PriorReport", "prior_report"]

_log = logging.getLogger("ltlearn")
_N_BINS = 15
_FAR = 1e4  # the margin between the lowest logit and the logit of an impossible class


def prior_vector(
    prior: str | Tensor | Sequence[float], class_counts: Tensor | Sequence[float]
) -> Tensor:
    """Compute the share of each class in a class distribution.

    Args:
        prior: "uniform": equal shares. "train": the shares in the training set. "reversed": the
            shares of the training set with reversed ranks, so that the rarest class gets the
            largest share; classes with equal counts rank in label order. Or a vector of C numbers
            of at least 0, not all 0, which is divided by its sum.
        class_counts: Training images per class.

    Shape:
        class_counts is (C,). The result is (C,), float64, on the CPU, with sum 1.

    Raises:
        UserError: If the name is unknown, or a vector has the wrong length, a number that is
            negative or not finite, or only zeros.

    Source:
        "reversed": the backward long-tailed test sets of Zhang et al., NeurIPS 2022,
        arXiv:2107.09249 (SADE).

    Example:
        >>> prior_vector("reversed", [6, 3, 1])
        tensor([0.1000, 0.3000, 0.6000], dtype=torch.float64)
    """
    counts = check_vector("class_counts", class_counts)
    if isinstance(prior, str):
        check_choice("prior", prior, PRIORS)
        if prior == "uniform":
            return torch.full_like(counts, 1 / len(counts))
        if prior == "reversed":
            counts = reversed_ranks(counts)
        return counts / counts.sum()
    return _shares("prior", prior, len(counts), "class_counts")


def correct_for_prior(
    logits: Tensor | np.ndarray,
    source_prior: Tensor | Sequence[float],
    target_prior: Tensor | Sequence[float],
) -> Tensor:
    """Correct logits for images from another, known class distribution.

    The result is z_c + log target_c - log source_c, which is exact for a classifier that is
    calibrated on the source. A class that the target lacks gets a finite logit 10,000 below all
    others. A class that only the source lacks is corrected as if it were as rare as the rarest
    class of the source; a warning names it.

    Args:
        logits: The logits of a classifier trained on the source.
        source_prior: Class shares during training.
        target_prior: Class shares during use.

    Shape:
        logits is (N, C), any floating dtype; the priors are (C,) and are divided by their sums. The
        result is a new tensor, (N, C), with the dtype and the device of logits.

    Raises:
        UserError: If logits is not (N, C) or holds probabilities, or a prior is no vector of C
            finite numbers of at least 0, not all 0.

    Source:
        Saerens et al., Neural Computation 14 (1), 2002.
    """
    logits = unwrap(logits)
    if isinstance(logits, np.ndarray):
        # Copy: torch warns about the read-only pages of a memory-mapped file.
        logits = torch.from_numpy(np.array(logits))
    if logits.ndim != 2 or not logits.is_floating_point():
        raise UserError(
            f"logits has shape {tuple(logits.shape)} and {logits.dtype}; it must be (N, C) of a "
            "floating type."
        )
    check_logits(logits, "logits")
    num_classes = logits.shape[1]
    source = _shares("source_prior", source_prior, num_classes, "logits")
    target = _shares("target_prior", target_prior, num_classes, "logits")
    unknown = (source == 0) & (target > 0)
    if unknown.any():
        _log.warning(
            "the source has no class %s; it is corrected like the rarest class of the source.",
            name_classes(unknown),
        )
    impossible = target == 0
    shift = target.where(~impossible, 1).log() - source.clamp(min=source[source > 0].min()).log()
    shift = shift.where(~impossible, 0)
    # Half precision is for storage alone: compute the sum in float32.
    wide = torch.promote_types(logits.dtype, torch.float32)
    corrected = logits.to(wide) + shift.to(logits.device, wide)
    if impossible.any() and len(logits):
        lowest = corrected.amin(1, keepdim=True)
        corrected = corrected.where(~impossible.to(logits.device), lowest - lowest.abs() - _FAR)
    return corrected.clamp(min=torch.finfo(logits.dtype).min).to(logits.dtype)


@dataclass(frozen=True)
class PriorReport:
    """A test result under another class distribution.

    Args:
        accuracy: Top-1 accuracy, a fraction in [0, 1].
        nll: Mean negative log-likelihood in nats.
        ece: Expected calibration error (15 bins), a fraction in [0, 1].
        covered: Share of the distribution on classes that have test images. Below 1, the figures
            hold for these classes only.
        n_images: Number of test images.
        n_effective: Number of images of equal weight with the same precision. It is far below
            n_images if the distribution gives much weight to classes with few test images.
    """

    accuracy: float
    nll: float
    ece: float
    covered: float
    n_images: int
    n_effective: float


def prior_report(
    logits: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    prior: Tensor | Sequence[float],
) -> PriorReport:
    """Evaluate a classifier as if the test images had another class distribution.

    Each image of class c gets the weight prior_c / (share of class c in the test images). The
    logits are not changed: see `correct_for_prior`. A warning names the classes with a share of the
    prior but without test images; the shares of the other classes are scaled up.

    Args:
        logits: The logits of the test images.
        targets: The true classes.
        prior: Class shares, such as from `prior_vector`.

    Shape:
        logits is (N, C), any floating dtype, also a memory-mapped array; targets (N,), integer;
        prior (C,), divided by its sum. Means divide by the sum of the weights.

    Raises:
        UserError: If the shapes differ, there is no image, a label is out of range, a logit is not
            finite, logits holds probabilities, or the prior is no vector of C finite numbers of at
            least 0 with one above 0 for a class that has test images.
    """
    logits = unwrap(logits)
    if logits.ndim != 2:
        raise UserError(f"logits has shape {tuple(logits.shape)}; it must be (N, C).")
    check_logits(logits, "logits")
    num_classes = logits.shape[1]
    prior = _shares("prior", prior, num_classes, "logits")
    labels = read_labels(targets, num_classes, "targets")
    check_lengths(len(logits), len(labels), "logits", "targets")
    total = torch.bincount(labels, minlength=num_classes)
    unseen = (total == 0) & (prior > 0)
    covered = float(prior[total > 0].sum())
    if covered == 0:
        raise UserError(
            "prior is 0 for every class that has test images; it must be above 0 for one."
        )
    if unseen.any():
        _log.warning(
            "no test images of class %s, %.3g %% of the prior; the other classes are scaled up.",
            name_classes(unseen),
            100 * float(prior[unseen].sum()),
        )
    _, confidence, nll, correct = read_rows(logits, labels, probabilities=False, name="logits")
    weights = (prior / total.clamp(min=1))[labels]
    weights = weights / weights.sum()
    return PriorReport(
        accuracy=float((weights * correct).sum()),
        nll=float((weights * nll).sum()),
        ece=calibration_error_of(confidence, correct, _N_BINS, weights),
        covered=min(covered, 1.0) if unseen.any() else 1.0,
        n_images=len(labels),
        n_effective=1 / float((weights**2).sum()),  # Kish's effective sample size
    )


def _shares(name: str, values: Tensor | Sequence[float], num_classes: int, other: str) -> Tensor:
    """Check a vector of C shares; return it in float64 with sum 1."""
    shares = check_vector(name, values)
    if len(shares) != num_classes:
        raise UserError(
            f"{name} has {len(shares)} numbers, but there are {num_classes} classes in {other}."
        )
    return shares / shares.sum()
