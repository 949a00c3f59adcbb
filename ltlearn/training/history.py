"""The figures of a fit, epoch by epoch, and the weights of its best epoch."""

import logging
import math
import time
from contextlib import nullcontext

import torch
from fastai.callback.core import Callback
from fastai.learner import ValueMetric
from fastcore.basics import noop
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.metrics.report import shot_report
from ltlearn.models.backbone import find_head
from ltlearn.names import FIGURES
from ltlearn.training.records import TrajectoryRecord
from ltlearn.training.resident_form import ResidentForm, ResidentStep

__all__ = [
    "head_norms",
    "chosen_classes",
    "FlipAverage",
    "Trajectory",
    "find_trajectory",
]

_log = logging.getLogger("ltlearn")


@torch.no_grad()
def head_norms(model: nn.Module) -> Tensor:
    """Return the weight norm of each class, (C,), float32 on the CPU.

    Args:
        model: A model that ends in an `nn.Linear` or a head of ltlearn.
    """
    head = find_head(model)[1]
    norms = head.weight.float().norm(dim=1) if isinstance(head, nn.Linear) else head.norms()
    return norms.detach().float().cpu()


def chosen_classes(logits: Tensor) -> Tensor:
    """Return the most probable class of each row of logits, or -1 if the row is not finite.

    `Trajectory` collects classes instead of logits, because with thousands of classes the logits
    of a validation set take more memory than its features.

    Args:
        logits: The logits.

    Shape:
        logits is (N, C); the result is (N,), int64, on the same device.
    """
    return torch.where(logits.isfinite().all(1), logits.float().argmax(1), -1)


class FlipAverage(Callback):
    """Validate on the mean logits of each image and its mirror image.

    The authors of SAMN report all their figures this way.

    Reads `learn.xb`. Writes `learn.pred` outside training.

    Example:
        >>> learn.fit(10, 0.1, cbs=FlipAverage())
    """

    # Before callbacks that read the predictions.
    order = -8
    run_train = False

    def after_pred(self):
        """Average the logits with those of the mirror image."""
        if not self.learn.training:
            # An LTLearner runs its model in autocast, but not this event.
            with getattr(self.learn, "autocast_context", nullcontext)():
                mirrored = self.learn.model(self.learn.xb[0].flip(-1))
            mirrored = mirrored.to(self.learn.pred.dtype)
            # On several devices, a rank has the logits of all rows, but only the images of its own.
            mirrored = getattr(self.learn, "whole_batch", noop)(mirrored)
            self.learn.pred = (self.learn.pred + mirrored) / 2


