"""What callbacks share that put a head of their own in the place of a Learner's classifier."""

import logging
from collections.abc import Callable

from torch import nn

from ltlearn.heads.registry import as_linear, is_trainable
from ltlearn.models.backbone import find_head, set_head

__all__ = ["install_head", "exchange_parameters"]

_log = logging.getLogger("ltlearn")


def install_head(
    learn,
    kind: type[nn.Module],
    make: Callable[[nn.Linear], nn.Module],
    num_classes: int | None = None,
) -> nn.Module:
    """Put a head of one kind in the place of the learner's classifier, unless there is one.

    A head of another kind is folded into a plain linear layer first. What was frozen stays frozen,
    and an optimiser that the learner has already gets the new parameters.

    Args:
        learn: Any fastai Learner.
        kind: Class of the head.
        make: Makes the head from the linear layer that the classifier is or stands for.
        num_classes: C, where the classifier is to be checked for it.

    Returns:
        The head: a new one, or that which was there.

    Raises:
        UserError: If the model does not end in a classifier of C logits, or that stands for no
            linear layer.
    """
    name, head = find_head(learn.model, num_classes)
    if isinstance(head, kind):
        return head
    linear = as_linear(head)
    new = make(linear).requires_grad_(is_trainable(head))
    if linear is not head:
        _log.warning(
            "the head is a %s: it is folded into an nn.Linear, which becomes a %s",
            type(head).__name__,
            kind.__name__,
        )
    learn.model = set_head(learn.model, name, new)
    if learn.opt is not None:
        exchange_parameters(learn.opt, head, new)
    return new


def exchange_parameters(opt, old: nn.Module, new: nn.Module) -> None:
    """Put the parameters of a new head into the optimiser where those of the old one were.

    Groups, hyper-parameters and what is frozen stay.

    Args:
        opt: Optimiser of fastai, or one of torch in fastai's `OptimWrapper`.
        old: Head that goes.
        new: Head that comes.
    """
    gone = {id(p) for p in old.parameters()}
    groups = [list(group) for group in opt.param_lists]
    # Splitters may leave out what is frozen: such a head goes to the end of the last group.
    place, at = len(groups) - 1, len(groups[-1])
    for i, group in enumerate(groups):
        found = [k for k, p in enumerate(group) if id(p) in gone]
        if found:
            place, at = i, found[0]
            break
    groups[place][at:at] = new.parameters()
    opt.param_lists = [[p for p in group if id(p) not in gone] for group in groups]
    # fastai notes beside a parameter whether weight decay and freezing pass it by. The rest of the
    # state is the momentum of parameters that are no more.
    notes = {name: opt.state.pop(p, {}) for name, p in old.named_parameters()}
    for name, p in new.named_parameters():
        kept = notes.get(name, {}).items()
        opt.state[p] = {k: v for k, v in kept if k in ("do_wd", "force_train")}
    if hasattr(opt, "opt"):
        for p in old.parameters():
            opt.opt.state.pop(p, None)
