"""The training loop: fastai's, but quiet, faster and safe to interrupt."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from fastai.callback.core import Callback, CancelEpochException, event
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import TrackerCallback
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner, Recorder, join_path_file
from fastai.optimizer import OptimWrapper
from fastai.torch_core import defaults, find_bs
from fastcore.basics import listify, noop
from torch import Tensor, nn

from ltlearn.errors import UserError, spell
from ltlearn.training.history import Trajectory
from ltlearn.training.progress import EpochProgress
from ltlearn.utils.progress import hide_progress
from ltlearn.utils.stored_weights import check_saved_learner
from ltlearn.utils.system_errors import is_out_of_memory, reason_of

__all__ = [
    "sgd",
    "fused_update_of",
    "groups_of_sgd",
    "momentum_of",
    "listed_callbacks",
    "memory_to_user_error",
    "oom_to_user_error",
    "QuietLearner",
    "LossScaling",
]


def sgd(momentum: float = 0.9, nesterov: bool = False):
    """Return torch's SGD as fastai's `opt_func`.

    It adds weight decay to the gradient, as all published code does.

    Args:
        momentum: Share of the last step in the next, in [0, 1).
        nesterov: Whether to use Nesterov's momentum.
    """
    return partial(_Wrapped, opt=_SGD, momentum=momentum, nesterov=nesterov)


class _Wrapped(OptimWrapper):
    """fastai's wrapper without hyper-parameters that are None, which fastai's loggers reject."""

    @property
    def hypers(self):
        return [{k: v for k, v in h.items() if v is not None} for h in super().hypers]


class _SGD(torch.optim.SGD):
    """torch's SGD with its fused kernel. On a CPU a step is one kernel, not three per parameter."""

    def __init__(self, params, *args, **kwargs):
        params = list(params)
        group = params[0] if params else None
        first = group["params"] if isinstance(group, dict) else params
        fused = all((p.is_cpu or p.is_cuda) and p.dtype.is_floating_point for p in first)
        super().__init__(params, *args, **{"fused": True if fused else None, **kwargs})

    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                self._complete_momentum(group["params"])
        return super().step(closure)

    def _complete_momentum(self, params: list[nn.Parameter]) -> None:
        # The fused kernel needs momentum for all parameters of a group or for none. A parameter
        # that was frozen until now has none; zeros have the effect of a first step.
        trained = [p for p in params if p.grad is not None]
        missing = [p for p in trained if self.state[p].get("momentum_buffer") is None]
        if missing and len(missing) < len(trained):
            for p in missing:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)


