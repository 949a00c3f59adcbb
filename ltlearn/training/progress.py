"""The progress line of a stage, as a callback."""

import math
import time

from fastai.callback.core import Callback

from ltlearn.training.history import find_trajectory
from ltlearn.utils.progress import ProgressLine, duration

__all__ = ["EpochProgress"]


class EpochProgress(Callback):
    """Show a fit on the terminal: epoch, speed, time left, loss, and the figures of a `Trajectory`.

    Where standard error is no terminal, `ltlearn.utils.progress.plain_lines` gets a line per
    epoch, at most one in half a minute and the last.

    Reads `learn.iter`, `learn.epoch`, the size of the batches, and the trajectory; its loss, for
    which a device waits, twice a second while a bar is shown. Writes nothing.

    Args:
        description: What the fit is called.
    """

    # Last, so that what it shows is final.
    order = 80
    _line = None

    def __init__(self, description: str = "training"):
        self.description = description

    def before_fit(self):
        """Find out who looks."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
        self._batches = len(self.learn.dls.train)
        line = ProgressLine(self.description, self.learn.n_epoch * self._batches)
        if not line.on:
            return
        self._line, self._source = line, find_trajectory(self.learn)
        # Of this process alone: a fit that goes on in the middle has done more.
        self._steps = self._epochs = self._images = 0
        self._trained = self._trained_whole = self._whole = 0.0
        self._train_began, self._train_s = None, 0.0
        self._began = time.perf_counter()

    def before_train(self):
        """Begin to count images."""
        if self._line is None:
            return
        self._images, self._train_began = 0, time.perf_counter()
        if not self._epochs and not self._steps:
            self._began = self._train_began
        self._line.done = self.learn.epoch * self._batches

    def after_batch(self):
        """Count, and show how it goes if it is time."""
        line = self._line
        if line is None:
            return
        training = self.learn.training
        if training:
            self._images, self._steps = self._images + len(self.learn.yb[0]), self._steps + 1
            line.done += 1
        if line.notify is None and line.due():
            self._time_training()
            self._show("" if training else "validation ")

    def after_train(self):
        """Stop the clock that counts training alone."""
        if self._line is not None and self._train_began is not None:
            self._time_training()
            self._trained, self._train_began = self._trained + self._train_s, None

    def after_epoch(self):
        """Say how the epoch went, if it is time."""
        line = self._line
        if line is None:
            return
        self._epochs += 1
        self._whole, self._trained_whole = time.perf_counter() - self._began, self._trained
        line.done = (self.learn.epoch + 1) * self._batches
        is_last = self.learn.epoch + 1 == self.learn.n_epoch
        if line.notify is not None and (line.due() or (is_last and line.last())):
            line.notify(self._sentence())

    def after_fit(self):
        """Take the bar away."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Take the bar away, also after a fit that was interrupted."""
        if self._line is not None:
            self._line.close()
        self._line = self._source = None

    def _time_training(self) -> None:
        if self._train_began is not None:
            self._train_s = time.perf_counter() - self._train_began

    def _speed(self) -> str:
        return f"{self._images / max(self._train_s, 1e-9):.0f} images/s"

    def _left(self) -> str:
        """Say how long the fit will go on, by what this process took."""
        trained = self._trained + (self._train_s if self._train_began is not None else 0.0)
        steps = self._line.total - self._line.done
        seconds = trained / max(self._steps, 1) * steps
        if self._epochs:  # validation, and what else an epoch takes
            epochs = math.ceil(steps / max(self._batches, 1))
            seconds += (self._whole - self._trained_whole) / self._epochs * epochs
        return f"{duration(seconds)} left"

    def _show(self, part: str) -> None:
        line, left, learn = self._line, self._left(), self.learn
        loss = self._source and self._source.running_loss()
        head = f"{self.description}, epoch {learn.epoch + 1}/{learn.n_epoch}"
        batch = f"{part}{learn.iter + 1}/{learn.n_iter}"
        tails = [f"{batch}, {self._speed()}, {left}", f"{self._speed()}, {left}", left]
        loss_said = [] if loss is None else [f"loss {loss:.3f}"]
        row = self._source and self._source.last()
        notes = [
            ", ".join([*loss_said, *figures])
            for figures in (_figures(row, self._source.select_on) if row else ([],))
        ]
        line.show(head, tails, notes)

    def _sentence(self) -> str:
        learn, row = self.learn, self._source and self._source.last()
        parts = [f"{self.description}: epoch {learn.epoch + 1}/{learn.n_epoch}"]
        if row and row["epoch"] == learn.epoch + 1:
            parts += [] if row["loss"] is None else [f"loss {row['loss']:.3f}"]
        else:  # validation was cancelled
            row = None
        parts.append(self._speed())
        if row:
            groups = ", ".join(_groups(row))
            balanced = f"{self._source.select_on} balanced {100 * row['balanced']:.1f} %"
            parts.append(f"{balanced} ({groups})" if groups else balanced)
        return ", ".join([*parts, self._left()] if learn.epoch + 1 < learn.n_epoch else parts)


def _groups(row: dict) -> list[str]:
    found = (k for k in ("many", "medium", "few") if row[k] is not None)
    return [f"{k} {100 * row[k]:.1f}" for k in found]


def _figures(row: dict, select_on: str) -> list[list[str]]:
    """Say the figures of an epoch in a long, a middle, and a short way."""
    overall, balanced, groups = 100 * row["all"], 100 * row["balanced"], _groups(row)
    values = "/".join(g.split()[1] for g in groups)
    names = "/".join(g.split()[0] for g in groups)
    short = [f"balanced {balanced:.1f}", *([values] if groups else [])]
    return [
        [f"{select_on} all {overall:.1f} %, balanced {balanced:.1f} %", *groups],
        [f"{select_on} {overall:.1f} %, balanced {balanced:.1f}"]
        + ([f"{names} {values}"] if groups else []),
        short,
        short[:1],
    ]
