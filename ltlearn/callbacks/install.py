"""Install a head in place of a Learner's classifier, and give its optimiser new parameters."""

import logging
from collections.abc import Callable, Iterable

from torch import nn

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.normalized import NormalizedFeatureHead, over_normalized_features
from ltlearn.heads.registry import as_linear, is_trainable
from ltlearn.models.backbone import find_head, set_head

__all__ = ["add_parameters", "exchange_parameters", "install_head"]

_log = logging.getLogger("ltlearn")


def install_head(
    learn,
    kind: type[nn.Module],
    make: Callable[[nn.Linear], nn.Module],
    num_classes: int | None = None,
) -> nn.Module:
    """Replace the learner's classifier by a head of one kind, unless it is one already.

    A head of another kind is folded into a plain linear layer first. A cosine classifier becomes a
    linear layer over features of one length, and the new head replaces that layer; a new cosine
    classifier replaces both. Frozen parameters stay frozen, and the optimiser, if the learner has
    one, gets the new parameters.

    Args:
        learn: Any fastai Learner.
        kind: Class of the head.
        make: Makes the head from the (folded) linear classifier.
        num_classes: Number of classes C that the classifier must have. None: any number.

    Returns:
        The new or the existing head.

    Raises:
        UserError: If the model does not end in a classifier of C logits, or that classifier does
            not fold into a linear layer.
    """
    name, head = find_head(learn.model, num_classes)
    if isinstance(head, kind):
        return head
    whole = over_normalized_features(head) if isinstance(head, CosineLinear) else None
    linear = as_linear(head) if whole is None else whole.inner
    new = make(linear).requires_grad_(is_trainable(head))
    around = name.rpartition(".")[0]
    if kind is CosineLinear and isinstance(
        learn.model.get_submodule(around), NormalizedFeatureHead
    ):
        name = around  # a cosine classifier normalises the features itself
    if whole is not None:
        whole.inner = new
    elif linear is not head:
        _log.warning(
            "the head is a %s: it is folded into an nn.Linear, which becomes a %s",
            type(head).__name__,
            kind.__name__,
        )
    learn.model = set_head(learn.model, name, new if whole is None else whole)
    if learn.opt is not None:
        exchange_parameters(learn.opt, head, new)
    return new


def exchange_parameters(opt, old: nn.Module, new: nn.Module) -> None:
    """Replace the parameters of an old head by those of a new one in an optimiser.

    Groups, hyper-parameters and frozen parameters stay.

    Args:
        opt: An optimiser of fastai, or one of torch in fastai's `OptimWrapper`.
        old: Head whose parameters are removed.
        new: Head whose parameters are added.
    """
    removed = {id(p) for p in old.parameters()}
    groups = [list(group) for group in opt.param_lists]
    # A splitter may leave frozen parameters out: then the head goes to the end of the last group.
    group_index, position = len(groups) - 1, len(groups[-1])
    for i, group in enumerate(groups):
        positions = [k for k, p in enumerate(group) if id(p) in removed]
        if positions:
            group_index, position = i, positions[0]
            break
    groups[group_index][position:position] = new.parameters()
    opt.param_lists = [[p for p in group if id(p) not in removed] for group in groups]
    # fastai keeps flags beside a parameter: whether weight decay and freezing skip it. The rest of
    # the state is the momentum of the removed parameters.
    flags = {name: opt.state.pop(p, {}) for name, p in old.named_parameters()}
    for name, p in new.named_parameters():
        kept = flags.get(name, {}).items()
        opt.state[p] = {k: v for k, v in kept if k in ("do_wd", "force_train")}
    if hasattr(opt, "opt"):
        for p in old.parameters():
            opt.opt.state.pop(p, None)


def add_parameters(opt, parameters: Iterable[nn.Parameter], beside: Iterable[nn.Parameter]) -> None:
    """Add parameters to the group of an optimiser that has others already.

    Args:
        opt: An optimiser of fastai, or one of torch in fastai's `OptimWrapper`.
        parameters: The parameters; those in `beside` are left out.
        beside: Parameters that the optimiser may have. If it has none, the first group grows.
    """
    known, groups = {id(p) for p in beside}, [list(group) for group in opt.param_lists]
    group = next((g for g in groups if any(id(p) in known for p in g)), groups[0])
    group += [p for p in parameters if id(p) not in known]
    opt.param_lists = groups
