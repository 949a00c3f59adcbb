"""A training step as CUDA graphs: captured once for each batch size, then repeated."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["CannotCapture", "StepGraphs", "counts_batches"]

_WARM_UP = 3  # steps; cuDNN chooses its algorithms, Triton compiles, buffers move to the device


class CannotCapture(Exception):
    """A step that cannot be captured.

    Args:
        reason: Why, in a few words.
    """


class StepGraphs:
    """The graphs of a training step, one for each batch size, in one pool of memory.

    A capture leaves no trace in weights, buffers, optimiser and callbacks: all values that its
    first steps change are put back.

    Args:
        run: Takes a step: with a batch size, and whether it is being captured.
        state: Returns the tensors that a step changes.
        device: The device, of type cuda.
    """

    def __init__(self, run: Callable[[int, bool], None], state: Callable[[], list[Tensor]], device):
        self._run, self._state, self._device = run, state, device
        self._graphs: dict[int, Any] = {}
        self._pool = None
        self._counters: list[Tensor] = []
        # For each batch size: batches that a step adds to each counter, and steps that were taken.
        self._added: dict[int, list[int]] = {}
        self._replays: dict[int, int] = {}

    def forget(self) -> None:
        """Release the graphs, because something that they fix has changed."""
        self._graphs, self._pool = {}, None

    def step(self, size: int, model: nn.Module) -> None:
        """Take a step.

        Args:
            size: Images in the batch.
            model: The model.

        Raises:
            CannotCapture: If the step cannot be captured; nothing has changed then.
        """
        if size not in self._graphs:
            self._graphs[size] = self._captured(size, model)
        self._graphs[size].replay()
        self._replays[size] = self._replays.get(size, 0) + 1

    def _captured(self, size: int, model: nn.Module):
        if any(map(_has_hooks, model.modules())):
            raise CannotCapture("the model has hooks")
        before = self._state()
        kept = [t.detach().clone() for t in before]
        draws = _draws(self._device)
        try:
            with warm_up(self._device):
                for _ in range(_WARM_UP):
                    self._run(size, False)
            if not _same(draws, _draws(self._device)):
                raise CannotCapture("the model draws random numbers")
            counted = [int(c) for c in self._counters]
            stream = _capture_stream(self._device)
            graph = capture(lambda: self._run(size, True), self._pool, stream)
            self._added[size] = [int(c) - n for c, n in zip(self._counters, counted, strict=True)]
        except CannotCapture:
            raise
        except Exception as e:
            raise CannotCapture(_first_line(e)) from e
        finally:
            self._put_back(before, kept)
            _restore(draws, self._device)
        self._pool = self._pool or graph.pool()
        return graph

    @torch.no_grad()
    def _put_back(self, before: list[Tensor], kept: list[Tensor]) -> None:
        known = {id(t) for t in before}
        for target, value in zip(before, kept, strict=True):
            target.copy_(value)
        for created in self._state():
            # A momentum that the first step has created.
            if id(created) not in known:
                created.zero_()

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count the batches of batch normalisation on the host inside the block.

        Each layer would launch a kernel for its counter, which nobody reads during training.

        Args:
            model: The model.
        """
        norms = [m for m in model.modules() if counts_batches(m)]
        on_device = [m.num_batches_tracked for m in norms]
        self._counters = [torch.zeros((), dtype=torch.int64) for _ in norms]
        for norm, counter in zip(norms, self._counters, strict=True):
            norm.num_batches_tracked = counter
        try:
            yield
        finally:
            for size, steps in self._replays.items():
                for counter, added in zip(self._counters, self._added[size], strict=True):
                    counter.add_(added * steps)
            for norm, own in zip(norms, on_device, strict=True):
                norm.num_batches_tracked = own
            if norms:
                torch._foreach_add_(on_device, [int(counter) for counter in self._counters])
            self._replays, self._counters = {}, []


def counts_batches(module: nn.Module) -> bool:
    """Return whether a module is a batch normalisation that counts its batches.

    Args:
        module: Any module.
    """
    return isinstance(module, _BatchNorm) and module.num_batches_tracked is not None


@contextmanager
def warm_up(device) -> Iterator[None]:
    """Run the block on a stream of its own, as a capture needs it.

    Args:
        device: The device, of type cuda.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)


def capture(run: Callable[[], None], pool, stream):
    """Capture a call as a CUDA graph, and return the graph.

    Args:
        run: The call.
        pool: The pool of memory of an earlier graph; None for a new one.
        stream: A stream of the device. Torch's own would be one of the current device, and what
            runs on another device would not be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # Another thread, such as one that loads images, may use the device meanwhile.
    mode, failure = "thread_local", None
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
            try:
                run()
            except BaseException as e:
                failure = e
                raise
    except Exception as e:
        # The end of a failed capture raises, too, and does not repeat why.
        raise (failure or e) from None
    return graph


@cache
def _capture_stream(device):
    # One for all captures of a process, because cuBLAS keeps memory for each stream.
    return torch.cuda.Stream(device)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether code of Python runs beside a module, which a graph would not repeat."""
    tensors = (module, *module.parameters(recurse=False))
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_pre_hooks)
    late = [getattr(t, "_post_accumulate_grad_hooks", None) for t in tensors]
    return any((*own, *late, *(t._backward_hooks for t in tensors)))


def _draws(device) -> list:
    """Return the state of each generator that a model may draw from."""
    return [
        torch.get_rng_state(), torch.cuda.get_rng_state(device), random.getstate(),
        np.random.get_state()[1:],
    ]  # fmt: skip


def _same(a: list, b: list) -> bool:
    numpys = all(np.array_equal(x, y) for x, y in zip(a[3], b[3], strict=True))
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] and numpys


def _restore(draws: list, device) -> None:
    torch.set_rng_state(draws[0])
    torch.cuda.set_rng_state(draws[1], device)
    random.setstate(draws[2])
    np.random.set_state(("MT19937", *draws[3]))


def _first_line(e: Exception) -> str:
    lines = [line.strip().rstrip(".:") for line in str(e).splitlines()]
    return next(filter(None, lines), type(e).__name__)
