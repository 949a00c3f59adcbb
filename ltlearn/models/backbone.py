"""A model as a backbone and a head, and how to find the head of any model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.heads.registry import head_from_state, is_head, is_trainable

__all__ = ["HEAD_NAMES", "LTModel", "evaluating", "find_head", "set_head"]

# What files end in, beside the classifier that timm names.
HEAD_NAMES = ("head", "head_dist", "fc", "classifier", "last_linear", "pre_logits")


class LTModel(nn.Module):
    """A timm backbone that gives pooled features, and one linear layer.

    A state dict with another kind of head (one of `ltlearn.heads.registry`) loads too: the head
    is exchanged.

    Args:
        backbone: Gives (N, D) features.
        head: Takes them to (N, C) logits.

    Shape:
        Input (N, 3, H, W) float. Output (N, C) logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_load_state_dict_pre_hook(_fit_head_to_state)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        return self.head(self.backbone(x))


def _fit_head_to_state(module: LTModel, state: dict, prefix: str, *_) -> None:
    """Exchange the head where the state dict holds one of another kind."""
    start = f"{prefix}head."
    parts = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
    head = module.head
    if not is_head(head) or parts.keys() == head.state_dict().keys():
        return
    new = head_from_state(parts)
    # What is no head, and another number of classes or features, is for torch to refuse.
    if new is None or _size(new) != _size(head):
        return
    new.requires_grad_(is_trainable(head))
    like = next(v for v in head.state_dict().values() if v.is_floating_point())
    module.head = new.to(like.device, like.dtype).train(head.training)


def _size(head: nn.Module) -> tuple[int, int]:
    return head.in_features, head.out_features


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; each module is left in the mode it had."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def find_head(model: nn.Module, num_classes: int | None = None) -> tuple[str, nn.Module]:
    """Find the classifier at the end of a model, and its dotted name ("" for the model itself).

    Asks `get_classifier` (timm) where there is one; else takes the last layer that has parameters,
    or a head of ours.

    Raises:
        UserError: If that is no `nn.Linear` (nor a head of ours, see `ltlearn.heads.registry`),
            or does not give `num_classes` logits.
    """
    wanted = None
    if hasattr(model, "get_classifier"):
        wanted = model.get_classifier()
    name, head = "", None
    for n, module in model.named_modules():
        if wanted is not None:
            if module is wanted:
                name, head = n, module
        elif is_head(module) or (
            not any(True for _ in module.children())
            and any(True for _ in module.parameters(recurse=False))
        ):
            name, head = n, module
    if not is_head(head):
        raise UserError(
            "the model must end in an nn.Linear classifier, but its last layer with weights is "
            f"{type(head).__name__} ({name or 'the model itself'})."
        )
    if num_classes is not None and head.out_features != num_classes:
        raise UserError(
            f"the model ends in a linear layer of {head.out_features} outputs "
            f"({name or 'the model itself'}), but there are {num_classes} classes."
        )
    return name, head


def set_head(model: nn.Module, name: str, head: nn.Module) -> nn.Module:
    """Put `head` where `find_head` found one; return the model, or the head where it is all."""
    if not name:
        return head
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, head)
    return model
