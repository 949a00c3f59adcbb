"""Freeze parameters for the length of a fit."""

from collections.abc import Iterable

from torch import nn

__all__ = ["Flags", "freeze", "unfreeze"]

Flags = list[tuple[nn.Parameter, bool]]


def freeze(module: nn.Module, but: Iterable[nn.Parameter] = ()) -> Flags:
    """Let no parameters of a module train but some.

    Args:
        module: The module.
        but: The parameters that train.

    Returns:
        What `unfreeze` needs.
    """
    trained = {id(p) for p in but}
    flags = [(p, p.requires_grad) for p in module.parameters()]
    for p, _ in flags:
        p.requires_grad_(id(p) in trained)
        # An optimiser applies weight decay and momentum to every parameter with a gradient.
        p.grad = None
    return flags


def unfreeze(flags: Flags) -> None:
    """Restore which parameters train.

    Args:
        flags: A result of `freeze`.
    """
    for p, flag in flags:
        p.requires_grad_(flag)
