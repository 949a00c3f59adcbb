"""The state of a fit for a `Checkpoint`: taken from a learner, restored, and split for files."""

import logging
import math
import random
from collections.abc import Mapping

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch import Tensor, nn

from ltlearn.training.fit_callback import declared

__all__ = [
    "frozen_names",
    "hyper_parameters",
    "join_state",
    "restore_state",
    "split_state",
    "state_of",
]

_log = logging.getLogger("ltlearn")
# Implementation flags of optimisers: they depend on the machine and do not affect the result.
_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
# Entries of an optimiser's state that have the shape of their parameter.
_SHAPED_ENTRIES = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_avg",
                   "sqr_avg")  # fmt: skip


# ------------------------------------------------ the whole state


def state_of(learn) -> dict:
    """Return the state of a fit at the end of an epoch: tensors, numbers, text, lists and dicts.

    It has no weights that are frozen for the fit, see `frozen_names`.

    Args:
        learn: The learner.
    """
    state = {
        "model": dict(learn.model.state_dict()),
        "optimizer": _optimizer_state(learn),
        "accumulated": [cb.count for cb in _accumulators(learn)],
        "callbacks": {cb.name: cb.state_dict() for cb in _with_state(learn)},
        "loaders": [_loader_state(dl) for dl in learn.dls.loaders],
        "random": _random_state(),
    }
    return _without(state, frozen_names(learn))


def frozen_names(learn) -> frozenset[str]:
    """Return the names of the model's parameters that a callback of the fit keeps frozen.

    Args:
        learn: The learner.
    """
    if not any(declared(cb, "keeps_trunk") for cb in learn.cbs):
        return frozenset()
    return frozenset(n for n, p in learn.model.named_parameters() if not p.requires_grad)


def _without(value, names: frozenset[str]):
    """Leave tensors out of the state dicts of the model in a state."""
    if isinstance(value, list):
        return [_without(v, names) for v in value]
    if not isinstance(value, dict) or not names:
        return value
    return {k: _without(v, names) for k, v in value.items() if k not in names}


def _with_frozen(value, frozen: Mapping[str, Tensor], others: set[str]):
    """Add the frozen tensors to each dictionary of a state that has all other tensors."""
    if isinstance(value, list):
        return [_with_frozen(v, frozen, others) for v in value]
    if not isinstance(value, dict) or not frozen:
        return value
    if others <= value.keys():
        return {**value, **frozen}
    return {k: _with_frozen(v, frozen, others) for k, v in value.items()}


def restore_state(learn, state: dict) -> None:
    """Restore the state of a fit; leave the learner unchanged if the state does not fit.

    Args:
        learn: The learner.
        state: A result of `state_of`, tensors on the CPU.

    Raises:
        ValueError: If the state belongs to another model, optimiser, or set of callbacks.
    """
    model, names = learn.model.state_dict(), frozen_names(learn)
    state = _with_frozen(state, {k: model[k] for k in names}, model.keys() - names)
    _check_tensors("the model", state["model"], model)
    _check_optimizer(learn, state["optimizer"])
    callbacks = {cb.name: cb for cb in _with_state(learn)}
    if callbacks.keys() != state["callbacks"].keys():
        raise ValueError(f"its callbacks are {sorted(state['callbacks'])}, not {sorted(callbacks)}")
    if len(state["loaders"]) != len(learn.dls.loaders):
        raise ValueError("it has another number of loaders")
    before = {
        "callbacks": {name: cb.state_dict() for name, cb in callbacks.items()},
        "loaders": [_loader_state(dl) for dl in learn.dls.loaders],
        "random": _random_state(),
    }
    try:
        _restore_parts(learn, callbacks, state)
    except Exception:
        _restore_parts(learn, callbacks, before)
        raise
    learn.model.load_state_dict(state["model"])
    _restore_optimizer(learn, state["optimizer"])
    # Checkpoints of older versions have no such entry.
    for cb, count in zip(_accumulators(learn), state.get("accumulated", ()), strict=False):
        cb.count = count


def _restore_parts(learn, callbacks: dict[str, Callback], state: dict) -> None:
    for name, cb in callbacks.items():
        cb.load_state_dict(state["callbacks"][name])
    for dl, loader_state in zip(learn.dls.loaders, state["loaders"], strict=True):
        _restore_loader(dl, loader_state)
    _restore_random(state["random"])


def _accumulators(learn) -> list[Callback]:
    """List the callbacks that carry gradients over from one epoch to the next."""
    return [cb for cb in learn.cbs if isinstance(cb, GradientAccumulation)]


def _with_state(learn) -> list[Callback]:
    # Read from the class: an instance passes unknown attributes on to the learner.
    return [cb for cb in learn.cbs if hasattr(type(cb), "load_state_dict")]


def _check_tensors(owner: str, saved: Mapping, current: Mapping) -> None:
    if saved.keys() != current.keys():
        raise ValueError(f"{owner} has other tensors, such as {min(saved.keys() ^ current.keys())}")
    for key, value in current.items():
        if saved[key].shape != value.shape or saved[key].dtype != value.dtype:
            raise ValueError(f"{key} of {owner} has another shape")