class Trajectory(Callback):
    """Evaluate before the first step (epoch 0) and after every epoch; keep the best weights.

    Reads predictions and targets of the validation loader. Changes nothing in the Learner. `record`
    is a `TrajectoryRecord`, and `best_state` the weights of the chosen epoch.

    Args:
        shot_counts: Images per class, which decide many, medium and few.
        few: Rule of the few-shot classes, "<20" or "<=20".
        select: "best" chooses the epoch with the highest class-balanced accuracy on the validation
            loader, epoch 0 included, and the first of equal epochs; "last" chooses the last.
        select_on: Content of the validation loader, for the record: "validation" or "test".
        start: Whether to evaluate before the first step, too.
        predict: Returns (logits, targets) of the validation loader, or (classes, targets) with the
            result of `chosen_classes`; for the evaluation before the first step.
        stage: Name of the training in messages.
        norms: Returns the weight norm of each class, (C,), for the model that is trained.

    Raises:
        UserError: In a fit, if the logits are not finite.
    """

    # After callbacks that change the model in before_fit or the predictions in after_pred.
    order = 70

    def __init__(
        self,
        shot_counts,
        few="<20",
        select="best",
        select_on="validation",
        start=True,
        predict=None,
        stage="training",
        norms=head_norms,
    ):
        self.shot_counts, self.few, self.start, self.predict = shot_counts, few, start, predict
        self.select, self.select_on, self.stage = select, select_on, stage
        self.norms = norms
        self.record = TrajectoryRecord(select_on=select_on, select=select)
        self.best_state: dict[str, Tensor] | None = None
        self._best = -1.0

    def before_fit(self):
        """Evaluate the weights before the first step."""
        self._began = time.perf_counter()
        if self.start:
            self._add(0, None, *self.predict())
            self._log_epoch()

    def as_metrics(self) -> list[ValueMetric]:
        """Return the figures as fastai metrics, for the columns of its `Recorder` and loggers.

        Each figure is computed once. A group without a class is NaN.
        """
        return [ValueMetric(lambda key=key: self._figure(key), key) for key in FIGURES]

    def last(self) -> dict | None:
        """Return the last row of the record without the norms; None if there is no row."""
        if not self.record.epoch:
            return None
        return {k: v[-1] for k, v in self.record.items() if isinstance(v, list) and k != "norms"}

    def running_loss(self) -> float | None:
        """Return the mean training loss of this epoch so far; this waits for the device."""
        return float(self._loss / self._seen) if self._seen else None

    def before_train(self):
        """Begin to collect the training loss."""
        self._loss, self._seen = 0.0, 0

    # A batch that is cancelled before the next two events does not count. The collected values
    # stay on the device, so that no step waits for it.

    def after_pred(self):
        """Collect the predictions, in validation."""
        if not self.learn.training:
            self._chosen.append(chosen_classes(self.learn.pred.detach()))
            self._targets.append(self.learn.yb[0])

    def after_loss(self):
        """Collect the loss, in training."""
        if self.learn.training:
            n = len(self.learn.yb[0])
            self._loss, self._seen = self._loss + self.learn.loss.detach() * n, self._seen + n

    def after_steps(self, losses: list[float], images: list[int]) -> None:
        """Collect the losses of several steps.

        Args:
            losses: The loss of each step.
            images: The size of each batch.
        """
        for loss, n in zip(losses, images, strict=True):
            self._loss, self._seen = self._loss + loss * n, self._seen + n

    def resident_form(self) -> "_LossSum":
        """Return the form that collects the loss in steps without events."""
        return _LossSum(self)

    def set_loss_sum(self, loss: Tensor, images: int) -> None:
        """Set the training loss of this epoch so far.

        Args:
            loss: The sum over the images, a scalar.
            images: The number of images.
        """
        self._loss, self._seen = loss, images

    def before_validate(self):
        """Begin to collect predictions."""
        self._chosen, self._targets = [], []

    def after_cancel_validate(self):
        """Drop a cancelled validation, whose figures would not be comparable."""
        self._chosen, self._targets = [], []

    def after_validate(self):
        """Evaluate the epoch."""
        self._evaluate()

    def _figure(self, key: str) -> float:
        # The Recorder reads in `after_validate`, before this callback's turn.
        self._evaluate()
        last = self.last()
        is_current = last is not None and last["epoch"] == self.learn.epoch + 1
        return last[key] if is_current and last[key] is not None else math.nan

    def _evaluate(self) -> None:
        """Evaluate the epoch, once."""
        if not self._chosen or not hasattr(self, "_seen"):
            return
        chosen, targets = torch.cat(self._chosen), torch.cat(self._targets)
        self._chosen, self._targets = [], []
        self._add(self.learn.epoch + 1, self.running_loss(), chosen, targets)
        self._log_epoch()

    def state_dict(self) -> dict:
        """Return record, best weights and seconds so far, for a checkpoint."""
        norms = torch.tensor(self.record.norms, dtype=torch.float64)
        return {
            "record": {**self.record, "norms": norms},
            "best": self._best,
            "best_state": self.best_state,
            "seconds": time.perf_counter() - self._began,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the record of a stopped fit."""
        record, norms = dict(state["record"]), state["record"]["norms"]
        if record.keys() != self.record.keys():
            raise ValueError("the record has other columns")
        if norms.numel() != len(record["epoch"]) * len(self.shot_counts):
            raise ValueError("the norms in the record belong to another classifier")
        record["norms"] = norms.tolist()
        best = state["best_state"]
        if best is not None:
            like = self.learn.model.state_dict()
            if best.keys() != like.keys() or any(v.shape != like[k].shape for k, v in best.items()):
                raise ValueError("the best weights belong to another model")
            best = {k: v.to(like[k].device) for k, v in best.items()}
        self.record = TrajectoryRecord.from_dict(record)
        self.best_state, self._best = best, state["best"]
        self._began = time.perf_counter() - state["seconds"]

    def _add(self, epoch: int, loss: float | None, output: Tensor, targets: Tensor) -> None:
        chosen = chosen_classes(output) if output.ndim == 2 else output
        if (chosen < 0).any():
            raise UserError(
                f"training diverged in epoch {epoch} of {self.stage}: the logits are no longer "
                "finite; lower the learning rate."
                if epoch
                else f"the logits are not finite before the first step of {self.stage}: the "
                "weights are damaged or an earlier training diverged; train again with a lower "
                "learning rate."
            )
        report = shot_report(chosen, targets, self.shot_counts, few=self.few)
        row = {"epoch": epoch, "loss": loss, "seconds": time.perf_counter() - self._began}
        row |= {k: getattr(report, k) for k in FIGURES}
        row["norms"] = self.norms(self.learn.model).tolist()
        for key, value in row.items():
            self.record[key].append(value)
        if self.select == "last" or report.balanced > self._best:
            self._best, self.record.chosen = report.balanced, epoch
            if self.select == "best":
                self.best_state = {
                    k: v.detach().clone() for k, v in self.learn.model.state_dict().items()
                }

    def _log_epoch(self) -> None:
        last = self.last()
        loss = "" if last["loss"] is None else f" loss {last['loss']:.4f},"
        _log.info(
            "epoch %d:%s %s accuracy %.1f %%, class-balanced %.1f %%",
            last["epoch"], loss, self.select_on, 100 * last["all"], 100 * last["balanced"],
        )  # fmt: skip


class _LossSum(ResidentForm):
    """The sum of the training loss for a `Trajectory`, in steps without events."""

    def __init__(self, owner: Trajectory):
        self._owner, self._images = owner, 0
        self._sum = torch.zeros((), device=next(owner.learn.model.parameters()).device)

    def begin_epoch(self, sizes):
        self._sum.zero_()
        self._images = 0
        return {}

    def after_loss(self, step: ResidentStep) -> None:
        self._sum.add_(step.loss.detach() * step.size)

    def after_steps(self, images):
        self._images += sum(images)
        self._owner.set_loss_sum(self._sum, self._images)

    def state(self) -> list[Tensor]:
        return [self._sum]


def find_trajectory(learn) -> Trajectory | None:
    """Return the `Trajectory` of a learner's callbacks, or None.

    Args:
        learn: Any fastai Learner.
    """
    return next((cb for cb in learn.cbs if isinstance(cb, Trajectory)), None)