def fused_update_of(opt) -> Callable[[list[Tensor], list[Tensor], list[Tensor]], None] | None:
    """Return a function that takes a step of `sgd()` from given gradients.

    It changes tensors and their momenta as `opt.step()` does, in less time. The learning rate is
    read once, so the function is good for one epoch.

    Args:
        opt: The optimiser of a Learner.

    Returns:
        A function of tensors, their gradients and their momenta; None if `opt` is no `sgd()` with
        momentum and one group of parameters on the CPU.
    """
    groups = groups_of_sgd(opt)
    if groups is None or len(groups) != 1:
        return None
    (group,) = groups
    if not (group["fused"] and group["momentum"]) or group["maximize"] or group["dampening"]:
        return None
    if not all(p.is_cpu for p in group["params"]):
        return None
    settings = {
        key: group[key] for key in ("weight_decay", "momentum", "lr", "dampening", "nesterov")
    }

    def update(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> None:
        torch._fused_sgd_(params, grads, momenta, **settings, maximize=False, is_first_step=False)

    return update


def momentum_of(opt, p: Tensor) -> Tensor:
    """Return the momentum of a parameter. Before its first step it has none, and zeros are made.

    Zeros give the same first step, because the dampening of `sgd()` is 0.

    Args:
        opt: An optimiser that `sgd()` made, with momentum.
        p: The parameter.
    """
    state = opt.opt.state[p]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(p)
    return state["momentum_buffer"]


def groups_of_sgd(opt) -> list[dict] | None:
    """Return the groups of torch's optimiser if `sgd()` made it, else None.

    Args:
        opt: The optimiser of a Learner.
    """
    own = getattr(opt, "opt", None)
    return own.param_groups if type(opt) is _Wrapped and type(own) is _SGD else None


def listed_callbacks(cbs) -> list[Callback]:
    """Return callbacks as a list of instances.

    Args:
        cbs: One callback or several, classes or instances; None for none.

    Raises:
        UserError: If one of them is no fastai callback.
    """
    cbs = listify(cbs)
    for cb in cbs:
        if not (isinstance(cb, Callback) or (isinstance(cb, type) and issubclass(cb, Callback))):
            raise UserError(f"cbs must be fastai callbacks, classes or instances, got {cb!r}.")
    return [cb() if isinstance(cb, type) else cb for cb in cbs]


@contextmanager
def oom_to_user_error(batch: int):
    """Turn an out-of-memory error inside the block into a `UserError` with a remedy.

    Args:
        batch: Images per batch.

    Raises:
        UserError: If the memory of the device or of the machine is not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if "DataLoader worker" in str(e):
            raise UserError(
                f"a process that reads images has died ({reason_of(e)}); the memory may not be "
                f"enough: give fewer processes ({spell('num_workers')}), 0 for none."
            ) from e
        if not is_out_of_memory(e):
            raise
        on_device = isinstance(e, torch.OutOfMemoryError)
        remedy = "try smaller images or a smaller model"
        if batch > 1:
            half = batch // 2
            remedy = f"try bs={half}, which a recipe sets by {spell('stage1.batch_size', half)}"
        raise UserError(
            f"the memory of {'the device' if on_device else 'this machine'} is not enough for a "
            f"batch size of {batch}: {remedy}."
        ) from e


@contextmanager
def memory_to_user_error():
    """Turn an out-of-memory error inside the block, outside of batches, into a `UserError`.

    Raises:
        UserError: If the memory is not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(
            f"the memory is not enough ({reason_of(e)[:200]}): give a smaller model "
            f"({spell('arch')}, {spell('width')}), smaller images ({spell('size')}) or smaller "
            f"batches ({spell('bs')})."
        ) from e


@contextmanager
def _tuned_convolutions(dl):
    """Let cuDNN try its convolutions, and keep the fastest, for images of one shape on CUDA."""
    cudnn = torch.backends.cudnn
    on_cuda = getattr(getattr(dl, "device", None), "type", "") == "cuda"
    one_shape = hasattr(getattr(dl, "dataset", None), "shape")
    exact = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    before = cudnn.benchmark
    cudnn.benchmark = before or (on_cuda and one_shape and not exact)
    try:
        yield
    finally:
        cudnn.benchmark = before


class _SmoothLoss(AvgSmoothLoss):
    """fastai's smoothed loss, without a wait for the device at each step."""

    def accumulate(self, learn):
        loss = learn.loss.detach().mean()
        # The first value is a zero on the CPU.
        last = self.val.to(loss) if self.count else torch.zeros_like(loss)
        self.count += 1
        self.val = torch.lerp(loss, last, self.beta)

    def accumulate_all(self, losses: list[float]) -> list[float]:
        """Add losses, and return the value after each."""
        values, mean = [], float(self.val)
        for loss in losses:
            self.count += 1
            mean = loss + self.beta * (mean - loss)
            values.append(mean / (1 - self.beta**self.count))
        self.val = torch.tensor(mean)
        return values

    @property
    def value(self):
        # The recorder keeps a value per step. A small tensor between large temporary ones would
        # fragment the heap, and memory would grow with the steps; a Python float does not.
        value = super().value
        return value.item() if value.device.type == "cpu" else value


class _MeanLoss(AvgLoss):
    """fastai's mean of the validation loss, without a wait for the device at each batch."""

    def accumulate(self, learn):
        n = find_bs(learn.yb)
        self.total += learn.loss.detach().mean() * n
        self.count += n


class _Text(str):
    """A string with attributes."""


def _shows_progress(cb: Callback | type[Callback]) -> bool:
    return isinstance(cb, ProgressCallback) or cb is ProgressCallback


def _order_of(cb: Callback) -> float:
    return cb.order


class QuietLearner(Learner):
    """A fastai Learner that prints nothing and whose callbacks clean up however a fit ends."""

    first_epoch = 0  # the first epoch of this fit; a `Checkpoint` that resumes sets a later one

    def __init__(self, *args, cbs=None, default_cbs=True, **kwargs):
        usual = [cb for cb in defaults.callbacks if cb is not ProgressCallback]
        cbs = [*listed_callbacks(usual if default_cbs else None), *listed_callbacks(cbs)]
        super().__init__(*args, cbs=cbs, default_cbs=False, **kwargs)
        self._show_progress()
        for cb in self.cbs:
            if isinstance(cb, Recorder):
                cb.smooth_loss, cb.loss = _SmoothLoss(), _MeanLoss()

    @property
    def smooth_loss(self) -> Tensor:
        """Return the smoothed training loss; fastai's callbacks ask for a tensor."""
        return torch.as_tensor(self._smooth_loss)

    @smooth_loss.setter
    def smooth_loss(self, value: float | Tensor) -> None:
        self._smooth_loss = value

    def add_cb(self, cb):
        """Add a callback. With fastai's `ProgressCallback` the learner is not quiet.

        Args:
            cb: The callback, an instance or a class.
        """
        super().add_cb(cb)
        if _shows_progress(cb):
            self._show_progress()
        return self

    def remove_cb(self, cb):
        """Remove a callback, or all of a class.

        Args:
            cb: The callback, an instance or a class.
        """
        super().remove_cb(cb)
        if _shows_progress(cb):
            self._show_progress()
        return self

    def gather_args(self) -> dict[str, str]:
        """Return the settings of the learner as text, for fastai's `WandbCallback`."""
        loss, train = self.loss_func, self.dls.train
        settings = {
            "arch": getattr(self, "arch", type(self.model).__name__),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "precision": getattr(self, "precision", "fp32"),
            "batch size": getattr(train, "bs", None),
            "batches per epoch": len(train),
            "sampler": getattr(train, "sampler_name", None),
            "split": getattr(self.dls, "split", None),
            "loss": getattr(loss, "__name__", type(loss).__name__),
            "callbacks": ", ".join(type(cb).__name__ for cb in self.cbs),
        }
        # fastai asks each value for its attributes, and a plain string has none.
        return {name: _Text(value) for name, value in settings.items()}

    def _show_progress(self) -> None:
        """Let fastai print a line per epoch if it has a `ProgressCallback`."""
        self.create_mbar = any(_shows_progress(cb) for cb in self.cbs)
        if self.logger in (noop, print):  # a callback may have set its own
            self.logger = print if self.create_mbar else noop

    def __call__(self, event_name):
        """Call the callbacks that handle an event, or several."""
        # fastai calls every callback for every event and builds lists for it. With its method, a
        # step of `python benchmarks/samn_overhead.py --on features` takes 1.5 times as long.
        for name in [event_name] if isinstance(event_name, str) else list(event_name):
            if not hasattr(event, name):
                raise ValueError(f"fastai has no event {name!r}")
            for cb in sorted(self.cbs, key=_order_of):
                if name == "before_fit" and isinstance(cb, TrackerCallback):
                    self._check_monitor(cb)
                if name == "after_fit" or hasattr(type(cb), name) or name in vars(cb):
                    cb(name)

    def _check_monitor(self, cb: TrackerCallback) -> None:
        """Raise if a callback of fastai monitors what is not measured; fastai names neither."""
        names = [n for n in self.recorder.metric_names[1:] if n != "time"]
        if cb.monitor not in names:
            raise UserError(
                f"{type(cb).__name__} has monitor={cb.monitor!r}, but this fit measures "
                f"{', '.join(names)}; give one of them, or give the learner such a metric."
            )

    def to_detach(self, b, cpu=True, gather=True):
        """Detach a batch. fastai would gather it from all ranks, which have the same."""
        return super().to_detach(b, cpu, gather=False)

    @contextmanager
    def no_bar(self):
        """Show no progress inside the block, neither fastai's nor ours."""
        shown = [cb for cb in self.cbs if _shows_progress(cb)]
        self.remove_cbs(shown)
        try:
            with hide_progress():
                yield self
        finally:
            self.add_cbs(shown)

    def load(self, file, *args, **kwargs):
        """Load a file that `save` wrote, as fastai does; refuse one that could run code."""
        source = join_path_file(file, self.path / self.model_dir, ext=".pth")
        # With `weights_only=False`, the user trusts the file. fastai reports a missing one.
        trusted = kwargs.get("weights_only") is False
        if not trusted and (hasattr(source, "read") or os.path.isfile(source)):
            check_saved_learner(source)
        return super().load(file, *args, **kwargs)

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Train as fastai's `Learner.fit` does, and close the callbacks however the fit ends."""
        with self._prepared(cbs) as listed:
            super().fit(n_epoch, lr, wd, listed, reset_opt, start_epoch)

    @contextmanager
    def _prepared(self, cbs) -> Iterator[list[Callback]]:
        """Yield the callbacks of the fit inside the block, and close them at its end."""
        cbs = listed_callbacks(cbs)
        everyone = [*self.cbs, *cbs]
        draws = any(isinstance(cb, ShowGraphCallback) for cb in everyone)
        if draws and not any(map(_shows_progress, everyone)):
            # The graph is drawn into the display of this callback.
            cbs.insert(0, ProgressCallback())
        if not any(isinstance(cb, EpochProgress) for cb in everyone):
            cbs.append(EpochProgress())
        self.first_epoch = 0
        metrics, logger = self.metrics, self.logger
        for cb in cbs:
            if isinstance(cb, Trajectory):
                self.metrics = [*metrics, *cb.as_metrics()]
        try:
            train = self.dls.train
            with oom_to_user_error(getattr(train, "bs", 1)), _tuned_convolutions(train):
                yield cbs
        finally:
            self.metrics, self.logger = metrics, logger
            for cb in [*self.cbs, *cbs]:
                if hasattr(type(cb), "close"):
                    cb.close()
            for cb in self.cbs:
                # A fit that raised at its start has recorded nothing.
                if isinstance(cb, Recorder) and vars(cb).get("losses"):
                    on_device = all(isinstance(loss, Tensor) for loss in cb.losses)
                    losses = torch.stack(cb.losses).cpu() if on_device else torch.tensor(cb.losses)
                    cb.losses = list(losses)
            # An interrupted step or accumulation leaves gradients, which the next fit must not add.
            self.model.zero_grad(set_to_none=True)

    def _do_fit(self):
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)


class LossScaling(MixedPrecision):
    """fastai's scaling of losses and gradients, without its autocast.

    The learner itself runs the model in autocast: fastai enters autocast in one event and leaves it
    in another, which an interrupted batch never reaches.
    """

    def before_batch(self):
        """Enter no autocast."""

    def after_loss(self):
        """Leave no autocast."""

    def state_dict(self) -> dict:
        """Return the state of the scaler, for a checkpoint."""
        return self.learn.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the state of the scaler."""
        self.learn.scaler.load_state_dict(state)
