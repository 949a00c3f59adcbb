"""Checkpoints, from which a stopped fit resumes as if it had never been stopped."""

import logging
import os
import re
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from fastai.callback.training import GradientAccumulation
from torch import Tensor

from ltlearn.errors import UserError, check_number, check_whole, spell
from ltlearn.training.checkpoint_state import (
    frozen_names,
    hyper_parameters,
    join_state,
    restore_state,
    split_state,
    state_of,
)
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.fit_callback import FitCallback
from ltlearn.utils.environment import warn_of_threads
from ltlearn.utils.older_runs import with_todays_keys
from ltlearn.utils.ranks import is_first, share
from ltlearn.utils.run_folder import Run, checksum_of
from ltlearn.utils.system_errors import reason_of

__all__ = ["Checkpoint", "describe_options"]

_log = logging.getLogger("ltlearn")
_VERSION = 1
_NAME = re.compile(r"epoch-(\d{5,})\.(json|safetensors)")
_KEEP = 2


class Checkpoint(FitCallback):
    """Save the whole state of a fit every few seconds, and resume from it after a kill.

    A resumed fit ends with the weights, figures and random numbers of a fit without interruption:
    bit for bit on a CPU with the same number of threads. A warning reports another number.

    A checkpoint is written at the end of an epoch. It consists of `epoch-00012.safetensors`
    (weights and buffers, state of the optimiser and of the random numbers, best weights so far) and
    `epoch-00012.json` (the rest, and checksums of both), written in this order, each to a temporary
    name first. Reading a checkpoint runs no code. The last two are kept; if the last is damaged,
    the one before is used.

    It is for `fit_stage1`, `retrain_classifier` and `fit` of an `LTLearner`. Give each stage a
    folder of its own. To resume, give the same arguments again: a checkpoint of a fit with others
    is refused. The checkpoints stay after the fit; `clear` removes them, once the weights are
    saved. Weights that `AdaptFormer`, `LoRA` or `BitFit` freeze are not in the files, but their
    fingerprint, and a learner with others is refused. Gradients that fastai's
    `GradientAccumulation` carries into the next epoch are saved, too.

    A callback with state takes part by two methods. `state_dict()` is called at the end of an epoch
    and returns a dictionary (keys are text) of tensors, numbers, text, None, and lists and
    dictionaries of these. `load_state_dict(state)` is called after the callback's `before_fit`,
    with tensors on the CPU. A checkpoint always includes the parameters that a callback gives the
    optimiser. Any other state of a callback begins anew.

    Reads the whole learner. Writes, when it resumes, model, optimiser, loaders, callbacks, random
    numbers, and `learn.first_epoch`.

    Attributes, once a fit has begun: `last_` (file of the newest checkpoint, or None),
    `spent_` (seconds that the fit took before the interruption).

    Args:
        path: Folder of the checkpoints; created if missing.
        resume: Whether to resume from the newest good checkpoint there. If false, a folder that
            holds checkpoints is refused.
        every: Epochs between two checkpoints, at least 1.
        min_seconds: Seconds between two checkpoints, at least 0; short epochs write none.
        keep_all: Whether to write and keep the checkpoint of each epoch that `every` allows, the
            last one included; `min_seconds` is ignored then.

    Raises:
        UserError: If an option is not allowed or, in a fit, the folder holds checkpoints and
            `resume` is false, or they were made with other values, or the folder cannot be written
            or another process writes to it.

    Example:
        >>> learn.fit_stage1(200, cbs=Checkpoint("run/stage1", resume=True))
    """

    # Last, so that it saves the final state of the epoch, and restores after all others began.
    order = 90

    def __init__(
        self,
        path: str | os.PathLike,
        resume: bool = False,
        every: int = 1,
        min_seconds: float = 5.0,
        keep_all: bool = False,
    ):
        check_whole("every", every, 1)
        check_number("min_seconds", min_seconds, 0)
        # Not `path`: fastai's Learner has one, and warns.
        self.folder = Path(path).expanduser()
        self.resume, self.every, self.keep_all = bool(resume), every, bool(keep_all)
        self.min_seconds = float(min_seconds)
        # Facts that decide the weights and that the learner does not hold; the stage sets them.
        self.made_with: dict = {}
        self.last_: Path | None = None
        self.spent_ = 0.0
        self._run = Run(self.folder)
        self._lock: ExitStack | None = None  # while a fit uses the folder
        self._ready = False

    def begin(self) -> None:
        """Resume from the newest good checkpoint, if `resume` is true."""
        if not hasattr(type(self.learn), "first_epoch"):
            raise UserError("Checkpoint needs an LTLearner; make one with lt_learner.")
        self.last_, self.spent_, self._bad = None, 0.0, []
        self._began = self._written = time.perf_counter()
        self._facts = {**self.made_with, **_facts(self.learn)}
        if self.folder.is_dir():
            self._take_lock()
        epochs = share(self.epochs())
        if epochs and not self.resume:
            raise UserError(
                f"{self.folder} holds checkpoints of a stopped fit: give "
                f"{spell('resume', True)} to resume it, or another folder."
            )
        if self.resume and is_first():
            self._tidy()
        for epoch in reversed(epochs):
            try:
                self._resume(epoch)
                break
            except _Damaged as e:
                _log.warning("%s The checkpoint of epoch %d is not used.", e, epoch)
                # Removed as soon as there is a newer one.
                self._bad.append(epoch)
        else:
            if epochs:
                _log.warning("no checkpoint in %s is good: the training starts anew", self.folder)
        self._ready = True

    def after_epoch(self):
        """Write a checkpoint, if it is time."""
        if not self._ready:
            return
        done, now = self.learn.epoch + 1, time.perf_counter()
        due = is_first() and done % self.every == 0
        if not self.keep_all:
            due &= done < self.learn.n_epoch and now - self._written >= self.min_seconds
        if due:
            # On several devices the first rank writes, and all ranks read.
            self.write(done)
            self._written = time.perf_counter()

    def end(self) -> None:
        """Write no more checkpoints."""
        self._ready = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def epochs(self) -> list[int]:
        """Return the epochs that have a checkpoint, good or damaged, in ascending order."""
        matches = (_NAME.fullmatch(name) for name in self._names())
        return sorted(int(match[1]) for match in matches if match and match[2] == "json")

    def clear(self) -> None:
        """Remove the checkpoints, and the folder if nothing else is in it."""
        if not is_first():
            return
        with self._run.lock():
            self._tidy(everything=True)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # the folder is missing, or holds other files

    def write(self, done: int) -> None:
        """Write a checkpoint of the current state, and remove those that are no longer needed.

        Args:
            done: Number of finished epochs.
        """
        self._take_lock()
        tensors: dict[str, Tensor] = {}
        state = split_state(state_of(self.learn), "", tensors)
        name = _name(done)
        checksum = self._run.save_tensors_checked(f"{name}.safetensors", tensors)
        # Last, because this file marks both as complete.
        self._run.write_json(
            f"{name}.json",
            {
                "version": _VERSION,
                "epochs_done": done,
                "seconds": self.spent_ + time.perf_counter() - self._began,
                "made_with": self._facts,
                "threads": torch.get_num_threads(),
                "tensors": checksum,
                "state": state,
            },
            sealed=True,
            indent=None,
        )
        self.last_ = self.folder / f"{name}.safetensors"
        for epoch in self._bad:
            if epoch != done:
                self._remove(epoch)
        self._bad = []
        if not self.keep_all:
            for epoch in self.epochs()[:-_KEEP]:
                self._remove(epoch)

    def _resume(self, epoch: int) -> None:
        name = _name(epoch)
        try:
            note = self._run.read_json(f"{name}.json", sealed=True)
            if note.get("version") != _VERSION or note.get("epochs_done") != epoch:
                raise UserError(f"{self.folder / name}.json is no checkpoint of this version.")
            self._check_same(name, note.get("made_with"))
            checksum = str(note.get("tensors"))
            tensors = self._run.load_tensors(f"{name}.safetensors", checksum=checksum)
            spent = float(note["seconds"])
            restore_state(self.learn, join_state(note["state"], tensors))
            warn_of_threads(note.get("threads"))
        except _OtherValues:
            raise
        except UserError as e:
            raise _Damaged(e.message) from None
        except Exception as e:  # a changed state makes torch, NumPy and Python raise anything
            raise _Damaged(f"{self.folder / name}.json does not fit this training ({e}).") from None
        self.learn.first_epoch, self.spent_ = epoch, spent
        self.last_ = self.folder / f"{name}.safetensors"
        _log.info("the training resumes after epoch %d, from %s", epoch, self.last_)

    def _check_same(self, name: str, before) -> None:
        tensors: dict[str, Tensor] = {}
        now = split_state(self._facts, "", tensors)
        before = with_todays_keys(before) if isinstance(before, dict) else {}
        for key in {**now, **before}:
            if not _is_same(key, before.get(key), now.get(key)):
                raise _OtherValues(
                    f"{self.folder / name}.json was made with {key} {before.get(key)}, but now it "
                    f"is {now.get(key)}; resume with the same value, or give another folder."
                )

    def _take_lock(self) -> None:
        """Lock the folder until the end of the fit; create it if missing."""
        if self._lock is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise UserError(
                    f"{self.folder} cannot hold checkpoints ({reason_of(e)})."
                ) from None
            self._lock = ExitStack()
            self._lock.enter_context(self._run.lock())

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise UserError(f"{self.folder} cannot hold checkpoints ({reason_of(e)}).") from None

    def _tidy(self, everything: bool = False) -> None:
        """Remove half-written files and tensors without their JSON file; or all checkpoints."""
        complete = set() if everything else {_name(epoch) for epoch in self.epochs()}
        self._run.remove_temporaries(deep=False)
        names = (n for n in self._names() if _NAME.fullmatch(n))
        # The JSON file first: tensors without it are no checkpoint.
        for name in sorted(names, key=lambda n: n.endswith(".safetensors")):
            if name.rpartition(".")[0] not in complete:
                self._unlink(name)

    def _remove(self, epoch: int) -> None:
        for end in ("json", "safetensors"):
            self._unlink(f"{_name(epoch)}.{end}")

    def _unlink(self, name: str) -> None:
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as e:
            _log.warning("%s cannot be removed (%s)", self.folder / name, reason_of(e))


