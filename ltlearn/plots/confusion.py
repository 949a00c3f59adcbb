"""The confusion matrix of all classes, or of the rarest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.metrics.rows import IntVector, check_lengths, read_labels
from ltlearn.plots.style import INK, MAX_NAMED_CLASSES, new_figure, shorten, sort_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_confusion"]

_RAREST = 15  # of more classes than have a row each


def plot_confusion(
    target: IntVector,
    predicted: IntVector,
    class_counts: IntVector,
    classes: Sequence[str] | None = None,
    label: str = "",
    few: str = "<20",
) -> "Figure":
    """Draw which classes are taken for which, in % of the images of the true class.

    Up to 20 classes have a row and a column each, the most frequent first. Of more classes, the 15
    with the fewest training images do, among those that have images; the other classes share a row
    and a column.

    Args:
        target: The true classes.
        predicted: The predicted classes.
        class_counts: Training images per class, which define the order.
        classes: Class names in label order.
        label: The name of the classifier.
        few: The few-shot rule, "<20" or "<=20".

    Shape:
        target and predicted are (N,), class_counts is (C,).

    Raises:
        UserError: If the lengths differ, or a label is outside 0 to C - 1.

    Example:
        >>> figure = plot_confusion([0, 0, 1], [0, 1, 1], class_counts=[500, 5])
        >>> figure.savefig("confusion.png")
    """
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    counts, _, order = sort_classes(class_counts, classes, few)
    true = read_labels(target, len(counts), "target").numpy()
    found = read_labels(predicted, len(counts), "predicted").numpy()
    check_lengths(len(found), len(true), "predicted")
    shown, other = _shown_classes(true, order), len(counts)
    rarest = ""
    names = [shorten(classes[c]) if classes is not None else f"class {c}" for c in shown]
    if len(shown) < len(counts):
        rarest = f"; the {len(shown)} rarest classes"
        true, found = (np.where(np.isin(v, shown), v, other) for v in (true, found))
        shown, names = [other, *shown], [f"{len(counts) - len(shown):,} other classes", *names]
    matrix = 100 * confusion_matrix(true, found, labels=shown, normalize="true")
    numbered = [
        name if c == other else f"{name} ({counts[c]:,}){'' if c in true else ', no image'}"
        for name, c in zip(names, shown, strict=True)
    ]
    side = 2.2 + 0.34 * len(shown)
    figure, axes = new_figure(side + 1.2, side)
    ConfusionMatrixDisplay(matrix, display_labels=names).plot(
        ax=axes, cmap="Blues", values_format=".0f", colorbar=False, xticks_rotation="vertical",
        im_kw={"vmin": 0, "vmax": 100}, text_kw={"fontsize": 7},
    )  # fmt: skip
    axes.set_yticklabels(numbered)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class (training images)", fontsize=9)
    title = f"{shorten(label)}: " if label else ""
    axes.set_title(
        f"{title}% of the true class's images{rarest}", fontsize=10, loc="left", color=INK
    )
    return figure


def _shown_classes(true: np.ndarray, order: np.ndarray) -> list[int]:
    """Return the classes that have a row of their own, most frequent first."""
    if len(order) <= MAX_NAMED_CLASSES:
        return order.tolist()
    return order[np.isin(order, true)][-_RAREST:].tolist()
