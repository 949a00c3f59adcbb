"""A backbone through torch.compile, for the length of a fit or of an extraction of features."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ltlearn.utils.torch_output import torch_silenced

__all__ = ["CompiledCall", "FrozenCall", "compiled"]

_log = logging.getLogger("ltlearn")


class _Attempt:
    """A compiled function, until torch cannot compile or run it.

    Args:
        task: What the backbone does without compilation from then on, for the warning.
    """

    def __init__(self, task: str):
        self.task = task
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def run(self, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the result of the compiled function, or of the plain one.

        Args:
            x: The batch.
            plain: Runs the batch without compilation.
        """
        if self.compiled is not None:
            try:
                return self.compiled(x)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                self.give_up(e)
        return plain(x)

    def give_up(self, e: Exception) -> None:
        """Log one warning with the reason, and compile nothing from now on.

        Args:
            e: The error of torch.
        """
        self.compiled = None
        # torch wraps the error of its backend, and begins with "backend='inductor' raised:".
        e = getattr(e, "inner_exception", e)
        lines = [line.strip().rstrip(".:") for line in str(e).splitlines()]
        _log.warning(
            "torch.compile cannot compile the backbone, so it %s without compilation (%s)",
            self.task,
            next(filter(None, lines), type(e).__name__),
        )


class CompiledCall(_Attempt):
    """The call of a module, compiled while the module trains.

    If torch cannot compile the forward pass, a warning is logged, and the module runs eagerly from
    then on.

    Args:
        module: The module. `compiled` installs the call in it.
    """

    def __init__(self, module: nn.Module):
        super().__init__("is trained")
        self.module = module
        try:
            self.compiled = torch.compile(module.forward)
        except Exception as e:
            self.give_up(e)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on a batch, compiled in training."""
        if self.compiled is None or not (self.module.training and torch.is_grad_enabled()):
            return self.module._call_impl(x)
        # `_call_impl` runs the module's hooks, so they stay outside the compiled graph. The module
        # has this `forward` only while it runs, so a copy made between two batches is a plain one.
        own_forward = vars(self.module).get("forward")
        plain_forward = self.module.forward

        def forward(x: Tensor) -> Tensor:
            return self.run(x, plain_forward)

        self.module.forward = forward
        try:
            return self.module._call_impl(x)
        finally:
            del self.module.forward
            if own_forward is not None:
                self.module.forward = own_forward


class FrozenCall(_Attempt):
    """A module in evaluation mode, compiled with its weights as constants.

    inductor then folds batch normalisation into the weights of convolutions. Batches of another
    size run without compilation, so there is one compilation. If torch cannot compile the module, a
    warning is logged, and all batches run without.

    The compiled module is a copy, so the module keeps its tensors and attributes, and may train
    afterwards. Until the process ends, inductor keeps the last constants of a network in memory.

    Args:
        module: The module, in evaluation mode.
        size: Rows of the batches that are worth a compilation.
    """

    def __init__(self, module: nn.Module, size: int):
        super().__init__("computes features")
        self.module, self.size = module, size
        self.compiled = self._compile

    def __call__(self, x: Tensor) -> Tensor:
        """Run the module on a batch, without gradients."""
        return self.run(x, self.module) if len(x) == self.size else self.module(x)

    def _compile(self, x: Tensor) -> Tensor:
        from torch._inductor import config

        # As an option of `torch.compile`, `freezing` has no effect: it is read before options are.
        with torch_silenced(), config.patch(freezing=True):
            # torch keeps compiled code, with its constants, beside the code of `forward`. A second
            # extraction would get the weights of the first one. An exported module has a `forward`
            # of its own.
            plain = torch.export.export(copy.deepcopy(self.module), (x,)).module()
            frozen = torch.compile(plain, dynamic=False)
            out = frozen(x)
        self.compiled = frozen
        return out


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