class _Damaged(Exception):
    """A checkpoint that cannot be used."""


class _OtherValues(UserError):
    """A checkpoint of a fit with other values."""


def _is_same(key: str, before, now) -> bool:
    # Earlier versions recorded no order of the images.
    without_order = key == "images" and str(now).startswith(f"{before}, order ")
    return before == now or without_order


def _name(done: int) -> str:
    return f"epoch-{done:05d}"


# Options that runs of earlier versions lack, with the value that changes nothing: it is left out,
# so that such runs resume.
_LATER = (("SAMN", "start", "published"),)


def describe_options(obj) -> str:
    """Describe a callback or loss by its class and, if it is one of ltlearn's, by its options.

    Args:
        obj: A callback, a loss, or a function.
    """
    name = getattr(obj, "__name__", type(obj).__name__)
    if isinstance(obj, GradientAccumulation):
        return f"{name}({obj.n_acc})"
    if not type(obj).__module__.startswith("ltlearn."):
        return name
    shown = [
        f"{key}={value!r}"
        for key, value in sorted(vars(obj).items())
        if not key.startswith("_")
        and not key.endswith("_")
        and key not in ("learn", "run", "training", "installed")
        and isinstance(value, str | int | float | tuple | None)
        and (name, key, value) not in _LATER
    ]
    return f"{name}({', '.join(shown)})"


def _facts(learn) -> dict:
    """Return the facts of a learner that decide how its fit continues."""
    model = {k: f"{v.dtype}{tuple(v.shape)}" for k, v in learn.model.state_dict().items()}
    inner = getattr(learn.opt, "opt", learn.opt)
    frozen = frozen_names(learn)
    trunk = {"frozen weights": weights_fingerprint(learn.model, frozen)} if frozen else {}
    return {
        **trunk,
        "epochs": learn.n_epoch,
        "batches": len(learn.dls.train),
        "model": f"{len(model)} tensors, {_short(model)}",
        "optimizer": f"{type(inner).__name__} {hyper_parameters(learn.opt)}",
    }


def _short(obj) -> str:
    return checksum_of(repr(obj).encode())[:16]
