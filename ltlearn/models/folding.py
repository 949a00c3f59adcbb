"""Run a network with its batch normalisation folded into the convolutions before it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["folded_batch_norm"]

_log = logging.getLogger("ltlearn")
_TOLERANCE = 1e-5  # of the largest output
_PROBED = 2  # images
_FORMAT = torch.channels_last  # the faster order of a convolution's numbers, also on a CPU


@contextmanager
def folded_batch_norm(network: nn.Module) -> Iterator[Callable[[Tensor], Any]]:
    """Return a function that runs a network in evaluation mode, in less time where it can.

    At its first call it runs two images, and finds each convolution whose result goes straight into
    a batch normalisation. It replaces these pairs by single convolutions, which keep their numbers
    in the order that is faster on a CPU, too, and runs the two images again. If the outputs differ
    by more than rounding, as for a result that is used twice, the network stays as it is. At the
    end of the block all modules are back.

    Args:
        network: The network, in evaluation mode inside the block. Its modules are replaced one by
            one inside the block, so no other thread may use it meanwhile.

    Example:
        >>> with evaluating(network), torch.inference_mode(), folded_batch_norm(network) as run:
        ...     outputs = [run(x) for x in batches]
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    is_first = True

    def run(x: Tensor) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            _try_to_fold(network, x[:_PROBED], replaced)
        return network(_reordered(x) if replaced else x)

    try:
        yield run
    finally:
        _restore(replaced)


def _try_to_fold(network: nn.Module, x: Tensor, replaced: list) -> None:
    with _recorded_pairs(network) as pairs:
        expected = network(x)
    if pairs and isinstance(expected, Tensor):
        _fold(network, pairs, replaced)
        if not _agree(network(_reordered(x)), expected):
            _log.debug("batch normalisation is not folded: the outputs would differ")
            _restore(replaced)


@contextmanager
def _recorded_pairs(network: nn.Module) -> Iterator[dict[nn.Conv2d, nn.BatchNorm2d]]:
    """Record which convolutions a batch normalisation follows, in a run inside the block."""
    pairs: dict[nn.Conv2d, nn.BatchNorm2d] = {}
    calls: dict[nn.Module, int] = {}
    last: tuple[Any, Any] = (None, None)

    def after_conv(module, args, out) -> None:
        nonlocal last
        last, calls[module] = (module, out), calls.get(module, 0) + 1

    def before_norm(module, args) -> None:
        nonlocal last
        (conv, out), calls[module] = last, calls.get(module, 0) + 1
        if args and args[0] is out:
            pairs[conv] = module
        last = (None, None)

    hooks = []
    try:
        for module in network.modules():
            if type(module) is nn.Conv2d:
                hooks.append(module.register_forward_hook(after_conv))
            elif _rest_of(module) is not None:
                hooks.append(module.register_forward_pre_hook(before_norm))
        yield pairs
    finally:
        for hook in hooks:
            hook.remove()
    # A module that is called twice has several inputs.
    for conv, norm in list(pairs.items()):
        if calls[conv] > 1 or calls[norm] > 1:
            del pairs[conv]


def _rest_of(norm: nn.Module) -> nn.Module | None:
    """Return what a batch normalisation does after it has normalised; None if it cannot be folded.

    timm's `BatchNormAct2d` goes on with an activation.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":
        return nn.Sequential(norm.drop, norm.act)
    return None


def _fold(network: nn.Module, pairs: dict, replaced: list) -> None:
    """Replace the modules; append the parent, the name and the old module of each to a list."""
    new = {}
    for conv, norm in pairs.items():
        fused = fuse_conv_bn_eval(conv, norm)
        new[conv], new[norm] = fused.to(memory_format=_FORMAT).eval(), _rest_of(norm).eval()
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if module in new:
                replaced.append((parent, name, module))
                setattr(parent, name, new[module])


def _reordered(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_FORMAT) if x.ndim == 4 else x


def _restore(replaced: list) -> None:
    while replaced:
        parent, name, module = replaced.pop()
        setattr(parent, name, module)


def _agree(ours: Any, expected: Tensor) -> bool:
    if not isinstance(ours, Tensor) or ours.shape != expected.shape:
        return False
    difference = (ours - expected).abs().max() if expected.numel() else torch.zeros(())
    return bool(difference <= _TOLERANCE * expected.abs().max())
