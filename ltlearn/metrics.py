"""Shot-group accuracy and calibration: what a long-tailed test result consists of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError

__all__ = [
    "FEW_RULES",
    "SHOTS",
    "ShotReport",
    "expected_calibration_error",
    "mean_and_sd",
    "mean_class_accuracy",
    "negative_log_likelihood",
    "per_class_accuracy",
    "shot_groups",
    "shot_report",
    "shot_thresholds_text",
]

SHOTS = ("many", "medium", "few")
FEW_RULES = ("<20", "<=20")
_DASH = "–"
_SUMMARY = ("all", "balanced", *SHOTS, "ece", "nll")
# Rows are read in float64 blocks of this many numbers (128 MiB), whatever the size of the test set.
_BLOCK_NUMBERS = 2**24


def shot_groups(class_counts: Tensor, few: str = "<20", many: int = 100) -> dict[str, Tensor]:
    """Split the classes into many-, medium- and few-shot by their number of training images.

    Args:
        class_counts: Training images per class; a tensor, an array or a list.
        few: Which classes are few-shot: "<20" (then medium starts at 20) or "<=20" (at 21).
            A class with exactly 20 images is what the two conventions differ in.
        many: Classes with more images than this are many-shot, at least 20.

    Shape:
        class_counts is (C,), integer. The result holds three masks (C,), bool, on the device of
        class_counts; every class is in exactly one.

    Raises:
        UserError: If `few` or `many` is not allowed, or a count is negative or no whole number.

    Source:
        "<20": Kang et al., ICLR 2020, arXiv:1910.09217. "<=20": Du et al., CVPR 2023 (GLMC), and
        Liu et al., CVPR 2019, arXiv:1904.05160, who count 100 images as many-shot already.
    """
    _check_few(few)
    if isinstance(many, bool) or not isinstance(many, int) or many < 20:
        raise UserError(f"`many` is {many!r}; it must be a whole number of images, at least 20.")
    device = class_counts.device if isinstance(class_counts, Tensor) else None
    counts = _class_counts(class_counts).to(device)
    is_many = counts > many
    is_few = counts < 20 if few == "<20" else counts <= 20
    return {"many": is_many, "medium": ~is_many & ~is_few, "few": is_few}


def shot_thresholds_text(few: str = "<20", group_sizes: dict[str, int] | None = None) -> str:
    """Say in words which training counts make a class many-, medium- or few-shot.

    Args:
        few: The convention, as in `shot_groups`.
        group_sizes: Classes per group, added in brackets where given.

    Raises:
        UserError: If `few` is not allowed.
    """
    _check_few(few)
    first_medium = 20 if few == "<20" else 21
    parts = {"many": "many >100", "medium": f"medium {first_medium}-100", "few": f"few {few}"}
    if group_sizes is None:
        return ", ".join(parts.values())
    many, medium, few_shot = (group_sizes[name] for name in SHOTS)
    noun = "class" if many == 1 else "classes"
    return (
        f"{parts['many']} ({many:,} {noun}), {parts['medium']} ({medium:,}), "
        f"{parts['few']} ({few_shot:,})"
    )


def expected_calibration_error(probs: Tensor, target: Tensor, n_bins: int = 15) -> float:
    """Measure how far confidence is from accuracy, averaged over bins of equal width.

    Args:
        probs: Probabilities, not logits.
        target: The true classes.
        n_bins: Bins between confidence 0 and 1, at least 1. A bin includes its upper edge.

    Shape:
        probs is (N, C), target (N,), integer. The result is a fraction in [0, 1]: the gaps
        |accuracy - mean confidence| of the bins, each weighted by its share of the N images.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, a row is no
            probability distribution, or `n_bins` is not allowed.

    Source:
        Guo et al., ICML 2017, arXiv:1706.04599, eq. 3.
    """
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise UserError(f"`n_bins` is {n_bins!r}; it must be a whole number, at least 1.")
    _, confidence, _, correct = _read_rows(probs, target, probabilities=True, name="probs")
    return _calibration_error(confidence, correct, n_bins)


def negative_log_likelihood(probs: Tensor, target: Tensor) -> float:
    """Average -log p of the true class over the images, in nats.

    Args:
        probs: Probabilities, not logits. A zero counts as the smallest normal float64 number (708
            nats), so that one confident mistake does not make the mean infinite.
        target: The true classes.

    Shape:
        probs is (N, C), target (N,), integer. The sum is divided by N.

    Raises:
        UserError: If the shapes disagree, there is no image, a label is out of range, or a row is
            no probability distribution.
    """
    _, _, nll, _ = _read_rows(probs, target, probabilities=True, name="probs")
    return float(nll.mean())


def per_class_accuracy(pred: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Compute the accuracy of each class: of its images, the share that was recognised.

    Args:
        pred: Predicted classes.
        target: The true classes.
        num_classes: C, at least 1.

    Shape:
        pred and target are (N,), integer. The result is (C,), float64, on the CPU, each in [0, 1];
        a class with no image in target is NaN.

    Raises:
        UserError: If the shapes disagree, or a label or a prediction is outside 0..C-1.
    """
    target = _labels(target, num_classes, "target")
    pred = _labels(pred, num_classes, "pred")
    if len(pred) != len(target):
        raise UserError(f"`pred` has {len(pred)} rows but `target` has {len(target)}.")
    total = torch.bincount(target, minlength=num_classes)
    hits = torch.bincount(target[pred == target], minlength=num_classes)
    return hits.double() / total  # 0 / 0 is the NaN promised above


