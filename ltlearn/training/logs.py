"""The figures of a fit in files that grow with it."""

import importlib.util
import logging
import math
import time
from pathlib import Path

from fastai.callback.core import Callback

from ltlearn.errors import UserError
from ltlearn.training.history import FIGURES, find_trajectory
from ltlearn.utils.run_folder import Run

__all__ = ["check_tensorboard", "EpochLog"]

_log = logging.getLogger("ltlearn")


def check_tensorboard() -> None:
    """Raise a `UserError` unless event files of TensorBoard can be written."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard's files need the package tensorboard: pip install 'ltlearn[tensorboard]'."
        )


class EpochLog(Callback):
    """Write the figures of each epoch down as soon as they are there.

    For `fit_stage1` and `retrain_classifier`: it writes what their `Trajectory` holds, so a fit
    that goes on from a `Checkpoint` has each epoch once. A log that cannot be written is warned of
    and ends no fit.

    Reads the trajectory and the learning rate. Writes nothing of the Learner.

    Args:
        path: CSV file, written anew each time; None writes none.
        tensorboard: Folder of TensorBoard's event files; None writes none. One a fit.
        min_seconds: Time between two writes, at least 0; the end of a fit is always written.

    Raises:
        UserError: If `tensorboard` is given and the package of that name is not installed.
    """

    # After the trajectory has the epoch, before a checkpoint is taken of it.
    order = 85

    def __init__(
        self,
        path: str | Path | None = None,
        tensorboard: str | Path | None = None,
        min_seconds: float = 1.0,
    ):
        if tensorboard is not None:
            check_tensorboard()
        # Not `path`: fastai's Learner has one, and warns.
        self.file = None if path is None else Path(path)
        self.folder = None if tensorboard is None else Path(tensorboard)
        self.min_seconds = min_seconds
        self._source = self._writer = None

    def before_fit(self):
        """Begin a log."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
        self._source = find_trajectory(self.learn)
        self._written, self._sent, self._rates = -math.inf, 0, {}

    def before_epoch(self):
        """Write what there is before the first epoch of this process."""
        if self._source is not None and self._written == -math.inf:
            self._write()

    def after_epoch(self):
        """Write the epoch, if it is time."""
        if self._source is None:
            return
        self._rates[self.learn.epoch + 1] = self.learn.opt.hypers[-1]["lr"]
        if time.perf_counter() - self._written >= self.min_seconds:
            self._write()

    def after_fit(self):
        """Write the rest."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Write the rest, also after a fit that was interrupted."""
        if self._source is not None:
            self._write()
        if self._writer is not None:
            self._writer.close()
        self._source = self._writer = None

    def _write(self) -> None:
        self._written = time.perf_counter()
        record = self._source.record
        names = ("epoch", "loss", *FIGURES, "seconds")
        rows = [
            {**dict(zip(names, values, strict=True)), "evaluated_on": record["select_on"]}
            for values in zip(*(record[name] for name in names), strict=True)
        ]
        if not rows:
            return
        try:
            if self.file is not None:
                Run(self.file.parent).write_csv(self.file.name, rows)
            if self.folder is not None:
                self._send(rows)
        except (OSError, UserError) as e:
            _log.warning("the log of this training ends here: %s", e)
            self._source = None

    def _send(self, rows: list[dict]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier process wrote here gives way: the record has all but its rates.
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
