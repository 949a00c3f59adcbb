"""What a fit was worth, epoch by epoch, and the weights of its best epoch."""

import logging
import time
from contextlib import nullcontext

import torch
from fastai.callback.core import Callback
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.metrics import shot_report
from ltlearn.models.cut import find_head
from ltlearn.progress import ProgressLine

__all__ = ["EpochProgress", "FlipAverage", "Trajectory", "head_norms"]

_log = logging.getLogger("ltlearn")


@torch.no_grad()
def head_norms(model: nn.Module) -> Tensor:
    """Return the weight norm of each class, (C,), float32 on the CPU."""
    head = find_head(model)[1]
    norms = head.weight.float().norm(dim=1) if isinstance(head, nn.Linear) else head.norms()
    return norms.detach().float().cpu()


class FlipAverage(Callback):
    """Validate on the mean of the logits of each picture and of its mirror image.

    The authors of SAMN report all their figures so.

    Reads `learn.xb`. Writes `learn.pred` outside training.
    """

    # Before whatever reads the predictions.
    order = -8

    def after_pred(self):
        """Average with the logits of the mirror image."""
        if not self.learn.training:
            # An LTLearner calls this event outside the autocast that its model runs in.
            with getattr(self.learn, "autocast", nullcontext)():
                mirrored = self.learn.model(self.learn.xb[0].flip(-1))
            self.learn.pred = (self.learn.pred + mirrored.to(self.learn.pred.dtype)) / 2


