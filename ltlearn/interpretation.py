"""Interpretation of a learner: top losses, confusion and scores by shot group."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.load import DataLoader
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastcore.basics import noop
from torch import Tensor

from ltlearn.data.needs_images import needs_images
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.metrics.report import ShotReport, shot_report
from ltlearn.names import PARTS, SHOTS
from ltlearn.plots.confusion_map import CONFUSION_ORDERS, plot_confusion_map
from ltlearn.plots.style import INK, shorten
from ltlearn.reporting.scores import ScoreTable, class_score_table
from ltlearn.utils.text import clean, percent_text

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ConfusedPairs", "InterpretMixin", "LTInterpretation", "Outcomes"]

_SHOWN_PAIRS = 20
# Arguments of fastai's plot, which draws the classes in the order of their labels.
_ORDERS = (*CONFUSION_ORDERS, "label")


@dataclass(frozen=True)
class Outcomes:
    """What a learner predicts for each image.

    Args:
        targets: The true classes.
        predictions: The predicted classes.
        confidence: The probability of the predicted class.

    Shape:
        Each is a tensor (N,) on the CPU, int64 or float32.
    """

    targets: Tensor
    predictions: Tensor
    confidence: Tensor


class _GatherOutcomes(Callback):
    """Keep the predicted class and its probability, not all (N, C) probabilities."""

    order = 80  # the prediction is complete

    def __init__(self, act):
        self.act, self.kept = act, []

    def after_batch(self):
        loss = self.learn.loss_func
        act = self.act if self.act is not None else getattr(loss, "activation", noop)
        preds = act(self.learn.pred.detach())
        classes = loss.decodes(preds)
        confidence = preds.gather(1, classes[:, None])[:, 0]
        batch = (self.learn.yb[0], classes, confidence.float())
        self.kept.append([values.as_subclass(Tensor).cpu() for values in batch])

    def outcomes(self) -> Outcomes:
        return Outcomes(*(torch.cat(values) for values in zip(*self.kept, strict=True)))


class ConfusedPairs(list):
    """Pairs of classes that are mistaken: (true class, predicted class, number of images).

    It is a list like fastai's, and shows itself as a table with the shot groups.

    Args:
        pairs: The pairs, most frequent first.
        report: The report of the images, with class names.
        labels: The numbers of both classes of each pair. None: by their names, which must differ.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str, int]],
        report: ShotReport,
        labels: Sequence[tuple[int, int]] | None = None,
    ):
        super().__init__(pairs)
        self._classes = report.rows()
        if labels is None:
            number = {row["name"]: i for i, row in enumerate(self._classes)}
            labels = [(number[a], number[b]) for a, b, _ in pairs]
        self._labels = labels

    def rows(self) -> list[dict[str, Any]]:
        """List the pairs, one dictionary each.

        The keys are true, true_shot, true_train_images, predicted, predicted_shot,
        predicted_train_images, images, and share: the share of the true class's images.
        """
        rows = []
        for (true, predicted, images), labels in zip(self, self._labels, strict=True):
            row: dict[str, Any] = {}
            abouts = [self._classes[label] for label in labels]
            names = ("true", "predicted"), (true, predicted), abouts
            for part, name, about in zip(*names, strict=True):
                row |= {part: name, f"{part}_shot": about["shot"]}
                row[f"{part}_train_images"] = about["train_images"]
            share = images / abouts[0]["test_images"]
            rows.append({**row, "images": images, "share": share})
        return rows

    def to_frame(self) -> "DataFrame":
        """Return the table of `rows` as a pandas frame."""
        import pandas as pd

        columns = ("true", "predicted")
        names = [f"{c}{end}" for c in columns for end in ("", "_shot", "_train_images")]
        return pd.DataFrame(self.rows(), columns=[*names, "images", "share"])

    def __str__(self) -> str:
        """Return the first 20 pairs as plain text."""
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table().to_html()

    def _table(self) -> ScoreTable:
        rows = [
            [
                f"{clean(row['true'])} ({row['true_shot']}, {row['true_train_images']:,})",
                f"{clean(row['predicted'])} ({row['predicted_shot']}, "
                f"{row['predicted_train_images']:,})",
                f"{row['images']:,}", percent_text(row["share"]),
            ]
            for row in self.rows()[:_SHOWN_PAIRS]
        ]  # fmt: skip
        more = f"the first {_SHOWN_PAIRS} of {len(self):,} pairs; to_frame() has all of them"
        return ScoreTable(
            ["true class", "predicted class", "images", "% of the true class"], rows, texts=2,
            about=more if len(self) > _SHOWN_PAIRS else "",
        )  # fmt: skip


