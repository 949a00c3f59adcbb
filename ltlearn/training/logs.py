"""Log files with the figures of a fit, written while it runs."""

import importlib.util
import logging
import math
import time
from pathlib import Path

from ltlearn.errors import UserError, check_number
from ltlearn.names import FIGURES
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.history import find_trajectory
from ltlearn.training.records import TrajectoryRecord
from ltlearn.utils.ranks import is_first
from ltlearn.utils.run_folder import Run

__all__ = ["check_tensorboard", "EpochLog"]

_log = logging.getLogger("ltlearn")


def check_tensorboard() -> None:
    """Raise a `UserError` unless the package tensorboard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tensorboard needs the package tensorboard: pip install 'ltlearn[tensorboard]'."
        )


class EpochLog(FitCallback):
    """Write the figures of each epoch to files while a fit runs.

    For `fit_stage1` and `retrain_classifier`. It writes the record of their `Trajectory`, so the
    log of a fit that resumes from a `Checkpoint` has each epoch once. If a log cannot be written,
    a warning is logged, and the fit continues.

    Reads the trajectory and the learning rate. Changes nothing in the Learner.

    Args:
        path: CSV file, rewritten each time; None writes none.
        tensorboard: Folder of TensorBoard's event files, one per fit; None writes none.
        min_seconds: Seconds between two writes, at least 0; the end of a fit is always written.

    Raises:
        UserError: If an option is not allowed, or `tensorboard` is given and the package of that
            name is not installed.

    Example:
        >>> learn.fit_stage1(200, cbs=EpochLog("run/stage1.csv"))
    """

    # After `Trajectory` has recorded the epoch, before `Checkpoint` saves it.
    order = 85

    def __init__(
        self,
        path: str | Path | None = None,
        tensorboard: str | Path | None = None,
        min_seconds: float = 1.0,
    ):
        if tensorboard is not None:
            check_tensorboard()
        check_number("min_seconds", min_seconds, 0)
        # Not `path`: fastai's Learner has one, and warns.
        self.file = None if path is None else Path(path)
        self.folder = None if tensorboard is None else Path(tensorboard)
        self.min_seconds = min_seconds
        self._source = self._writer = None

    def begin(self) -> None:
        """Begin a log."""
        self._source = find_trajectory(self.learn)
        self._written, self._sent, self._rates = -math.inf, 0, {}

    def before_epoch(self):
        """Write the rows that exist before the first epoch of this process."""
        if self._source is not None and self._written == -math.inf:
            self._write()

    def after_epoch(self):
        """Write the epoch, if it is time."""
        if self._source is None:
            return
        self._rates[self.learn.epoch + 1] = self.learn.opt.hypers[-1]["lr"]
        if time.perf_counter() - self._written >= self.min_seconds:
            self._write()

    def end(self) -> None:
        """Write the remaining rows and close the files."""
        if self._source is not None:
            self._write()
        if self._writer is not None:
            self._writer.close()
        self._source = self._writer = None

    def restore(self, record: TrajectoryRecord) -> None:
        """Write the CSV file of a finished fit again: a full or failing disk may have cut it.

        Args:
            record: The record of the fit.
        """
        rows = _rows_of(record)
        if self.file is not None and rows:
            self._write_csv(rows)

    def _write(self) -> None:
        self._written = time.perf_counter()
        rows = _rows_of(self._source.record) if is_first() else []
        if not rows:
            return
        try:
            if self.file is not None:
                self._write_csv(rows)
            if self.folder is not None:
                self._send(rows)
        except (OSError, UserError) as e:
            _log.warning("this training is no longer logged: %s", e)
            self._source = None

    def _write_csv(self, rows: list[dict]) -> None:
        Run(self.file.parent).write_csv(self.file.name, rows)

    def _send(self, rows: list[dict]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Replaces the events of an earlier process: the record has them, but no learning rates.
            self._writer = SummaryWriter(str(self.folder), purge_step=0)
        for row in rows[self._sent :]:
            step = row["epoch"]
            scalars = {f"{row['evaluated_on']}/{key}": row[key] for key in FIGURES}
            scalars |= {"train/loss": row["loss"], "train/lr": self._rates.get(step)}
            for tag, value in scalars.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, step)
        self._sent = len(rows)
        self._writer.flush()


def _rows_of(record: TrajectoryRecord) -> list[dict]:
    names = ("epoch", "loss", *FIGURES, "seconds")
    return [
        {**dict(zip(names, values, strict=True)), "evaluated_on": record.select_on}
        for values in zip(*(record[name] for name in names), strict=True)
    ]
