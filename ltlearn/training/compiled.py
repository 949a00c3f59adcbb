"""Training through torch.compile, for the length of a fit."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["CompiledCall", "compiled"]

_log = logging.getLogger("ltlearn")


class CompiledCall:
    """The call of a module, compiled while the module trains.

    If torch cannot compile the forward pass, a warning is logged, and the module runs eagerly from
    then on.

    Args:
        module: The module. `compiled` installs the call in it.
    """

    def __init__(self, module: nn.Module):
        self.module, self.compiled = module, None
        try:
            self.compiled = torch.compile(module.forward)
        except Exception as e:
            self._give_up(e)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on a batch, compiled in training."""
        if self.compiled is None or not (self.module.training and torch.is_grad_enabled()):
            return self.module._call_impl(x)
        # `_call_impl` runs the module's hooks, so they stay outside the compiled graph. The module
        # has this `forward` only while it runs, so a copy made between two batches is a plain one.
        own_forward = vars(self.module).get("forward")
        plain_forward = self.module.forward

        def forward(x: Tensor) -> Tensor:
            try:
                return self.compiled(x)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                self._give_up(e)
            return plain_forward(x)

        self.module.forward = forward
        try:
            return self.module._call_impl(x)
        finally:
            del self.module.forward
            if own_forward is not None:
                self.module.forward = own_forward

    def _give_up(self, e: Exception) -> None:
        self.compiled = None
        # torch wraps the error of its backend, and begins with "backend='inductor' raised:".
        e = getattr(e, "inner_exception", e)
        lines = [line.strip().rstrip(".:") for line in str(e).splitlines()]
        _log.warning(
            "torch.compile cannot compile the backbone, so it is trained without compilation (%s)",
            next(filter(None, lines), type(e).__name__),
        )


@contextmanager
def compiled(module: nn.Module) -> Iterator[CompiledCall]:
    """Compile the forward pass of a module inside the block.

    The compiled call occupies the attribute of `nn.Module.compile`, which torch leaves out of state
    dicts, copies and files.

    Args:
        module: The module.
    """
    call = CompiledCall(module)
    module._compiled_call_impl = call
    try:
        yield call
    finally:
        del module._compiled_call_impl
