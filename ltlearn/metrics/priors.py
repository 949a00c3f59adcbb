"""Test sets with another class distribution: correct a classifier for it, and measure under it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice
from ltlearn.losses.counted import check_vector
from ltlearn.metrics.calibration import calibration_error_of
from ltlearn.metrics.rows import check_lengths, read_labels, read_rows, unwrap

__all__ = ["PRIORS", "prior_vector", "correct_for_prior", "PriorReport", "prior_report"]

_log = logging.getLogger("ltlearn")
PRIORS = ("uniform", "train", "reversed")
_N_BINS = 15
_FAR = 1e4  # how far below all other logits that of an impossible class is put
_NAMED = 10  # classes that a message names before it says "..."


def prior_vector(
    prior: str | Tensor | Sequence[float], class_counts: Tensor | Sequence[float]
) -> Tensor:
    """Spell out a class distribution.

    Args:
        prior: "uniform": every class alike. "train": as in the training set. "reversed": the shares
            of the training set with the ranks reversed, so that the rarest class gets the largest;
            classes of equal count rank in their order, so that for counts in descending order it is
            the list from back to front. Or a vector of C numbers of at least 0, not all 0, which is
            divided by its sum.
        class_counts: Training images per class.

    Shape:
        class_counts is (C,). The result is (C,), float64, on the CPU, with sum 1.

    Raises:
        UserError: If a name is unknown, or a vector has the wrong length, a number that is negative
            or not finite, or nothing but zeros.

    Source:
        "reversed": the backward long-tailed test sets of Zhang et al., NeurIPS 2022,
        arXiv:2107.09249 (SADE).
    """
    counts = check_vector("class_counts", class_counts)
    if isinstance(prior, str):
        check_choice("prior", prior, PRIORS)
        if prior == "uniform":
            return torch.full_like(counts, 1 / len(counts))
        if prior == "reversed":
            head_first = torch.argsort(counts, descending=True, stable=True)
            counts[head_first] = counts[head_first.flip(0)]
        return counts / counts.sum()
    return _shares("prior", prior, len(counts), "class_counts")


def correct_for_prior(
    logits: Tensor | np.ndarray,
    source_prior: Tensor | Sequence[float],
    target_prior: Tensor | Sequence[float],
) -> Tensor:
    """Correct logits for images that come from a known, other class distribution.

    z_c + log target_c - log source_c: exact for a classifier that is calibrated on the source. A
    class that the target does not have is put 10,000 below all others, finite. A class that the
    source does not have, but the target has, is raised as if it were as rare as the rarest class of
    the source, and no more; a warning names it.

    Args:
        logits: Of a classifier trained on the source.
        source_prior: Class shares that it was trained on.
        target_prior: Class shares where it is used.

    Shape:
        logits is (N, C), any floating dtype; the priors are (C,), and divided by their sums. The
        result is a new tensor, (N, C), of the dtype and on the device of logits.

    Raises:
        UserError: If the logits are no (N, C), or a prior is no vector of C finite numbers of at
            least 0, not all 0.

    Source:
        Saerens et al., Neural Computation 14 (1), 2002.
    """
    logits = unwrap(logits)
    if isinstance(logits, np.ndarray):
        # A copy: torch warns about the read-only pages of a memory-mapped file.
        logits = torch.from_numpy(np.array(logits))
    if logits.ndim != 2 or not logits.is_floating_point():
        raise UserError(
            f"`logits` has shape {tuple(logits.shape)} and {logits.dtype}; it must be (N, C) of a "
            "floating type."
        )
    num_classes = logits.shape[1]
    source = _shares("source_prior", source_prior, num_classes, "logits")
    target = _shares("target_prior", target_prior, num_classes, "logits")
    unknown = (source == 0) & (target > 0)
    if unknown.any():
        _log.warning(
            "the source has no class %s; it is raised as much as the source's rarest class.",
            _listed(unknown),
        )
    impossible = target == 0
    shift = target.where(~impossible, 1).log() - source.clamp(min=source[source > 0].min()).log()
    shift = shift.where(~impossible, 0)
    # Half precision is for storage: the sum is computed in float32.
    wide = torch.promote_types(logits.dtype, torch.float32)
    corrected = logits.to(wide) + shift.to(logits.device, wide)
    if impossible.any() and len(logits):
        lowest = corrected.amin(1, keepdim=True)
        corrected = corrected.where(~impossible.to(logits.device), lowest - lowest.abs() - _FAR)
    return corrected.clamp(min=torch.finfo(logits.dtype).min).to(logits.dtype)


@dataclass(frozen=True)
class PriorReport:
    """Hold what a test result would be under another class distribution.

    Args:
        accuracy: Top-1 accuracy, a fraction in [0, 1].
        nll: Mean negative log-likelihood in nats.
        ece: Expected calibration error (15 bins), a fraction in [0, 1].
        covered: Share of the distribution that falls on classes with test images; below 1 the rest
            is not measured, and the numbers are those among the classes that are.
        n_images: Number of test images.
    """

    accuracy: float
    nll: float
    ece: float
    covered: float
    n_images: int


def prior_report(
    logits: Tensor | np.ndarray,
    targets: Tensor | Sequence[int],
    prior: Tensor | Sequence[float],
) -> PriorReport:
    """Measure a classifier as if the classes of the test images were distributed otherwise.

    Each image of class c is given the weight prior_c / (share of class c in the test images).
    Nothing is done to the logits: see `correct_for_prior`. A class with a share of the prior but
    without test images is named in a warning, and the others' shares make up for it.

    Args:
        logits: Of the test images.
        targets: Their true classes.
        prior: Class shares, as of `prior_vector`.

    Shape:
        logits is (N, C), any floating dtype, also a memory-mapped array; targets (N,), integer;
        prior (C,), divided by its sum. Means divide by the sum of the weights.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, a logit is
            not finite, or the prior is no vector of C finite numbers of at least 0, one of them
            above 0 for a class with test images.
    """
    logits = unwrap(logits)
    if logits.ndim != 2:
        raise UserError(f"`logits` has shape {tuple(logits.shape)}; it must be (N, C).")
    num_classes = logits.shape[1]
    prior = _shares("prior", prior, num_classes, "logits")
    labels = read_labels(targets, num_classes, "targets")
    check_lengths(len(logits), len(labels), "logits", "targets")
    total = torch.bincount(labels, minlength=num_classes)
    unseen = (total == 0) & (prior > 0)
    covered = float(prior[total > 0].sum())
    if covered == 0:
        raise UserError("prior is 0 for every class that has test images: nothing can be measured.")
    if unseen.any():
        _log.warning(
            "no test images of class %s, %.3g %% of the prior; the other classes make up for it.",
            _listed(unseen),
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
    )


def _shares(name: str, values: Tensor | Sequence[float], num_classes: int, other: str) -> Tensor:
    """Check a vector of C shares and return it in float64 with sum 1."""
    shares = check_vector(name, values)
    if len(shares) != num_classes:
        raise UserError(
            f"{name} has {len(shares)} numbers, but there are {num_classes} classes in {other}."
        )
    return shares / shares.sum()


def _listed(mask: Tensor) -> str:
    classes = mask.nonzero().flatten().tolist()
    return ", ".join(map(str, classes[:_NAMED])) + (" ..." if len(classes) > _NAMED else "")
