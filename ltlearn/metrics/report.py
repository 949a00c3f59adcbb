"""`ShotReport`: accuracy, precision, recall and F1 per shot group and class, and calibration."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ltlearn.errors import UserError, check_choice
from ltlearn.metrics.accuracy import per_class_accuracy
from ltlearn.metrics.calibration import calibration_error_of
from ltlearn.metrics.rows import (
    IntVector,
    Matrix,
    are_probabilities,
    check_lengths,
    is_float,
    read_labels,
    read_rows,
    unwrap,
)
from ltlearn.metrics.scores import ClassScores, GroupScores, class_scores
from ltlearn.metrics.shots import (
    SHOTS,
    read_class_counts,
    shot_groups,
    shot_thresholds_text,
)
from ltlearn.names import FEW_RULES, FIGURES
from ltlearn.utils.html import html_details, html_paragraph, html_table
from ltlearn.utils.text import DASH, percent_text

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["FEW_IMAGES", "GroupSize", "ShotReport", "mean_and_sd", "mean_and_sd_of", "shot_report"]

_log = logging.getLogger("ltlearn")
_MAX_CLASSES = 20  # that a notebook shows
_SUMMARY = (*FIGURES, "ece", "nll")
FEW_IMAGES = 30  # the accuracy of fewer images has a standard error of up to 9 points


@dataclass(frozen=True)
class GroupSize:
    """On how much the accuracy of a shot group rests.

    Args:
        classes: Number of classes with test images.
        images: Number of test images.
        step: The largest change of the group's accuracy by one image, from 0 to 1.
    """

    classes: int
    images: int
    step: float

    @property
    def is_small(self) -> bool:
        """Return whether the images are so few that a warning is due; an empty group needs none."""
        return 0 < self.images < FEW_IMAGES


@dataclass(frozen=True, eq=False)
class ShotReport:
    """The result on one test set; accuracies are fractions in [0, 1].

    Args:
        all: Top-1 accuracy over images.
        balanced: Mean of the per-class accuracies over the classes that have test images.
        many: The same mean over the many-shot classes; None if none of them has a test image.
        medium: The same for the medium-shot classes.
        few: The same for the few-shot classes.
        group_sizes: Number of classes in each group, with or without test images.
        per_class: Accuracy of each class; NaN for a class with no test image.
        per_class_total: Test images of each class.
        ece: Expected calibration error (15 bins), a fraction; None for a report from predictions.
        nll: Mean negative log-likelihood in nats; None for a report from predictions.
        class_counts: Training images of each class.
        classes: Class names, or None.
        few_rule: The few-shot rule, "<20" or "<=20".
        n_images: Number of test images.
        labels: The true class of each image, for `scores`; None for a report of older versions.
        predictions: The predicted class of each image, for `scores`; None as for labels.

    Shape:
        per_class, per_class_total and class_counts are NumPy arrays (C,), float64 and int64; labels
        and predictions are NumPy arrays (N,), int64.
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
    labels: np.ndarray | None = None
    predictions: np.ndarray | None = None

    # Computed on demand: the report of each epoch of a training does without.
    @cached_property
    def scores(self) -> ClassScores | None:
        """Return precision, recall and F1 of each class; None without labels and predictions."""
        if self.labels is None or self.predictions is None:
            return None
        return class_scores(self.labels, self.predictions, len(self.class_counts))

    @property
    def group_scores(self) -> dict[str, GroupScores | None]:
        """Return the mean precision, recall and F1 over all classes and over each shot group.

        The keys are all, many, medium and few. Each class that has test images has the same weight,
        so the recall of "all" is the balanced accuracy. An undefined precision counts as 0, see
        `ClassScores.mean`. A group without test images is None.
        """
        if self.scores is None:
            return dict.fromkeys(("all", *SHOTS))
        masks = shot_groups(self.class_counts, self.few_rule)
        means = {name: self.scores.mean(masks[name]) for name in SHOTS}
        return {"all": self.scores.mean(), **means}

    @property
    def groups(self) -> dict[str, GroupSize]:
        """Return on how many classes and test images each shot group rests."""
        masks = shot_groups(self.class_counts, self.few_rule)
        return {name: _group_size(self.per_class_total[masks[name].numpy()]) for name in SHOTS}

    def rows(self) -> list[dict[str, Any]]:
        """List the classes in label order, one JSON-ready dictionary each.

        The keys are label, name (None without names), shot, train_images, test_images, accuracy
        (None for a class with no test image), precision (None for a class that is never predicted),
        recall (the accuracy again) and f1 (see `ClassScores`).
        """
        unknown = np.full(len(self.class_counts), np.nan)
        scores = self.scores or ClassScores(unknown, unknown, unknown)
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
                "precision": _json_number(scores.precision[c]),
                "recall": _json_number(scores.recall[c]),
                "f1": _json_number(scores.f1[c]),
            }
            for c in range(len(self.class_counts))
        ]

    def to_frame(self) -> "DataFrame":
        """Return the table of `rows`, a row for each class in label order, as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.rows()).set_index("label")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, for a JSON file."""
        return {
            **{name: _json_number(getattr(self, name)) for name in _SUMMARY},
            "n_images": self.n_images,
            "few_rule": self.few_rule,
            "group_sizes": dict(self.group_sizes),
            "group_images": {name: group.images for name, group in self.groups.items()},
            "classes": list(self.classes) if self.classes is not None else None,
            "class_counts": [int(n) for n in self.class_counts],
            "per_class": [_json_number(a) for a in self.per_class],
            "per_class_total": [int(n) for n in self.per_class_total],
            "group_scores": {
                name: asdict(mean) if mean else None for name, mean in self.group_scores.items()
            },
        }

    def __repr__(self) -> str:
        """Return the figures in a line."""
        values = [f"{name} {percent_text(getattr(self, name))}" for name in FIGURES]
        known = [text for text in values if not text.endswith(DASH)]
        return f"ShotReport: {', '.join(known)} {self._about()}"

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows; the classes unfold at a click."""
        head = [f"{name} %" for name in FIGURES]
        row = [percent_text(getattr(self, name)) for name in FIGURES]
        if self.ece is not None:
            head, row = [*head, "ECE %", "NLL"], [*row, percent_text(self.ece), f"{self.nll:.3f}"]
        sizes = shot_thresholds_text(self.few_rule, self.group_sizes)
        return (
            html_table(head, [row], f"accuracy {self._about()}", left=0)
            + html_paragraph(f"shot groups by training images: {sizes}")
            + html_paragraph(". ".join([self.tested_text("evaluated images"), *self.warnings()]))
            + self._scores_html()
            + self._classes_html()
        )

    def _scores_html(self) -> str:
        cells = [
            [name, percent_text(mean.precision), percent_text(mean.recall), percent_text(mean.f1)]
            for name, mean in self.group_scores.items()
            if mean is not None
        ]
        head = ["classes", "precision %", "recall %", "F1 %"]
        summary = "precision, recall and F1, each class with the same weight"
        return html_details(summary, html_table(head, cells)) if cells else ""

    def _classes_html(self) -> str:
        rows = sorted(self.rows(), key=lambda row: -row["train_images"])
        summary = "accuracy of each class"
        if len(rows) > _MAX_CLASSES:
            tested = [row for row in rows if row["accuracy"] is not None]
            rows = sorted(tested, key=lambda row: row["accuracy"])[:_MAX_CLASSES]
            summary = f"the {len(rows)} classes with the lowest accuracy; rows() has all of them"
        cells = [
            [
                f"class {row['label']}" if row["name"] is None else row["name"], row["shot"],
                f"{row['train_images']:,}", f"{row['test_images']:,}",
                *(percent_text(row[name]) for name in ("accuracy", "precision", "f1")),
            ]
            for row in rows
        ]  # fmt: skip
        head = ["class", "group", "training images", "evaluated images", "accuracy %"]
        head += ["precision %", "F1 %"]
        return html_details(summary, html_table(head, cells, left=2))

    def __str__(self) -> str:
        """Write a few lines of plain text, accuracies in % to one decimal, no value as a dash."""
        lines = [f"{name:<9}{percent_text(getattr(self, name)):>6}" for name in FIGURES]
        if self.ece is not None:
            lines.append(f"{'ECE':<9}{percent_text(self.ece):>6}")
            lines.append(f"{'NLL':<9}{self.nll:>6.3f}")
        about = self._about()
        if self.ece is not None:
            about += "; NLL in nats"
        sizes = shot_thresholds_text(self.few_rule, self.group_sizes)
        lines += [
            about,
            self.tested_text("evaluated images"),
            *self.warnings(),
            f"training images: {sizes}",
        ]
        return "\n".join(lines)

    def _about(self) -> str:
        missing = int((self.per_class_total == 0).sum())
        images = "image" if self.n_images == 1 else "images"
        about = f"in % over {self.n_images:,} {images}, {len(self.per_class):,} classes"
        if missing:
            about += f", {missing:,} of them without an image (left out of the means)"
        return about

    def tested_text(self, images: str = "test images") -> str:
        """Describe on how many images and classes each group rests.

        Args:
            images: The name of the images.
        """
        parts = [
            f"{name} {g.images:,} in {g.classes:,} class{'' if g.classes == 1 else 'es'}"
            for name, g in self.groups.items()
            if g.images
        ]
        return f"{images}: {', '.join(parts)}"

    def warnings(self) -> list[str]:
        """Return a sentence for each group whose accuracy rests on few images."""
        return [
            f"caution: {name} rests on {g.images} image{'' if g.images == 1 else 's'}; one image "
            f"can change its accuracy by {100 * g.step:.1f} points"
            for name, g in self.groups.items()
            if g.is_small
        ]


def shot_report(
    output: Matrix | IntVector,
    target: IntVector,
    class_counts: IntVector,
    *,
    classes: Sequence[str] | None = None,
    few: str = "<20",
    probabilities: bool | None = None,
) -> ShotReport:
    """Evaluate a classifier: accuracy over all images, per class and shot group, and calibration.

    Args:
        output: Logits, or predicted classes; a tensor on any device, or an array.
        target: The true classes.
        class_counts: Training images per class, which define the shot groups.
        classes: Class names in label order.
        few: The few-shot rule, "<20" or "<=20" (see `shot_groups`).
        probabilities: Whether output holds probabilities instead of logits, as fastai's `get_preds`
            gives them. None: if all rows are at least 0 and sum to 1.

    Shape:
        output is (N, C), logits or probabilities, or (N,), integer predictions; target is (N,),
        integer; class_counts is (C,). A group's accuracy is the mean of its per-class accuracies.

    Raises:
        UserError: If there is no image, the shapes differ, a label or a prediction is outside
            0..C-1, a row is not finite (or, with `probabilities`, no distribution), or `few` is not
            allowed.

    Example:
        >>> logits, target = 9 * torch.eye(3), torch.tensor([0, 1, 1])
        >>> report = shot_report(logits, target, class_counts=[500, 50, 5])
        >>> report.many, report.medium, report.few
        (1.0, 0.5, None)
    """
    check_choice("few", few, FEW_RULES)
    counts = read_class_counts(class_counts)
    num_classes = len(counts)
    if classes is not None and len(classes) != num_classes:
        raise UserError(
            f"classes has {len(classes)} names but class_counts has {num_classes} classes."
        )
    rows = unwrap(output)
    if rows.ndim == 1:
        if len(rows) and is_float(rows):
            raise UserError(
                "output is a vector of floats; it must be (N, C) logits or (N,) integer classes."
            )
        true = read_labels(target, num_classes, "target")
        pred = read_labels(rows, num_classes, "output")
        check_lengths(len(pred), len(true), "output")
        correct, ece, nll = pred == true, None, None
    else:
        if rows.ndim == 2 and rows.shape[1] != num_classes:
            raise UserError(
                f"output has {rows.shape[1]} columns but class_counts has {num_classes} classes."
            )
        if probabilities is None and (probabilities := are_probabilities(rows)):
            _log.info(
                "output holds probabilities: its rows are at least 0 and sum to 1; pass "
                "probabilities=False if they are logits"
            )
        pred, confidence, row_nll, correct = read_rows(
            rows, target, probabilities=bool(probabilities), name="output"
        )
        true = read_labels(target, num_classes, "target")
        ece = calibration_error_of(confidence, correct, n_bins=15)
        nll = float(row_nll.mean())
    per_class = per_class_accuracy(pred, true, num_classes)
    groups = shot_groups(counts, few)
    return ShotReport(
        all=float(correct.double().mean()),
        balanced=float(per_class.nanmean()),
        **{name: _mean_or_none(per_class[mask]) for name, mask in groups.items()},
        group_sizes={name: int(mask.sum()) for name, mask in groups.items()},
        per_class=per_class.numpy(),
        per_class_total=torch.bincount(true, minlength=num_classes).numpy(),
        ece=ece,
        nll=nll,
        class_counts=counts.numpy(),
        classes=tuple(str(c) for c in classes) if classes is not None else None,
        few_rule=few,
        n_images=len(true),
        labels=true.numpy(),
        predictions=pred.numpy(),
    )


def mean_and_sd(
    reports: Sequence[ShotReport],
) -> dict[str, tuple[float, float | None] | None]:
    """Average the reports of several seeds.

    Args:
        reports: One report per seed, at least one, all with the same few-shot rule.

    Shape:
        The result maps all, balanced, many, medium, few, ece and nll to (mean, standard deviation).
        The deviation is the sample's (divided by seeds - 1), None for a single seed. A value that
        one report lacks is None: a mean over the other reports would not be comparable.

    Raises:
        UserError: If there is no report, or they use different few-shot rules.
    """
    if not reports:
        raise UserError("reports is empty; the mean over seeds needs at least one report.")
    rules = sorted({r.few_rule for r in reports})
    if len(rules) > 1:
        raise UserError(f"reports mix the few-shot rules {' and '.join(rules)}; use one of them.")
    result: dict[str, tuple[float, float | None] | None] = {}
    for name in _SUMMARY:
        values = [getattr(r, name) for r in reports]
        if any(v is None for v in values):
            result[name] = None
        else:
            result[name] = mean_and_sd_of(values)
    return result


def mean_and_sd_of(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation of a sample; no deviation of a single value.

    Args:
        values: At least one number.
    """
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), sd


def _group_size(images: np.ndarray) -> GroupSize:
    tested = images[images > 0]
    step = 1 / (len(tested) * int(tested.min())) if len(tested) else 0.0
    return GroupSize(len(tested), int(tested.sum()), step)


def _mean_or_none(per_class: Tensor) -> float | None:
    present = per_class[~per_class.isnan()]
    return float(present.mean()) if len(present) else None


def _json_number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
