"""Training through torch.compile, for as long as a fit takes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["CompiledCall", "compiled"]

_log = logging.getLogger("ltlearn")


class CompiledCall:
    """The call of a module, through torch.compile wherever the module trains.

    Each new shape of an input is tried first, forward and backward, with buffers and random numbers
    put back: a compilation that fails in the middle leaves no trace.
    """

    def __init__(self, module: nn.Module):
        self.module, self.compiled, self.tried = module, None, set()
        try:
            self.compiled = torch.compile(module.forward)
        except Exception as e:
            self._give_up(e)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module, compiled where it trains and that can be done."""
        if self.module.training and torch.is_grad_enabled():
            kind = (x.shape, x.stride(), x.dtype)
            if self.compiled is not None and kind not in self.tried:
                self._try(x)
                self.tried.add(kind)
            if self.compiled is not None:
                return self._run(x)
        return self.module._call_impl(x)

    def _run(self, x: Tensor) -> Tensor:
        # Hooks stay outside what is compiled, and the module has this `forward` only while it runs:
        # a copy made between two batches is a plain one.
        own = vars(self.module).get("forward")
        self.module.forward = self.compiled
        try:
            return self.module._call_impl(x)
        finally:
            del self.module.forward
            if own is not None:
                self.module.forward = own

    def _try(self, x: Tensor) -> None:
        buffers = [(b, b.clone()) for b in self.module.buffers()]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                out = self.compiled(x.detach())
                if trained:
                    torch.autograd.grad(out.float().sum(), trained, allow_unused=True)
        except Exception as e:
            self._give_up(e)
        finally:
            torch.clear_autocast_cache()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _give_up(self, e: Exception) -> None:
        self.compiled = None
        # torch says "backend='inductor' raised:" first, and wraps what was.
        e = getattr(e, "inner_exception", e)
        lines = [line.strip().rstrip(".:") for line in str(e).splitlines()]
        _log.warning(
            "torch.compile cannot compile the backbone here, so it is trained without (%s)",
            next(filter(None, lines), type(e).__name__),
        )


@contextmanager
def compiled(module: nn.Module) -> Iterator[CompiledCall]:
    """Train a module through torch.compile for a while; keys, copies and files know nothing of it.

    Where `nn.Module.compile` puts its own, which torch leaves out of copies and files.
    """
    call = CompiledCall(module)
    module._compiled_call_impl = call
    try:
        yield call
    finally:
        del module._compiled_call_impl
