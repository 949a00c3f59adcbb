"""Checkpoints of a fit, from which it goes on as if it had never been stopped."""

import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch import Tensor, nn

from ltlearn.errors import UserError, check_whole
from ltlearn.utils.older_runs import with_todays_keys
from ltlearn.utils.run_folder import Run, checksum_of

__all__ = ["Checkpoint", "describe_options"]

_log = logging.getLogger("ltlearn")
_VERSION = 1
_NAME = re.compile(r"epoch-(\d{5,})\.(json|safetensors)")
_KEEP = 2
# How an optimiser works, which is of this machine, and not what it computes.
_ENGINE = ("fused", "foreach", "capturable", "differentiable")
# State of optimisers that has the shape of its parameter.
_LIKE_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_avg",
                   "sqr_avg")  # fmt: skip


class Checkpoint(Callback):
    """Write all that a fit is made of every few seconds, and go on from there after a kill.

    A fit that goes on ends with the weights, figures and random numbers of one that was never
    stopped: bit for bit on a CPU with the same number of threads. A checkpoint is taken at the end
    of an epoch, and is `epoch-00012.safetensors` (weights and buffers, state of the optimiser and
    of the random numbers, best weights so far) with `epoch-00012.json` (the rest, and checksums of
    both), written in this order, each to a temporary name first. Reading one runs no code. The last
    two are kept; where the last is damaged, the one before is taken.

    It is for `fit_stage1`, `retrain_classifier` and `fit` of an `LTLearner`. Give each stage a
    folder of its own, and the same arguments again to go on: with others a checkpoint is refused.
    The checkpoints stay when the fit is over; `clear` removes them, once its weights are safe.
    Gradients that fastai's `GradientAccumulation` carries into the next epoch are kept, too.

    A callback with state takes part by two methods: `state_dict()` gives a dictionary (keys are
    text) of tensors, numbers, text, None, and lists and dictionaries of them, at the end of an
    epoch; `load_state_dict(state)` gets the same after the callback's `before_fit`, tensors on the
    CPU. Parameters that a callback gives the optimiser are in the checkpoint anyway. Any other
    state of a callback begins anew.

    Reads the whole learner. Writes, when it goes on, model, optimiser, loaders, callbacks, random
    numbers, and `learn.first_epoch`.

    Attributes, once a fit has begun: `last_` (file of the newest checkpoint; None before one),
    `spent_` (seconds that the fit took before it was stopped).

    Args:
        path: Folder of the checkpoints; made where it is missing.
        resume: Go on from the newest good checkpoint there. Without, a folder that holds
            checkpoints is refused.
        every: Epochs between two checkpoints, at least 1.
        min_seconds: Time between two checkpoints, at least 0; short epochs go without one.
        keep_all: Keep the checkpoint of each epoch that `every` allows, the last one included;
            `min_seconds` has no meaning then.

    Raises:
        UserError: If an option is not allowed or, in a fit, the folder holds checkpoints and
            `resume` is false, was made with other values, or cannot be written.
    """

    # Last: what it saves is what the epoch left, and it restores after all others have begun.
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
        good = isinstance(min_seconds, Real) and not isinstance(min_seconds, bool)
        if not good or not min_seconds >= 0:
            raise UserError(f"min_seconds must be a number of at least 0, got {min_seconds!r}.")
        # Not `path`: fastai's Learner has one, and warns.
        self.folder = Path(path).expanduser()
        self.resume, self.every, self.keep_all = bool(resume), every, bool(keep_all)
        self.min_seconds = float(min_seconds)
        # What the weights depend on, besides what is found in the learner; a stage says so.
        self.made_with: dict = {}
        self.last_: Path | None = None
        self.spent_ = 0.0
        self._run = Run(self.folder)
        self._active = False

    def before_fit(self):
        """Go on from the newest good checkpoint, if that is wanted."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        if not hasattr(type(self.learn), "first_epoch"):
            raise UserError("Checkpoint is for an LTLearner; lt_learner makes one.")
        self.last_, self.spent_, self._bad = None, 0.0, []
        self._began = self._written = time.perf_counter()
        self._facts = {**self.made_with, **_facts(self.learn)}
        found = self.epochs()
        if found and not self.resume:
            raise UserError(
                f"{self.folder} holds checkpoints of a fit that was stopped: give resume=True to "
                "go on with it, or another folder."
            )
        if self.resume:
            self._tidy()
        for epoch in reversed(found):
            try:
                self._go_on(epoch)
                break
            except _Damaged as e:
                _log.warning("%s The checkpoint of epoch %d is not used.", e, epoch)
                # It goes when there is a newer one that is good.
                self._bad.append(epoch)
        else:
            if found:
                _log.warning("no checkpoint in %s is good: this training starts anew", self.folder)
        self._active = True

    def after_epoch(self):
        """Write a checkpoint, if it is time."""
        if not self._active:
            return
        done, now = self.learn.epoch + 1, time.perf_counter()
        due = done % self.every == 0
        if not self.keep_all:
            due &= done < self.learn.n_epoch and now - self._written >= self.min_seconds
        if due:
            self.write(done)
            self._written = time.perf_counter()

    def after_fit(self):
        """Write no more."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Write no more, also after a fit that was interrupted."""
        self._active = False

    def epochs(self) -> list[int]:
        """Return the epochs that there is a checkpoint of, good or damaged, in their order."""
        found = (_NAME.fullmatch(name) for name in self._names())
        return sorted(int(match[1]) for match in found if match and match[2] == "json")

    def clear(self) -> None:
        """Remove the checkpoints, and the folder where nothing else is in it."""
        self._tidy(everything=True)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # it is not there, or holds something else

    def write(self, done: int) -> None:
        """Write a checkpoint of the fit as it is, and remove those that are not needed any more.

        Args:
            done: Epochs that are finished.
        """
        tensors: dict[str, Tensor] = {}
        state = _take_apart(_state_of(self.learn), "", tensors)
        name = _name(done)
        checksum = self._run.save_tensors_checked(f"{name}.safetensors", tensors)
        # Last: this file says that both are complete.
        self._run.write_json(
            f"{name}.json",
            {
                "version": _VERSION,
                "epochs_done": done,
                "seconds": self.spent_ + time.perf_counter() - self._began,
                "made_with": self._facts,
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

    def _go_on(self, epoch: int) -> None:
        name = _name(epoch)
        try:
            note = self._run.read_json(f"{name}.json", sealed=True)
            if note.get("version") != _VERSION or note.get("epochs_done") != epoch:
                raise UserError(f"{self.folder / name}.json is no checkpoint of this version.")
            self._check_same(name, note.get("made_with"))
            checksum = str(note.get("tensors"))
            tensors = self._run.load_tensors(f"{name}.safetensors", checksum=checksum)
            spent = float(note["seconds"])
            state = _put_together(note["state"], tensors)
            _restore(self.learn, state)
        except _OtherValues:
            raise
        except UserError as e:
            raise _Damaged(e.message) from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as e:
            raise _Damaged(f"{self.folder / name}.json does not fit this training ({e}).") from None
        self.learn.first_epoch, self.spent_ = epoch, spent
        self.last_ = self.folder / f"{name}.safetensors"
        _log.info("this training goes on after epoch %d, from %s", epoch, self.last_)

    def _check_same(self, name: str, before) -> None:
        tensors: dict[str, Tensor] = {}
        now = _take_apart(self._facts, "", tensors)
        before = with_todays_keys(before) if isinstance(before, dict) else {}
        for key in {**now, **before}:
            if before.get(key) != now.get(key):
                raise _OtherValues(
                    f"{self.folder / name}.json was made with {key} {before.get(key)}, now it is "
                    f"{now.get(key)}; go on with the same, or give another folder."
                )

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise UserError(f"{self.folder} cannot hold checkpoints ({e.strerror}).") from None

    def _tidy(self, everything: bool = False) -> None:
        """Remove what a kill left half-written, and tensors without their note; or everything."""
        complete = set() if everything else {_name(epoch) for epoch in self.epochs()}
        self._run.remove_temporaries(deep=False)
        names = (n for n in self._names() if _NAME.fullmatch(n))
        # The note first: tensors without one are no checkpoint.
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
            _log.warning("%s cannot be removed (%s)", self.folder / name, e.strerror)


class _Damaged(Exception):
    """A checkpoint that cannot be used."""


class _OtherValues(UserError):
    """A checkpoint that was made with other values."""


def _name(done: int) -> str:
    return f"epoch-{done:05d}"


def describe_options(thing) -> str:
    """Name one of ltlearn's callbacks or losses with the options it has; others by class alone."""
    name = getattr(thing, "__name__", type(thing).__name__)
    if isinstance(thing, GradientAccumulation):
        return f"{name}({thing.n_acc})"
    if not type(thing).__module__.startswith("ltlearn."):
        return name
    shown = [
        f"{key}={value!r}"
        for key, value in sorted(vars(thing).items())
        if not key.startswith("_")
        and not key.endswith("_")
        and key not in ("learn", "run", "training", "installed")
        and isinstance(value, str | int | float | tuple | None)
    ]
    return f"{name}({', '.join(shown)})"


def _facts(learn) -> dict:
    """Return what decides how a fit goes on, as far as the learner tells."""
    model = {k: f"{v.dtype}{tuple(v.shape)}" for k, v in learn.model.state_dict().items()}
    groups = [_hypers(group) for group in _groups(learn.opt)]
    inner = getattr(learn.opt, "opt", learn.opt)
    return {
        "epochs": learn.n_epoch,
        "batches": len(learn.dls.train),
        "model": f"{len(model)} tensors, {_short(model)}",
        "optimizer": f"{type(inner).__name__} {groups}",
    }


def _short(thing) -> str:
    return checksum_of(repr(thing).encode())[:16]


def _state_of(learn) -> dict:
    return {
        "model": dict(learn.model.state_dict()),
        "optimizer": _optimizer_state(learn),
        "accumulated": [cb.count for cb in _accumulators(learn)],
        "callbacks": {cb.name: cb.state_dict() for cb in _with_state(learn)},
        "loaders": [_loader_state(dl) for dl in learn.dls.loaders],
        "random": _random_state(),
    }


def _restore(learn, state: dict) -> None:
    """Put a learner into a state; leave it as it was where the state does not fit."""
    _check_tensors("the model", state["model"], learn.model.state_dict())
    _check_optimizer(learn, state["optimizer"])
    callbacks = {cb.name: cb for cb in _with_state(learn)}
    if callbacks.keys() != state["callbacks"].keys():
        raise ValueError(f"its callbacks are {sorted(state['callbacks'])}, not {sorted(callbacks)}")
    if len(state["loaders"]) != len(learn.dls.loaders):
        raise ValueError("it has another number of loaders")
    kept = {name: cb.state_dict() for name, cb in callbacks.items()}
    loaders, numbers = [_loader_state(dl) for dl in learn.dls.loaders], _random_state()
    try:
        for name, cb in callbacks.items():
            cb.load_state_dict(state["callbacks"][name])
        for dl, value in zip(learn.dls.loaders, state["loaders"], strict=True):
            _restore_loader(dl, value)
        _restore_random(state["random"])
    except Exception:
        for name, cb in callbacks.items():
            cb.load_state_dict(kept[name])
        for dl, value in zip(learn.dls.loaders, loaders, strict=True):
            _restore_loader(dl, value)
        _restore_random(numbers)
        raise
    learn.model.load_state_dict(state["model"])
    _restore_optimizer(learn, state["optimizer"])
    for cb, count in zip(_accumulators(learn), state.get("accumulated", ()), strict=False):
        cb.count = count


def _accumulators(learn) -> list[Callback]:
    """List the callbacks that carry gradients over from one epoch to the next."""
    return [cb for cb in learn.cbs if isinstance(cb, GradientAccumulation)]


def _with_state(learn) -> list[Callback]:
    # On the class: a callback gives the learner's attributes out as its own.
    return [cb for cb in learn.cbs if hasattr(type(cb), "load_state_dict")]


def _check_tensors(what: str, found: Mapping, wanted: Mapping) -> None:
    if found.keys() != wanted.keys():
        raise ValueError(f"{what} has other tensors, such as {min(found.keys() ^ wanted.keys())}")
    for key, value in wanted.items():
        if found[key].shape != value.shape or found[key].dtype != value.dtype:
            raise ValueError(f"{key} of {what} has another shape")


def _groups(opt) -> list[dict]:
    """Return the hyper-parameters by group; changing them changes those of the optimiser."""
    return opt.opt.param_groups if hasattr(opt, "opt") else list(opt.hypers)


def _hypers(group: Mapping) -> dict:
    return {k: v for k, v in group.items() if k != "params" and k not in _ENGINE}


def _by_parameter(opt):
    return opt.opt.state if hasattr(opt, "opt") else opt.state


def _optimizer_state(learn) -> dict:
    of_model = {id(p) for p in learn.model.parameters()}
    state = _by_parameter(learn.opt)
    carried = any(cb.count for cb in _accumulators(learn))
    return {
        "hypers": [_hypers(group) for group in _groups(learn.opt)],
        "parameters": [
            [
                {
                    "state": dict(state.get(p, {})),
                    # What a callback trains beside the model.
                    "value": None if id(p) in of_model else p.detach(),
                    "gradient": p.grad if carried else None,
                }
                for p in group
            ]
            for group in learn.opt.param_lists
        ],
    }


def _check_optimizer(learn, state: dict) -> None:
    of_model = {id(p) for p in learn.model.parameters()}
    if len(state["hypers"]) != len(_groups(learn.opt)):
        raise ValueError("the optimiser has another number of groups")
    for group, found in zip(learn.opt.param_lists, state["parameters"], strict=True):
        for p, entry in zip(group, found, strict=True):
            value = entry["value"]
            tensors = {k: v for k, v in entry["state"].items() if k in _LIKE_PARAMETER}
            if (value is None) != (id(p) in of_model):
                raise ValueError("the optimiser trains other parameters")
            for v in (value, entry.get("gradient"), *tensors.values()):
                if v is not None and v.shape != p.shape:
                    raise ValueError("the state of the optimiser has another shape")


@torch.no_grad()
def _restore_optimizer(learn, state: dict) -> None:
    groups, by_parameter = _groups(learn.opt), _by_parameter(learn.opt)
    for group, hypers in zip(groups, state["hypers"], strict=True):
        for key, value in hypers.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    for i, (group, found) in enumerate(
        zip(learn.opt.param_lists, state["parameters"], strict=True)
    ):
        on_device = any(groups[i].get(k) for k in ("fused", "capturable"))
        for p, entry in zip(group, found, strict=True):
            if entry["value"] is not None:
                p.copy_(entry["value"])
            if entry.get("gradient") is not None:
                p.grad = torch.empty_like(p).copy_(entry["gradient"])
            if entry["state"]:
                kept = {k: _placed(k, v, p, on_device) for k, v in entry["state"].items()}
                by_parameter[p] = kept


def _placed(key: str, value, p: nn.Parameter, on_device: bool):
    """Put the state of a parameter where the optimiser would have it, in memory too."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":  # torch counts on the CPU, unless one kernel does it all
        return value.to(p.device) if on_device else value
    if value.shape == p.shape:
        # With the strides of the parameter, which torch's kernels rely on; safetensors has none.
        return torch.empty_like(p, dtype=value.dtype).copy_(value)
    return value.to(p.device)


def _loader_state(dl) -> dict:
    sampler = getattr(dl, "sampler", None)
    generator = getattr(sampler, "generator", None)
    own = getattr(dl, "rng", None)
    return {
        "epoch": getattr(dl, "epoch", None),
        "random": _python_state(own) if isinstance(own, random.Random) else None,
        "generator": generator.get_state() if isinstance(generator, torch.Generator) else None,
        "sampler": sampler.state_dict() if hasattr(type(sampler), "load_state_dict") else None,
    }


def _restore_loader(dl, state: dict) -> None:
    if state["epoch"] is not None:
        dl.epoch = state["epoch"]
    if state["random"] is not None:
        _restore_python(dl.rng, state["random"])
    if state["generator"] is not None:
        dl.sampler.generator.set_state(state["generator"])
    if state["sampler"] is not None:
        dl.sampler.load_state_dict(state["sampler"])


def _random_state() -> dict:
    name, keys, *rest = np.random.get_state()
    devices = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = torch.cuda.get_rng_state_all()
    return {
        "torch": torch.get_rng_state(),
        "cuda": devices,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": _python_state(random),
    }


def _restore_random(state: dict) -> None:
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    _restore_python(random, state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        else:
            _log.warning("there are other CUDA devices than before: their draws begin anew")


def _python_state(source) -> list:
    version, numbers, gauss = source.getstate()
    return [version, torch.tensor(numbers, dtype=torch.int64), gauss]


def _restore_python(target, state: list) -> None:
    version, numbers, gauss = state
    target.setstate((version, tuple(numbers.tolist()), gauss))


def _take_apart(value, name: str, tensors: dict[str, Tensor]):
    """Replace the tensors of a state by their names; return what JSON can hold."""
    if isinstance(value, Tensor):
        name = name or "tensor"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the state {name} has the key {key!r}; keys must be text")
        return {k: _take_apart(v, f"{name}/{k}" if name else k, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_take_apart(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    raise TypeError(
        f"the state {name} must be made of tensors, numbers, text, lists and dictionaries, got a "
        f"{type(value).__name__}"
    )


def _put_together(value, tensors: Mapping[str, Tensor]):
    """Undo `_take_apart`."""
    if isinstance(value, list):
        return [_put_together(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$tensor"}:
        return tensors[value["$tensor"]]
    if value.keys() == {"$number"}:
        return float(value["$number"])
    return {k: _put_together(v, tensors) for k, v in value.items()}