class Trajectory(Callback):
    """Evaluate before the first step (epoch 0) and after every epoch; keep the best weights.

    Reads predictions and targets of the validation loader. Writes nothing of the Learner; `record`
    holds the trajectory, `best_state` the weights of the chosen epoch.

    Args:
        shot_counts: Images per class that decide many, medium and few.
        few: Threshold rule, "<20" or "<=20".
        select: "best" chooses the epoch with the highest class-balanced accuracy on the validation
            loader, epoch 0 included, the first of equals; "last" chooses the last.
        select_on: What the validation loader holds, for the record: "validation" or "test".
        start: Whether to evaluate before the first step, too.
        predict: Gives (logits, targets) of the validation loader; for the evaluation before the
            first step.
        stage: What this training is called in messages.

    Raises:
        UserError: In a fit, if the logits are not finite any more.
    """

    # After everything that changes the model in before_fit or the predictions in after_pred.
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
    ):
        self.shot_counts, self.few, self.start, self.predict = shot_counts, few, start, predict
        self.select, self.select_on, self.stage = select, select_on, stage
        self.record = {
            "epoch": [], "loss": [], "all": [], "balanced": [], "many": [], "medium": [],
            "few": [], "norms": [], "seconds": [],
            "chosen": None, "select_on": select_on, "select": select,
        }  # fmt: skip
        self.best_state: dict[str, Tensor] | None = None
        self._best = -1.0

    def before_fit(self):
        """Evaluate the weights the fit begins with."""
        self._began = time.perf_counter()
        if self.start:
            self._add(0, None, *self.predict())
            self._log_epoch()

    def before_train(self):
        """Begin to collect the training loss."""
        self._loss, self._seen = 0.0, 0

    # The two events that follow do not happen in a batch that is cancelled before them. What they
    # collect stays on the device, without waiting for it.

    def after_pred(self):
        """Collect the predictions, in validation."""
        if not self.learn.training:
            self._logits.append(self.learn.pred.detach().float())
            self._targets.append(self.learn.yb[0])

    def after_loss(self):
        """Collect the loss, in training."""
        if self.learn.training:
            n = len(self.learn.yb[0])
            self._loss, self._seen = self._loss + self.learn.loss.detach() * n, self._seen + n

    def before_validate(self):
        """Begin to collect predictions."""
        self._logits, self._targets = [], []

    def after_cancel_validate(self):
        """Forget a validation that was cut short: its figures would not compare."""
        self._logits, self._targets = [], []

    def after_validate(self):
        """Evaluate the epoch."""
        if not self._logits or not hasattr(self, "_seen"):
            return
        loss = float(self._loss / self._seen) if self._seen else None
        self._add(self.learn.epoch + 1, loss, torch.cat(self._logits), torch.cat(self._targets))
        self._log_epoch()

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps: record, best weights, seconds so far."""
        norms = torch.tensor(self.record["norms"], dtype=torch.float64)
        return {
            "record": {**self.record, "norms": norms},
            "best": self._best,
            "best_state": self.best_state,
            "seconds": time.perf_counter() - self._began,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on with what `state_dict` returned."""
        record, norms = dict(state["record"]), state["record"]["norms"]
        if record.keys() != self.record.keys():
            raise ValueError("the record has other columns")
        if norms.numel() != len(record["epoch"]) * len(self.shot_counts):
            raise ValueError("the record has the norms of another classifier")
        record["norms"] = norms.tolist()
        best = state["best_state"]
        if best is not None:
            like = self.learn.model.state_dict()
            if best.keys() != like.keys() or any(v.shape != like[k].shape for k, v in best.items()):
                raise ValueError("the best weights are those of another model")
            best = {k: v.to(like[k].device) for k, v in best.items()}
        self.record, self.best_state, self._best = record, best, state["best"]
        self._began = time.perf_counter() - state["seconds"]

    def _add(self, epoch: int, loss: float | None, logits: Tensor, targets: Tensor) -> None:
        if not logits.isfinite().all():
            raise UserError(
                f"training diverged in epoch {epoch} of {self.stage}: the logits are not finite "
                "any more; lower the learning rate."
                if epoch
                else f"the logits are not finite before the first step of {self.stage}: the "
                "weights are damaged or an earlier training diverged; train again with a lower "
                "learning rate."
            )
        report = shot_report(logits, targets, self.shot_counts, few=self.few)
        row = {"epoch": epoch, "loss": loss, "seconds": time.perf_counter() - self._began}
        row |= {k: getattr(report, k) for k in ("all", "balanced", "many", "medium", "few")}
        row["norms"] = head_norms(self.learn.model).tolist()
        for key, value in row.items():
            self.record[key].append(value)
        if self.select == "last" or report.balanced > self._best:
            self._best, self.record["chosen"] = report.balanced, epoch
            if self.select == "best":
                self.best_state = {
                    k: v.detach().clone() for k, v in self.learn.model.state_dict().items()
                }

    def _log_epoch(self) -> None:
        last = {k: v[-1] for k, v in self.record.items() if isinstance(v, list)}
        loss = "" if last["loss"] is None else f" loss {last['loss']:.4f},"
        _log.info(
            "epoch %d:%s %s accuracy %.1f %%, class-balanced %.1f %%",
            last["epoch"], loss, self.select_on, 100 * last["all"], 100 * last["balanced"],
        )  # fmt: skip


class EpochProgress(Callback):
    """Show the fit as one progress bar on the terminal, in batches, with epoch and loss.

    Reads `learn.iter`, `learn.epoch`, `learn.loss`. Writes nothing.

    Args:
        description: What stands before the bar.
    """

    # Last, so that what it shows is final.
    order = 80
    _line = None

    def __init__(self, description: str = "training"):
        self.description = description

    def before_fit(self):
        """Open the bar."""
        self.close()
        self._line = ProgressLine(self.description, self.learn.n_epoch * len(self.learn.dls.train))

    def before_epoch(self):
        """Count the epochs of a fit that goes on in the middle."""
        first = getattr(self.learn, "first_epoch", 0)
        if self._line is not None and not self._line.done and first:
            self._line.advance(first * len(self.learn.dls.train))

    def after_batch(self):
        """Move the bar."""
        if self.learn.training:
            self._line.advance(1, f"epoch {self.learn.epoch + 1}/{self.learn.n_epoch}")

    def after_fit(self):
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, also after a fit that was interrupted."""
        if self._line is not None:
            self._line.close()
            self._line = None