def mean_class_accuracy(pred: Tensor, target: Tensor, num_classes: int) -> float:
    """Average the per-class accuracies over the classes that have images (balanced accuracy).

    Args:
        pred: Predicted classes.
        target: The true classes.
        num_classes: C, at least 1.

    Shape:
        pred and target are (N,), integer. The result is a fraction in [0, 1]; the sum is divided by
        the number of classes present in target, not by C.

    Raises:
        UserError: If the shapes disagree, there is no image, or a label or a prediction is outside
            0..C-1.
    """
    per_class = per_class_accuracy(pred, target, num_classes)
    if per_class.isnan().all():
        raise UserError("`target` is empty: there is no image to evaluate.")
    return float(per_class.nanmean())


@dataclass(frozen=True, eq=False)
class ShotReport:
    """Hold what was measured on one test set; accuracies are fractions in [0, 1].

    Args:
        all: Top-1 accuracy over images.
        balanced: Mean of the per-class accuracies over the classes that have test images.
        many: The same mean over the many-shot classes; None if none of them has a test image.
        medium: The same for the medium-shot classes.
        few: The same for the few-shot classes.
        group_sizes: Classes in each group, whether or not they have test images.
        per_class: Accuracy of each class; NaN for a class with no test image.
        per_class_total: Test images of each class.
        ece: Expected calibration error (15 bins), a fraction; None if only predictions were given.
        nll: Mean negative log-likelihood in nats; None if only predictions were given.
        class_counts: Training images of each class.
        classes: Class names, or None.
        few_rule: The few-shot convention, "<20" or "<=20".
        n_images: Number of test images.

    Shape:
        per_class, per_class_total and class_counts are NumPy arrays (C,), float64 and int64.
    """

    all: float
    balanced: float
    many: float | None
    medium: float | None
    few: float | None
    group_sizes: dict[str, int]
    per_class: np.ndarray
    per_class_total: np.ndarray
    ece: float | None
    nll: float | None
    class_counts: np.ndarray
    classes: tuple[str, ...] | None
    few_rule: str
    n_images: int

    def rows(self) -> list[dict[str, Any]]:
        """List the classes in label order, one JSON-ready dictionary each.

        The keys are label, name (None without names), shot, train_images, test_images and accuracy
        (None for a class with no test image).
        """
        groups = shot_groups(self.class_counts, self.few_rule)
        shot = np.full(len(self.class_counts), SHOTS[1], dtype=object)
        for name in SHOTS:
            shot[groups[name].numpy()] = name
        return [
            {
                "label": c,
                "name": self.classes[c] if self.classes is not None else None,
                "shot": str(shot[c]),
                "train_images": int(self.class_counts[c]),
                "test_images": int(self.per_class_total[c]),
                "accuracy": _json_number(self.per_class[c]),
            }
            for c in range(len(self.class_counts))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, as `json.dump` wants them."""
        return {
            **{name: _json_number(getattr(self, name)) for name in _SUMMARY},
            "n_images": self.n_images,
            "few_rule": self.few_rule,
            "group_sizes": dict(self.group_sizes),
            "classes": list(self.classes) if self.classes is not None else None,
            "class_counts": [int(n) for n in self.class_counts],
            "per_class": [_json_number(a) for a in self.per_class],
            "per_class_total": [int(n) for n in self.per_class_total],
        }

    def __str__(self) -> str:
        """Write a few lines of plain text, accuracies in % to one decimal, no value as a dash."""
        names = ("all", "balanced", *SHOTS)
        lines = [f"{name:<9}{_percent(getattr(self, name)):>6}" for name in names]
        if self.ece is not None:
            lines.append(f"{'ECE':<9}{_percent(self.ece):>6}")
            lines.append(f"{'NLL':<9}{self.nll:>6.3f}")
        missing = int((self.per_class_total == 0).sum())
        images = "image" if self.n_images == 1 else "images"
        about = f"in % over {self.n_images:,} test {images}, {len(self.per_class):,} classes"
        if missing:
            about += f", {missing:,} of them without a test image (left out of the means)"
        if self.ece is not None:
            about += "; NLL in nats"
        sizes = shot_thresholds_text(self.few_rule, self.group_sizes)
        return "\n".join([*lines, about, f"training images: {sizes}"])


def shot_report(
    output: Tensor,
    target: Tensor,
    class_counts: Tensor,
    *,
    classes: Sequence[str] | None = None,
    few: str = "<20",
    probabilities: bool = False,
) -> ShotReport:
    """Evaluate a classifier: accuracy over all images, per class and shot group, and calibration.

    Args:
        output: Logits, or predicted classes. A tensor of any float type and device, or an array.
        target: The true classes.
        class_counts: Training images per class; they decide which class is many- or few-shot.
        classes: Class names in label order.
        few: The few-shot convention, "<20" or "<=20" (see `shot_groups`).
        probabilities: Whether output holds probabilities instead of logits.

    Shape:
        output is (N, C), logits or probabilities, or (N,), integer predictions; target is (N,),
        integer; class_counts is (C,). A group's accuracy is the mean of its per-class accuracies.

    Raises:
        UserError: If there is no image, the shapes disagree, a label or a prediction is outside
            0..C-1, a row is not finite (or, with `probabilities`, no distribution), or `few` is not
            allowed.
    """
    _check_few(few)
    counts = _class_counts(class_counts)
    num_classes = len(counts)
    if classes is not None and len(classes) != num_classes:
        raise UserError(
            f"`classes` has {len(classes)} names but `class_counts` has {num_classes} classes."
        )
    output = _unwrap(output)
    if output.ndim == 1:
        if len(output) and _is_float(output):
            raise UserError(
                "`output` is a vector of floats; it must be (N, C) logits or (N,) integer classes."
            )
        target = _labels(target, num_classes, "target")
        pred = _labels(output, num_classes, "output")
        _check_lengths(len(pred), len(target), "output")
        correct, ece, nll = pred == target, None, None
    else:
        if output.ndim == 2 and output.shape[1] != num_classes:
            raise UserError(
                f"`output` has {output.shape[1]} columns but `class_counts` has {num_classes} "
                "classes."
            )
        pred, confidence, row_nll, correct = _read_rows(
            output, target, probabilities=probabilities, name="output"
        )
        target = _labels(target, num_classes, "target")
        ece = _calibration_error(confidence, correct, n_bins=15)
        nll = float(row_nll.mean())
    per_class = per_class_accuracy(pred, target, num_classes)
    groups = shot_groups(counts, few)
    return ShotReport(
        all=float(correct.double().mean()),
        balanced=float(per_class.nanmean()),
        **{name: _mean_or_none(per_class[mask]) for name, mask in groups.items()},
        group_sizes={name: int(mask.sum()) for name, mask in groups.items()},
        per_class=per_class.numpy(),
        per_class_total=torch.bincount(target, minlength=num_classes).numpy(),
        ece=ece,
        nll=nll,
        class_counts=counts.numpy(),
        classes=tuple(str(c) for c in classes) if classes is not None else None,
        few_rule=few,
        n_images=len(target),
    )


def mean_and_sd(
    reports: Sequence[ShotReport],
) -> dict[str, tuple[float, float | None] | None]:
    """Average the reports of several seeds.

    Args:
        reports: One report per seed, at least one, all with the same few-shot convention.

    Shape:
        The result maps all, balanced, many, medium, few, ece and nll to (mean, standard deviation).
        The deviation is that of a sample (divided by seeds - 1), None for a single seed. A value
        that some report does not have is None as a whole: a mean over the others would stand for
        other classes or other runs.

    Raises:
        UserError: If there is no report, or they use different conventions.
    """
    if not reports:
        raise UserError("`reports` is empty; the mean over seeds needs at least one report.")
    rules = sorted({r.few_rule for r in reports})
    if len(rules) > 1:
        raise UserError(f"`reports` mix the few-shot rules {' and '.join(rules)}; use one of them.")
    result = {}
    for name in _SUMMARY:
        values = [getattr(r, name) for r in reports]
        if any(v is None for v in values):
            result[name] = None
        else:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            result[name] = (float(np.mean(values)), sd)
    return result


def _read_rows(
    output: Any, target: Any, probabilities: bool, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return per image: predicted class, its probability, -log p of the true class, correctness."""
    output = _unwrap(output)
    if output.ndim != 2:
        raise UserError(f"`{name}` has shape {tuple(output.shape)}; it must be (N, C).")
    target = _labels(target, output.shape[1], "target")
    _check_lengths(len(output), len(target), name)
    tiny = torch.finfo(torch.float64).tiny
    kept = []
    for start, block in _float64_blocks(output):
        _check_finite(block, start, name)
        true = target[start : start + len(block), None]
        if probabilities:
            _check_distribution(block, start, name, half=_is_half(output))
            p = block
            nll = -p.gather(1, true).clamp(tiny, 1).log()
        else:
            # The largest logit is taken off first: the rest is at most 0 and exp cannot overflow.
            shifted = block - block.amax(1, keepdim=True)
            log_p = shifted - shifted.exp().sum(1, keepdim=True).log()
            p = log_p.exp()
            nll = -log_p.gather(1, true)
        # argmax of the numbers as given: rounding in softmax must not make a tie.
        pred = block.argmax(1)
        confidence = p.gather(1, pred[:, None]).clamp(max=1)
        kept.append((pred, confidence[:, 0], nll[:, 0]))
    pred, confidence, nll = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return pred, confidence, nll, pred == target


def _float64_blocks(output: Tensor | np.ndarray) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _BLOCK_NUMBERS // max(1, output.shape[1]))
    for start in range(0, len(output), step):
        block = output[start : start + step]
        if isinstance(block, np.ndarray):
            # A copy in any case: torch warns about the read-only pages of a memory-mapped file.
            yield start, torch.from_numpy(np.array(block, dtype=np.float64))
        else:
            yield start, block.cpu().double()


def _calibration_error(
    confidence: Tensor, correct: Tensor, n_bins: int, weights: Tensor | None = None
) -> float:
    inner_edges = torch.arange(1, n_bins, dtype=torch.float64) / n_bins
    bins = torch.bucketize(confidence, inner_edges)  # a bin is (lower, upper]
    gap = confidence - correct.double()
    if weights is not None:
        gap = gap * weights
    total = len(confidence) if weights is None else weights.sum()
    return float(torch.bincount(bins, weights=gap, minlength=n_bins).abs().sum() / total)


def _unwrap(values: Any) -> Tensor | np.ndarray:
    """Strip tensor subclasses (fastai's) and gradients; turn lists into arrays."""
    if isinstance(values, Tensor):
        return values.detach().as_subclass(Tensor)
    return np.asarray(values)


def _is_float(values: Tensor | np.ndarray) -> bool:
    if isinstance(values, Tensor):
        return values.is_floating_point()
    return values.dtype.kind not in "iub"


def _is_half(values: Tensor | np.ndarray) -> bool:
    return values.dtype in (torch.float16, torch.bfloat16, np.float16)


def _whole_numbers(values: Any, name: str) -> Tensor:
    """Read a vector of whole numbers as int64 on the CPU."""
    values = _unwrap(values)
    if isinstance(values, Tensor):
        values = values.cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    if values.ndim != 1:
        raise UserError(f"`{name}` has shape {tuple(values.shape)}; it must be a vector.")
    if values.dtype.kind not in "iubf" and len(values):
        raise UserError(f"`{name}` holds {values.dtype}; it must hold whole numbers.")
    if values.dtype.kind == "f" and len(values):
        bad = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values))))
        if len(bad):
            raise UserError(
                f"`{name}` is {values[bad[0]]} at index {bad[0]}; it must hold whole numbers."
            )
    return torch.from_numpy(values.astype(np.int64))


