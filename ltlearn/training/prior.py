"""Which class prior a classifier assumes, and how its stage 1 was trained, from the records."""

from collections.abc import Iterable, Mapping, Sequence

from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from ltlearn.methods import DEFAULT_STAGE1, METHODS, stage1_methods
from ltlearn.training.fit_callback import declared

__all__ = ["assumed_prior", "leaves_prior", "stage1_method"]

# Losses of torch and fastai that have no attribute `leaves_prior`, and leave the prior.
_FOREIGN_LOSSES = (nn.CrossEntropyLoss, CrossEntropyLossFlat)


def leaves_prior(
    sampler: str, loss: object, callbacks: Iterable[Callback], method: str | None = None
) -> bool:
    """Return whether a training leaves the logits with the training prior.

    It does if it draws each image once per epoch, and neither its loss nor a callback balances the
    classes. Losses and callbacks declare this by the attribute `leaves_prior`. Without it, a
    callback leaves the prior, and a loss leaves it if the method's row has the prior "train".

    Args:
        sampler: Name of the sampler.
        loss: The loss.
        callbacks: The callbacks.
        method: Name of a method of stage 1. None: no named method.
    """
    row = METHODS.get(method)
    if sampler != "instance" or (row is not None and row.prior == "uniform"):
        return False
    by_default = type(loss) in _FOREIGN_LOSSES or row is not None
    return getattr(loss, "leaves_prior", by_default) and all(
        declared(cb, "leaves_prior", True) for cb in callbacks
    )


def assumed_prior(stages: Sequence[Mapping]) -> str:
    """Return the class prior that the logits assume after these stages: "train" or "uniform".

    The row of the last method decides. The facts of the training decide for a stage 1 and for a
    stage 2 without a named method.

    Args:
        stages: Records of the stages, in their order.
    """
    for stage in reversed(stages):
        row = METHODS.get(stage.get("method"))
        if row is None or row.kind == "stage 1":
            leaves = getattr(stage, "leaves_prior", None)
            return "train" if (_leaves_by_name(stage) if leaves is None else leaves) else "uniform"
        if row.prior != "stage 1":
            return row.prior
    return "train"


def stage1_method(stages: Sequence[Mapping]) -> str:
    """Return the name of the method that the last stage 1 was trained with.

    Args:
        stages: Records of the stages, in their order.
    """
    last = next((stage for stage in reversed(stages) if stage["stage"] == "stage 1"), None)
    if last is None:
        return DEFAULT_STAGE1
    if last.get("method") in METHODS:
        return last["method"]
    # The method was not named: its callbacks, and its loss if it has one, were given.
    used, loss = set(last.get("callbacks", ())), last.get("loss")
    found = [(0, DEFAULT_STAGE1)]
    for name in stage1_methods():
        own = METHODS[name].arguments()
        callbacks = {type(cb).__name__ for cb in own["cbs"]}
        fits = own["loss"] is None or type(own["loss"]).__name__ == loss
        if callbacks and callbacks <= used and fits:
            found.append((len(callbacks) + (own["loss"] is not None), name))
    # Of several, the one that explains most: BalPoE's callbacks contain MixUp's.
    return max(found, key=lambda one: one[0])[1]


def _leaves_by_name(stage: Mapping) -> bool:
    """Return `leaves_prior` for a record from disk, which has the names alone."""
    row = METHODS.get(stage.get("method"))
    if row is not None:
        # Loss and callbacks may be from outside ltlearn. The row of the method describes them.
        return stage.get("sampler") == "instance" and row.prior == "train"
    import ltlearn.callbacks as callbacks
    import ltlearn.losses as losses

    foreign = {kind.__name__ for kind in _FOREIGN_LOSSES}
    # The record of a post-hoc method that is no longer installed has neither name.
    name = stage.get("loss", "")
    loss_leaves = name in foreign or getattr(getattr(losses, name, None), "leaves_prior", False)
    callbacks_leave = all(
        getattr(getattr(callbacks, name, None), "leaves_prior", True)
        for name in stage.get("callbacks", ())
    )
    return stage.get("sampler") == "instance" and loss_leaves and callbacks_leave
