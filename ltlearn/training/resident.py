"""The resident loop: training steps as functions of tensors on the device, without events."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial

import torch
from fastai.callback.core import CancelBatchException
from torch import Tensor, nn

from ltlearn.data.datasets import NormalizeUint8
from ltlearn.data.loader import LTDataLoader
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.loop import groups_of_sgd, momentum_of
from ltlearn.training.resident_form import ResidentForm, ResidentStep, form_of
from ltlearn.training.resident_graph import CannotCapture, StepGraphs, counts_batches
from ltlearn.training.steps import REPORTED, count_steps, is_replaced, record_losses
from ltlearn.utils import ranks

__all__ = ["ResidentLoop", "reason_for_events"]

_log = logging.getLogger("ltlearn")


def reason_for_events(learn) -> str:
    """Return why the training steps of a learner need events; empty if they do not.

    Args:
        learn: An `ImageLearner` in the training half of an epoch.
    """
    if ranks.world() > 1:
        return "several processes train together"
    if groups_of_sgd(learn.opt) is None:
        return "the optimiser is not one of ltlearn's sgd()"
    for cb in learn.cbs:
        if not is_replaced(cb) and form_of(cb) is None:
            return f"{type(cb).__name__} handles the events of a step and has no resident form"
    if any(counts_batches(m) and m.momentum is None for m in learn.model.modules()):
        return "a batch normalisation without momentum reads its count of batches"
    return _reason_of_loader(learn.dl, next(learn.model.parameters()).device)


def _reason_of_loader(dl, device: torch.device) -> str:
    data = getattr(dl, "dataset", None)
    for own in (dl, data):
        if not type(own).__module__.startswith("ltlearn."):
            return f"{type(own).__name__} may change what a batch consists of"
    if not isinstance(dl, LTDataLoader) or not hasattr(type(data), "take"):
        return "the images are not held decoded in memory"
    if [type(tfm) for tfm in dl.after_batch.fs] != [NormalizeUint8]:
        return "the loader has batch transforms"
    if dl.stored().targets.device.type != device.type:
        return f"the images are not on {device}"
    return ""


def _parts(learn) -> list:
    """Return the callbacks of a learner, and which of them are off."""
    return [obj for cb in learn.cbs for obj in (cb, bool(cb.run), bool(cb.run_train))]


class ResidentLoop:
    """Take the training steps of a fit without events, with all tensors on the device.

    The random draws of an epoch are made at once, by the same seeds as in the loop with events, and
    a step reads its row. So both loops train the same weights up to rounding. On CUDA a step is
    captured as a graph, unless a callback or the model prevents it.

    Attributes: `captured` (whether the last step was captured).

    Args:
        learn: An `ImageLearner` in the training half of an epoch, for which `reason_for_events`
            is empty.
        capture: Whether to capture steps on CUDA.
    """

    def __init__(self, learn, capture: bool = True):
        self._learn, self._parts, self._opt = learn, _parts(learn), learn.opt
        self._device = next(learn.model.parameters()).device
        in_order = sorted(learn.cbs, key=lambda cb: cb.order)
        forms = [(cb.order, form_of(cb)) for cb in in_order if not is_replaced(cb)]
        # Most callbacks do nothing in a step.
        self._ordered = [(order, form) for order, form in forms if type(form) is not ResidentForm]
        self._forms: list[ResidentForm] = [form for _, form in self._ordered]
        self._number = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._losses = torch.zeros(0, device=self._device)
        # The draws of an epoch, one row per step: of the loader, and of each form.
        self._table: dict[str, Tensor] = {}
        self._tables: list[dict[str, Tensor]] = [{} for _ in self._forms]
        self._views: list[str] = []
        self._data = None
        self._rates: list[float | Tensor] = []
        on_cuda = self._device.type == "cuda"
        self._capture = capture and on_cuda and all(form.captures for form in self._forms)
        self._graphs = StepGraphs(self._step_for_graph, self._state, self._device)
        self._on_cuda, self._fixed_before, self.captured = on_cuda, None, False
        # What an earlier training left here holds its graph of gradients, whose nodes belong to
        # the stream of that training. A backward pass that is captured must not meet them.
        learn.pred = learn.loss = learn.loss_grad = None

    def fits(self) -> bool:
        """Return whether the learner is still the one the loop was made for.

        A callback may exchange callbacks, optimiser, model or data between two epochs.
        """
        learn = self._learn
        now, then = [*_parts(learn), learn.opt], [*self._parts, self._opt]
        same = len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
        return same and not _reason_of_loader(learn.dl, self._device)

    def run_epoch(self) -> None:
        """Take the steps of an epoch."""
        learn, dl = self._learn, self._learn.dl
        sizes = self._begin_epoch(dl)
        learn.n_iter, taken, finished = len(sizes), 0, []
        every = min([REPORTED, *(form.look_every or REPORTED for form in self._forms)])
        counted = looked = 0
        try:
            with self._graphs.counting(learn.model) if self._on_cuda else nullcontext():
                for size in sizes:
                    learn.iter = taken
                    if self._take_step(size):
                        finished.append(size)
                    taken += 1
                    if taken % every == 0 or taken == len(sizes):
                        for form in self._forms:
                            form.after_steps(finished[looked:])
                        count_steps(learn, sizes[counted:taken])
                        counted, looked = taken, len(finished)
        except BaseException:
            # The device itself may have failed.
            with suppress(Exception):
                count_steps(learn, sizes[counted:taken])
                self._end_epoch(taken, len(finished))
            raise
        self._end_epoch(taken, len(finished))
        self._fixed_before = self._fixed() if self.captured else None
        dl.epoch += 1  # as a pass over the loader does

    def _begin_epoch(self, dl) -> Sequence[int]:
        """Make all draws of the epoch, and send them to the device."""
        dl.randomize()
        dl.before_iter()
        drawn = dl.draws(dl.epoch)
        self._data = dl.stored()
        # torch's loader draws a seed for its workers. The same draw here leaves the numbers of a
        # model that draws unchanged.
        torch.empty((), dtype=torch.int64).random_()
        views = {f"view {i}": values for i, values in enumerate(drawn.views)}
        own = {"index": drawn.index, "share": drawn.share, "box": drawn.box, **views}
        self._fill(self._table, {k: v for k, v in own.items() if v is not None})
        self._views = list(views)
        for form, table in zip(self._forms, self._tables, strict=True):
            self._fill(table, form.begin_epoch(drawn.sizes))
        if len(self._losses) != len(drawn.sizes):
            self._losses = torch.zeros(len(drawn.sizes), device=self._device)
            self._graphs.forget()
        self._number.zero_()
        self._set_rates()
        if self._capture and self._fixed() != self._fixed_before:
            self._graphs.forget()
        return drawn.sizes

    def _fill(self, table: dict[str, Tensor], columns: dict[str, Tensor]) -> None:
        """Send the columns of a table to the device, to the place that graphs read."""
        for name, values in columns.items():
            if values.dtype == torch.float64:
                values = values.float()
            if name not in table or table[name].shape != values.shape:
                table[name] = torch.empty_like(values, device=self._device)
                self._graphs.forget()
            table[name].copy_(values, non_blocking=True)

    def _row(self, table: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.index_select(0, self._number)[0] for name, t in table.items()}

    def _set_rates(self) -> None:
        rates = [group["lr"] for group in groups_of_sgd(self._learn.opt)]
        if not self._on_cuda:
            self._rates = rates
            return
        if len(self._rates) != len(rates):
            self._rates = [torch.zeros((), device=self._device) for _ in rates]
        for tensor, rate in zip(self._rates, rates, strict=True):
            tensor.fill_(rate)

    def _end_epoch(self, taken: int, finished: int) -> None:
        record_losses(self._learn, self._losses[:taken].tolist())
        if taken:
            self._learn.loss = self._losses[taken - 1].clone()
        for form in self._forms:
            form.end_epoch(finished)

    def _take_step(self, size: int) -> bool:
        """Take a step; return whether it was not skipped."""
        if self._capture:
            try:
                self._graphs.step(size, self._learn.model)
                self.captured = True
                return True
            except CannotCapture as e:
                self._capture, self.captured = False, False
                _log.info(
                    "a training step cannot be captured as a CUDA graph, so its kernels are "
                    "launched one by one (%s)", e,
                )  # fmt: skip
                _log.debug("where the capture failed:", exc_info=e.__cause__ or e)
        try:
            self._step(size)
        except CancelBatchException:
            return False
        return True

    # ------------------------------------------------ a step

    def _step(self, size: int, **purpose: bool) -> None:
        step = self._load(size, **purpose)
        try:
            for form in self._forms:
                form.before_batch(step)
            self._backward(step)
            for form in self._forms:
                form.after_backward(step)
            self._update()
            for form in self._forms:
                form.after_step(step)
        finally:
            self._learn.opt.zero_grad()
            # A cycle would keep the tensors of the step until Python looks for cycles.
            step.again = None
            if step.loss is not None:
                loss = step.loss.detach().mean().float()
                self._losses.index_copy_(0, self._number, loss[None])
            self._number.add_(1)

    def _step_for_graph(self, size: int, captured: bool) -> None:
        if captured:
            self._step(size, captured=True, for_graph=True)
            return
        number = self._number.clone()
        self._step(size, for_graph=True)
        self._number.copy_(number)  # the draws of another row may not fit the batch

    def _load(self, size: int, **purpose: bool) -> ResidentStep:
        """Return a step with its images."""
        row, dl = self._row(self._table), self._learn.dl
        index = row["index"][:, :size]
        views = tuple(row[name][:, :size].reshape(-1) for name in self._views)
        x, *targets = dl.after_batch(self._data.take(index.reshape(-1), views))
        if len(index) > 1:  # the images, and those to mix in
            targets = [targets[0][:size], targets[0][-size:]]
        for form, table in zip(self._forms, self._tables, strict=True):
            form.row = self._row(table)
        step = ResidentStep(
            size, self._number, x, tuple(targets),
            share=row.get("share"), box=row.get("box"), **purpose,
        )  # fmt: skip
        step.again = partial(self._backward, step, FiniteLoss.order)
        return step

    def _backward(self, step: ResidentStep, last_order: float = math.inf) -> None:
        """Compute loss and gradients; run the forms up to an order."""
        learn = self._learn
        own = [form for form in self._forms if form.replaces_loss]
        if own:
            own[0].compute_loss(step)
        else:
            # As in the loop with events, autocast covers the model alone.
            with learn.autocast_context():
                pred = learn.model(step.x)
            step.pred = pred if pred.dtype == torch.float32 else pred.float()
            step.loss = learn.loss_func(step.pred, step.targets[0])
        for order, form in self._ordered:
            if order <= last_order:
                form.after_loss(step)
        step.loss.backward()

    def _update(self) -> None:
        """Change weights and momenta as the optimiser's own step does."""
        opt = self._learn.opt
        for rate, group in zip(self._rates, groups_of_sgd(opt), strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            momenta = [momentum_of(opt, p) for p in params] if group["momentum"] else []
            with torch.no_grad():
                torch._fused_sgd_(
                    params, [p.grad for p in params], momenta,
                    weight_decay=group["weight_decay"], momentum=group["momentum"], lr=rate,
                    dampening=0.0, nesterov=group["nesterov"], maximize=False,
                    is_first_step=False,
                )  # fmt: skip

    # ------------------------------------------------ what a graph depends on

    def _state(self) -> list[Tensor]:
        """Return the tensors that a step changes."""
        learn = self._learn
        params = [p for group in learn.opt.param_lists for p in group]
        momenta = [learn.opt.opt.state[p].get("momentum_buffer") for p in params]
        tensors = {id(t): t for t in [*params, *learn.model.parameters(), *learn.model.buffers()]}
        return [
            *tensors.values(), *(m for m in momenta if m is not None), self._number, self._losses,
            *(t for form in self._forms for t in form.state()),
        ]  # fmt: skip

    def _fixed(self) -> "_Fixed":
        """Return what a graph fixes, apart from the tensors whose values it reads."""
        learn, groups = self._learn, groups_of_sgd(self._learn.opt)
        modules, loss = list(learn.model.modules()), learn.loss_func
        params = [p for group in groups for p in group["params"]]
        buffers = list(loss.buffers()) if isinstance(loss, nn.Module) else []
        hypers = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]
        numbers = [_numbers_of(obj) for obj in (*modules, loss)]
        return _Fixed(
            [self._data, *modules, *params, loss, *buffers],
            [p.requires_grad for p in params], hypers, numbers,
            [t.data_ptr() for t in self._state()], [form.fixed() for form in self._forms],
        )  # fmt: skip


def _numbers_of(obj) -> dict:
    """Return the attributes that Python reads in a step, such as the mode of a module."""
    own = getattr(obj, "__dict__", {})
    return {name: v for name, v in own.items() if isinstance(v, bool | int | float | str)}


class _Fixed:
    """What a graph fixes: objects, and Python values.

    Args:
        objects: The objects; the graph is wrong as soon as one is replaced.
        *values: The values.
    """

    def __init__(self, objects: list, *values):
        self._objects, self._values = objects, values

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, _Fixed)
            and len(self._objects) == len(other._objects)
            and all(a is b for a, b in zip(self._objects, other._objects, strict=True))
            and self._values == other._values
        )

    __hash__ = None