class LTInterpretation(ClassificationInterpretation):
    """fastai's interpretation with shot groups; `LTInterpretation.from_learner` makes one.

    It keeps the label, the prediction, its probability and the loss of each image. Images that are
    shown are read again. All methods of fastai's `ClassificationInterpretation` work.

    Args:
        learn: The learner.
        dl: The loader of the images, with labels.
        losses: The loss of each image.
        act: Activation of the predictions. None: the loss's.
        outcomes: What the learner predicts for each image. None: it is computed.

    Raises:
        UserError: If the learner has no `LTDataLoaders`, or the images have no labels.

    Example:
        >>> found = LTInterpretation.from_learner(learn)
        >>> found.plot_top_losses(4, by="group")
        >>> print(found.most_confused(min_val=2, tail=True))
    """

    def __init__(
        self,
        learn: Learner,
        dl: DataLoader,
        losses: Tensor,
        act=None,
        outcomes: Outcomes | None = None,
    ):
        super().__init__(learn, dl, losses, act)
        self.outcomes = _run(learn, dl, act)[0] if outcomes is None else outcomes

    @classmethod
    def from_learner(
        cls, learn: Learner, ds_idx: int = 1, dl=None, act=None, *, part: str | None = None
    ) -> "LTInterpretation":
        """Predict images and compute their losses.

        Args:
            learn: The learner.
            ds_idx: Number of the loader: 0 for training, 1 for validation, 2 for test.
            dl: A loader with labels, such as `dls.test_dl(images, with_labels=True)`.
            act: Activation of the predictions. None: the loss's.
            part: "train", "valid" or "test" in place of `ds_idx`.

        Raises:
            UserError: If there is no such part, the images have no labels, or the learner has no
                `LTDataLoaders`.
        """
        if part is not None:
            check_choice("part", part, PARTS)
            ds_idx = PARTS.index(part)
        if not hasattr(learn.dls, "shot_counts"):
            raise UserError(
                f"the loaders of learn are {type(learn.dls).__name__}, which do not count the "
                "images of each class; make them by LTDataLoaders."
            )
        if dl is None:
            if ds_idx >= len(learn.dls.loaders):
                raise UserError(
                    f"there is no {f'{part} part' if part else f'loader {ds_idx}'}: the data has "
                    f"{len(learn.dls.loaders)} parts."
                )
            dl = learn.dls[ds_idx]
        dl = dl.new(shuffle=False)
        if not dl.n:
            raise UserError("the loader has no images; give others by dl=.")
        if dl.dataset.targets is None:
            raise UserError(
                "the images of dl have no labels; make it by dls.test_dl(..., with_labels=True)."
            )
        outcomes, losses = _run(learn, dl, act)
        return cls(learn, dl, losses, act, outcomes)

    @cached_property
    def report(self) -> ShotReport:
        """Return the report of the predictions; it has no calibration."""
        dls = self.learn.dls
        return shot_report(
            self.outcomes.predictions, self.outcomes.targets, dls.shot_counts, classes=dls.vocab,
            few=getattr(self.learn, "few", "<20"),
        )  # fmt: skip

    @property
    def shots(self) -> np.ndarray:
        """Return the shot group of each image, by its true class, (N,)."""
        names = np.array([row["shot"] for row in self.report.rows()])
        return names[self.outcomes.targets.numpy()]

    def top_losses(
        self,
        k: int | None = None,
        largest: bool = True,
        items: bool = False,
        *,
        group: str | None = None,
    ) -> tuple:
        """Return the largest losses and the numbers of their images, as fastai does.

        Args:
            k: Number of images, at least 1. None, or more than there are: all.
            largest: Whether to return the largest losses instead of the smallest.
            items: Whether to return the items, too.
            group: "many", "medium" or "few" for the images of its classes alone. None: all.
        """
        number = len(self.losses)
        if k is not None:
            check_whole("k", k, 1)
        if group is None:
            return super().top_losses(min(number if k is None else k, number), largest, items)
        check_choice("group", group, SHOTS)
        own = torch.from_numpy(np.flatnonzero(self.shots == group))
        k = len(own) if k is None else min(k, len(own))
        losses, places = self.losses[own].topk(k, largest=largest)
        index = own[places]
        if not items:
            return losses, index
        every = self.dl.items
        return losses, index, [every[i] for i in index.tolist()]

    @needs_images
    def plot_top_losses(
        self,
        k: Any,
        largest: bool = True,
        *,
        by: str | None = None,
        group: str | None = None,
        figsize: tuple[float, float] | None = None,
        **kwargs,
    ) -> None:
        """Show the images with the largest losses.

        Args:
            k: Number of images, of each group with by="group"; or their places in the order of the
                losses, without `by` and `group`.
            largest: Whether to show the largest losses instead of the smallest.
            by: "group" shows a row of images for each shot group. None: as fastai does.
            group: "many", "medium" or "few" for the images of its classes alone. None: all.
            figsize: Width and height in inches.
            **kwargs: For fastai's `plot_top_losses`, such as `nrows`.

        Raises:
            UserError: If `by` or `group` is unknown, or both are given.
        """
        if by is None and group is None:
            super().plot_top_losses(k, largest, figsize=figsize, **kwargs)
            return
        if by is not None:
            check_choice("by", by, ("group",))
            if group is not None:
                raise UserError(f"by is {by!r} and group is {group!r}; give one of them.")
        check_whole("k", k, 1)
        names = SHOTS if group is None else (group,)
        rows = {name: self.top_losses(k, largest, group=name) for name in names}
        rows = {name: found for name, found in rows.items() if len(found[0])}
        if not rows:
            raise UserError(f"there is no image of the group {group!r}.")
        self._draw_rows(rows, figsize, **kwargs)

    def _draw_rows(self, rows: dict[str, tuple], figsize, **kwargs) -> None:
        from matplotlib import pyplot as plt

        columns = max(len(losses) for losses, _ in rows.values())
        figsize = figsize or (0.5 + 1.9 * columns, 0.4 + 2.5 * len(rows))
        figure = plt.figure(figsize=figsize, layout="constrained")
        figure.suptitle("predicted class (its probability)", fontsize=9, color=INK)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, (name, (losses, index)) in zip(grid, rows.items(), strict=True):
            inputs, _, targets, *_ = self[index]
            samples = self.dl.decode_batch((inputs, targets), max_n=len(index))
            for one in axes:
                one.set_axis_off()
            for one, sample, loss, i in zip(axes, samples, losses, index.tolist(), strict=False):
                sample[0].show(ctx=one, **kwargs)
                one.set_title(self._title(i, float(loss)), fontsize=8, color=INK)
            axes[0].text(
                -0.06, 0.5, name, rotation=90, ha="right", va="center",
                transform=axes[0].transAxes, fontsize=10, color=INK,
            )  # fmt: skip

    def _title(self, i: int, loss: float) -> str:
        vocab, found = self.learn.dls.vocab, self.outcomes
        predicted, true = (
            shorten(vocab[int(values[i])]) for values in (found.predictions, found.targets)
        )
        return f"{predicted} ({found.confidence[i]:.2f})\ntrue: {true}\nloss {loss:.2f}"

    def confusion_matrix(self) -> np.ndarray:
        """Return the number of images of each true class (row) and predicted class (column).

        Shape:
            (C, C), int64, in label order.
        """
        from sklearn.metrics import confusion_matrix

        labels = np.arange(len(self.learn.dls.vocab))
        return confusion_matrix(self.outcomes.targets, self.outcomes.predictions, labels=labels)

    def plot_confusion_matrix(
        self,
        normalize: bool | None = None,
        title: str = "",
        cmap: str = "Blues",
        norm_dec: int = 2,
        plot_txt: bool = True,
        *,
        by: str = "frequency",
        **kwargs,
    ) -> None:
        """Draw the confusion matrix, for any number of classes.

        Args:
            normalize: Whether to draw shares of the true class's images. None: shares, or numbers
                with by="label".
            title: The title.
            cmap: A colour map of matplotlib.
            norm_dec: Decimal places of a share with by="label".
            plot_txt: Whether to write the numbers with by="label".
            by: "frequency" draws the most frequent class first, with lines between the shot groups.
                "group" draws the shot groups. "label" is fastai's plot, for few classes.
            **kwargs: For `plt.figure`, such as `figsize`.

        Raises:
            UserError: If `by` is unknown.
        """
        from matplotlib import pyplot as plt

        check_choice("by", by, _ORDERS)
        if by == "label":
            super().plot_confusion_matrix(
                bool(normalize), title or "Confusion matrix", cmap, norm_dec, plot_txt, **kwargs
            )
            return
        number = len(SHOTS) if by == "group" else min(len(self.learn.dls.vocab), 20)
        side = 2.4 + 0.3 * number
        figure = plt.figure(**{"figsize": (side + 0.6, side), **kwargs})
        plot_confusion_map(
            self.outcomes.targets, self.outcomes.predictions, self.learn.dls.shot_counts,
            self.learn.dls.vocab, by=by, few=self.report.few_rule,
            normalize=normalize is None or normalize, title=title, cmap=cmap, figure=figure,
        )  # fmt: skip

    def most_confused(self, min_val: int = 1, *, tail: bool = False) -> ConfusedPairs:
        """List the pairs of classes that are mistaken most often, as fastai does.

        Args:
            min_val: Fewest images of a pair, at least 1.
            tail: Whether to list only images of few-shot classes. If none of them has an image,
                the next rarest shot group with images takes their place.

        Returns:
            A list of (true class, predicted class, number of images) that shows itself as a table.
        """
        check_whole("min_val", min_val, 1)
        true, found = self.outcomes.targets.numpy(), self.outcomes.predictions.numpy()
        kept = true != found
        if tail:
            shots = self.shots
            kept &= shots == next(name for name in reversed(SHOTS) if (shots == name).any())
        pairs = np.stack([true[kept], found[kept]], 1)
        # Pairs that occur, not a C x C matrix, which would take 500 MB for 8,000 classes.
        pairs, numbers = np.unique(pairs, axis=0, return_counts=True)
        vocab = self.learn.dls.vocab
        frequent = numbers >= min_val
        listed = list(zip(pairs[frequent].tolist(), numbers[frequent].tolist(), strict=True))
        listed.sort(key=itemgetter(1), reverse=True)
        named = [(vocab[a], vocab[b], n) for (a, b), n in listed]
        # By number, because two classes may have the same name.
        return ConfusedPairs(named, self.report, [pair for pair, _ in listed])

    def classification_report(self) -> ScoreTable:
        """Return precision, recall and F1 of each class and of each shot group."""
        return class_score_table(self.report)


class InterpretMixin:
    """The method by which a learner is interpreted."""

    def interpret(self, part: str = "valid", dl=None) -> LTInterpretation:
        """Show where the classifier is wrong: top losses, confusion, scores by shot group.

        Args:
            part: "train", "valid" or "test".
            dl: A loader with labels in place of a part.

        Raises:
            UserError: If there is no such part, or the images have no labels.

        Example:
            >>> learn.interpret().plot_top_losses(4, by="group")
        """
        return LTInterpretation.from_learner(self, dl=dl, part=part)


def _run(learn: Learner, dl: DataLoader, act) -> tuple[Outcomes, Tensor]:
    """Return what the learner predicts for the images of a loader, and their losses."""
    gather = _GatherOutcomes(act)
    with_nothing = {"with_input": False, "with_preds": False, "with_targs": False}
    _, _, losses = learn.get_preds(
        dl=dl, with_loss=True, with_decoded=False, act=act, cbs=[gather], **with_nothing
    )
    return gather.outcomes(), losses