def _class_counts(class_counts: Any) -> Tensor:
    counts = _whole_numbers(class_counts, "class_counts")
    if not len(counts):
        raise UserError("`class_counts` is empty; it must hold one number per class.")
    if counts.min() < 0:
        c = int((counts < 0).nonzero()[0])
        raise UserError(f"`class_counts` is {int(counts[c])} for class {c}; it cannot be negative.")
    return counts


def _labels(values: Any, num_classes: int, name: str) -> Tensor:
    labels = _whole_numbers(values, name)
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise UserError(
            f"`{name}` is {int(labels[row])} in row {row}; with {num_classes} classes it must be "
            f"0 to {num_classes - 1}."
        )
    return labels


def _check_lengths(rows: int, labels: int, name: str, target: str = "target") -> None:
    if rows != labels:
        raise UserError(f"`{name}` has {rows} rows but `{target}` has {labels}.")
    if rows == 0:
        raise UserError(f"`{name}` is empty: there is no image to evaluate.")


def _check_finite(block: Tensor, start: int, name: str) -> None:
    # One sum tells whether all is well; which row is at fault matters only if it is not.
    if not math.isfinite(float(block.sum())):
        bad = (~block.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"`{name}` is {float(block[row, column])} in row {start + row}, column {column}; "
                "every number must be finite."
            )


def _check_distribution(block: Tensor, start: int, name: str, half: bool) -> None:
    total = block.sum(1)
    wrong = ((total - 1).abs() > (1e-2 if half else 1e-3)) | (block.amin(1) < 0)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"`{name}` row {start + row} sums to {float(total[row]):.4g} with smallest number "
            f"{float(block[row].min()):.4g}; probabilities must be at least 0 and sum to 1."
        )


def _check_few(few: str) -> None:
    if few not in FEW_RULES:
        allowed = " or ".join(f'"{rule}"' for rule in FEW_RULES)
        raise UserError(f"The few-shot rule `few` is {few!r}; it must be {allowed}.")


def _mean_or_none(per_class: Tensor) -> float | None:
    present = per_class[~per_class.isnan()]
    return float(present.mean()) if len(present) else None


def _json_number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f}"