# ------------------------------------------------ the optimiser


def hyper_parameters(opt) -> list[dict]:
    """Return the hyper-parameters of an optimiser, one dictionary per group.

    Args:
        opt: An optimiser of fastai, or one of torch in fastai's `OptimWrapper`.
    """
    return [_hypers(group) for group in _groups(opt)]


def _groups(opt) -> list[dict]:
    """Return the hyper-parameters by group; changing them changes the optimiser."""
    return opt.opt.param_groups if hasattr(opt, "opt") else list(opt.hypers)


def _hypers(group: Mapping) -> dict:
    return {k: v for k, v in group.items() if k != "params" and k not in _IMPLEMENTATION}


def _states(opt) -> dict:
    """Return the state of an optimiser by parameter."""
    return opt.opt.state if hasattr(opt, "opt") else opt.state


def _optimizer_state(learn) -> dict:
    of_model = {id(p) for p in learn.model.parameters()}
    states = _states(learn.opt)
    carried = any(cb.count for cb in _accumulators(learn))
    return {
        "hypers": hyper_parameters(learn.opt),
        "parameters": [
            [
                {
                    "state": dict(states.get(p, {})),
                    # A callback may train parameters that the model does not have.
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
    for group, entries in zip(learn.opt.param_lists, state["parameters"], strict=True):
        for p, entry in zip(group, entries, strict=True):
            value = entry["value"]
            tensors = {k: v for k, v in entry["state"].items() if k in _SHAPED_ENTRIES}
            if (value is None) != (id(p) in of_model):
                raise ValueError("the optimiser trains other parameters")
            for v in (value, entry.get("gradient"), *tensors.values()):
                if v is not None and v.shape != p.shape:
                    raise ValueError("the state of the optimiser has another shape")


@torch.no_grad()
def _restore_optimizer(learn, state: dict) -> None:
    groups, states = _groups(learn.opt), _states(learn.opt)
    for group, hypers in zip(groups, state["hypers"], strict=True):
        for key, value in hypers.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    saved = zip(learn.opt.param_lists, state["parameters"], strict=True)
    for i, (group, entries) in enumerate(saved):
        on_device = any(groups[i].get(k) for k in ("fused", "capturable"))
        for p, entry in zip(group, entries, strict=True):
            if entry["value"] is not None:
                p.copy_(entry["value"])
            if entry.get("gradient") is not None:
                p.grad = torch.empty_like(p).copy_(entry["gradient"])
            if entry["state"]:
                states[p] = {k: _placed(k, v, p, on_device) for k, v in entry["state"].items()}


def _placed(key: str, value, p: nn.Parameter, on_device: bool):
    """Return an entry of a parameter's state on the device and with the strides it needs."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":  # torch counts on the CPU, except in fused and capturable optimisers
        return value.to(p.device) if on_device else value
    if value.shape == p.shape:
        # torch's kernels need the strides of the parameter, which safetensors does not keep.
        return torch.empty_like(p, dtype=value.dtype).copy_(value)
    return value.to(p.device)


# ------------------------------------------------ loaders and random numbers


def _loader_state(dl) -> dict:
    sampler = getattr(dl, "sampler", None)
    generator = getattr(sampler, "generator", None)
    rng = getattr(dl, "rng", None)
    return {
        "epoch": getattr(dl, "epoch", None),
        "random": _python_state(rng) if isinstance(rng, random.Random) else None,
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
            _log.warning(
                "the number of CUDA devices has changed: the checkpoint's CUDA random state is not "
                "used"
            )


def _python_state(source) -> list:
    version, numbers, gauss = source.getstate()
    return [version, torch.tensor(numbers, dtype=torch.int64), gauss]


def _restore_python(target, state: list) -> None:
    version, numbers, gauss = state
    target.setstate((version, tuple(numbers.tolist()), gauss))


# ------------------------------------------------ tensors apart from the rest


def split_state(value, name: str, tensors: dict[str, Tensor]):
    """Move the tensors of a state to a dictionary; return the rest, which JSON can hold.

    Args:
        value: The state, or a part of it.
        name: Name of the part; empty for the whole state.
        tensors: Gets each tensor under its name; the rest refers to the name.

    Raises:
        TypeError: If the state holds anything but tensors, numbers, text, lists and dictionaries.
    """
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
        return {k: split_state(v, f"{name}/{k}" if name else k, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [split_state(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    raise TypeError(
        f"the state {name} must be made of tensors, numbers, text, lists and dictionaries, got a "
        f"{type(value).__name__}"
    )


def join_state(value, tensors: Mapping[str, Tensor]):
    """Undo `split_state`.

    Args:
        value: The rest that it returned, or a part of it.
        tensors: The tensors by name.

    Raises:
        KeyError: If a tensor is missing.
    """
    if isinstance(value, list):
        return [join_state(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$tensor"}:
        return tensors[value["$tensor"]]
    if value.keys() == {"$number"}:
        return float(value["$number"])
    return {k: join_state(v, tensors) for k, v in value.items()}
