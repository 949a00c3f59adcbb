"""The progress of a fit, as a fastai callback: a bar, lines, or a notebook's table of epochs."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise

from fastai.callback.progress import ProgressCallback

from ltlearn.names import FIGURES, SHOTS
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.history import find_trajectory
from ltlearn.utils.html import html_table
from ltlearn.utils.progress import ProgressLine, duration
from ltlearn.utils.text import epochs_text

__all__ = ["EpochProgress"]


class EpochProgress(FitCallback):
    """Show a fit: epoch, speed, time left, loss, and the figures of a `Trajectory`.

    A notebook gets a bar, and a table of the epochs that stays. A terminal gets a bar that goes
    away. Elsewhere `ltlearn.utils.progress.plain_lines` gets a line per epoch, at most one in half
    a minute, and one for the last epoch. With fastai's `ProgressCallback` it shows nothing.

    Reads `learn.iter`, `learn.epoch`, the batch size, the trajectory and the recorder. While a bar
    is shown, it reads the loss twice a second, which waits for the device. Writes nothing.

    Args:
        description: Name of the fit.
    """

    # After the callbacks that change the values it shows.
    order = 80
    _line = _table = None

    def __init__(self, description: str = "training"):
        self.description = description

    def begin(self) -> None:
        """Open a progress line, if progress is shown."""
        if any(isinstance(cb, ProgressCallback) for cb in self.learn.cbs):
            return
        self._batches = len(self.learn.dls.train)
        line = ProgressLine(self.description, self.learn.n_epoch * self._batches)
        if not line.on:
            return
        self._line, self._source = line, find_trajectory(self.learn)
        self._table = None
        if line.takes_table and not hasattr(self.learn, "lr_finder"):
            self._table = _EpochTable(self.learn, self._source)
        # These count this process alone: a resumed fit has done more.
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
        """Count, and update the bar if it is time."""
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

    def after_steps(self, images: Sequence[int]) -> None:
        """Count several training steps, and update the bar if it is time.

        Args:
            images: The size of each batch.
        """
        line = self._line
        if line is None:
            return
        self._images, self._steps = self._images + sum(images), self._steps + len(images)
        line.done += len(images)
        if line.notify is None and line.due():
            self._time_training()
            self._show("")

    def after_train(self):
        """Stop the clock of the training."""
        if self._line is not None and self._train_began is not None:
            self._time_training()
            self._trained, self._train_began = self._trained + self._train_s, None

    def after_epoch(self):
        """Send a line about the epoch, if it is time."""
        line = self._line
        if line is None:
            return
        self._epochs += 1
        self._whole, self._trained_whole = time.perf_counter() - self._began, self._trained
        line.done = (self.learn.epoch + 1) * self._batches
        is_last = self.learn.epoch + 1 == self.learn.n_epoch
        if self._table is not None:
            self._table.add()
        if line.notify is not None and (line.due() or (is_last and line.last())):
            line.notify(self._sentence())

    def end(self) -> None:
        """Remove the bar; the table of a notebook stays."""
        if self._line is not None:
            text = ""
            if self._table is not None:
                text = f"{self.description}: {self._table.describe_end(self._time_taken())}"
                self._line.table = self._table.to_html(text)
            self._line.close(text)
        self._line = self._source = self._table = None

    def _time_taken(self) -> str:
        return duration(time.perf_counter() - self._began)

    def _time_training(self) -> None:
        if self._train_began is not None:
            self._train_s = time.perf_counter() - self._train_began

    def _speed(self) -> str:
        return f"{self._images / max(self._train_s, 1e-9):.0f} images/s"

    def _left(self) -> str:
        """Estimate the remaining time from the time of this process."""
        trained = self._trained + (self._train_s if self._train_began is not None else 0.0)
        steps = self._line.total - self._line.done
        seconds = trained / max(self._steps, 1) * steps
        if self._epochs:  # the time for validation and other work outside the training steps
            epochs = math.ceil(steps / max(self._batches, 1))
            seconds += (self._whole - self._trained_whole) / self._epochs * epochs
        return f"{duration(seconds)} left"

    def _show(self, part: str) -> None:
        line, left, learn = self._line, self._left(), self.learn
        loss = self._source and self._source.running_loss()
        head = f"{self.description}, epoch {learn.epoch + 1}/{learn.n_epoch}"
        batch = f"{part}{learn.iter + 1}/{learn.n_iter}"
        tails = [f"{batch}, {self._speed()}, {left}", f"{self._speed()}, {left}", left]
        if self._table is not None:
            line.table = self._table.to_html()
            loss_text = [] if loss is None else [f"loss {loss:.3f}"]
            line.show(head, tails, loss_text)
            return
        loss_text = [] if loss is None else [f"loss {loss:.3f}"]
        row = self._source and self._source.last()
        notes = [
            ", ".join([*loss_text, *figures])
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


class _EpochTable:
    """The epochs of a fit, for a notebook.

    With a trajectory, its figures and the user's metrics; without one, the columns of the recorder.
    """

    def __init__(self, learn, source):
        self._learn, self._source, self._epochs, self._done = learn, source, learn.n_epoch, 0
        self._names = list(learn.recorder.metric_names)
        self._logged: dict[int, list[str]] = {}  # epoch -> the columns of the recorder
        known = {"epoch", "train_loss", "valid_loss", "time", *FIGURES}
        self._own = [i for i, name in enumerate(self._names) if name not in known]

    def add(self) -> None:
        """Take the figures of an epoch from the recorder."""
        self._done = self._learn.epoch + 1
        values = getattr(self._learn.recorder, "log", [])
        if len(values) == len(self._names):  # not if validation was cancelled
            self._logged[self._done] = [_number(value) for value in values]

    def to_html(self, caption: str = "") -> str:
        """Return the table; empty while there is no epoch."""
        if self._source is None:
            rows, head, bold = list(self._logged.values()), self._names, None
        else:
            record = self._source.record
            own = {e: [row[i] for i in self._own] for e, row in self._logged.items()}
            missing = ["–"] * len(self._own)
            # The time of each epoch, as in fastai's table; the record has it since the beginning.
            taken = [b - a for a, b in pairwise([0.0, *record.seconds])]
            rows = [
                [
                    epoch, *record.figures_of(i), *own.get(epoch, missing),
                    duration(seconds),
                ]
                for i, (epoch, seconds) in enumerate(zip(record.epoch, taken, strict=True))
            ]  # fmt: skip
            head = ["epoch", *record.table_head(), *(self._names[i] for i in self._own), "time"]
            bold = record.epoch.index(record.chosen) if record.chosen in record.epoch else None
        return html_table(head, rows, caption, bold) if rows else ""

    def describe_end(self, time_taken: str) -> str:
        """Return how many epochs were trained."""
        epochs = epochs_text(self._epochs)
        if self._done < self._epochs:
            return f"stopped after {self._done} of {epochs}, {time_taken}"
        kept = ""
        if self._source is not None and self._source.record.select == "best":
            kept = f", kept: {self._source.record.describe_choice()}"
        return f"{epochs} in {time_taken}{kept}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _groups(row: dict) -> list[str]:
    groups = (k for k in SHOTS if row[k] is not None)
    return [f"{k} {100 * row[k]:.1f}" for k in groups]


def _figures(row: dict, select_on: str) -> list[list[str]]:
    """Return the figures of an epoch as texts, from the longest to the shortest."""
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
