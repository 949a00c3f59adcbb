"""The kinds of classifier head that a model may end in, and how a state dict tells them apart.

Torch alone. A new kind is one line in `_KINDS`; its keys must differ from all others'.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

__all__ = ["is_head", "is_trainable", "head_from_state", "as_linear"]


def _is_samn(keys: Collection[str]) -> bool:
    return "class_counts" in keys and ("raw_norm_weight" in keys or "raw_norm_bias" in keys)


def _samn(state: Mapping[str, Tensor]) -> nn.Module:
    on = tuple(part for part in ("weight", "bias") if f"raw_norm_{part}" in state)
    width, _ = _width_and_classes(state)
    return SAMNLinear(width, state["class_counts"], on=on, bias="bias" in state)


def _scaled(state: Mapping[str, Tensor]) -> nn.Module:
    train = "scale" if "trains_scales_alone" in state else "all"
    return ScaledLinear(*_width_and_classes(state), "bias" in state, train)


def _cosine(state: Mapping[str, Tensor]) -> nn.Module:
    return CosineLinear(*_width_and_classes(state))


def _nearest_mean(state: Mapping[str, Tensor]) -> nn.Module:
    return NearestClassMean(*_width_and_classes(state, "means"))


def _linear(state: Mapping[str, Tensor]) -> nn.Module:
    return nn.Linear(*_width_and_classes(state), "bias" in state)


def _width_and_classes(state: Mapping[str, Tensor], key: str = "weight") -> tuple[int, int]:
    classes, width = state[key].shape
    return width, classes


class _Kind(NamedTuple):
    """A kind of head.

    `matches` tells by its keys that a state dict is of this kind; `from_state` makes a head that
    the state then loads into.
    """

    type: type[nn.Module]
    matches: Callable[[Collection[str]], bool]
    from_state: Callable[[Mapping[str, Tensor]], nn.Module]


_KINDS = (
    _Kind(SAMNLinear, _is_samn, _samn),
    _Kind(ScaledLinear, lambda keys: "scales" in keys, _scaled),
    _Kind(CosineLinear, lambda keys: "cosine_scale" in keys, _cosine),
    _Kind(NearestClassMean, lambda keys: "means" in keys, _nearest_mean),
    # Last: the others have a weight as well.
    _Kind(nn.Linear, lambda keys: "weight" in keys, _linear),
)


def is_head(module: nn.Module | None) -> bool:
    """Tell whether a module is a classifier of ours or an `nn.Linear`."""
    return isinstance(module, tuple(kind.type for kind in _KINDS))


def is_trainable(head: nn.Module) -> bool:
    """Tell whether a head is not frozen; one without parameters is not."""
    return all(p.requires_grad for p in head.parameters())


def head_from_state(state: Mapping[str, Tensor]) -> nn.Module | None:
    """Make a head of the kind and the size that a state dict is of; its values are not loaded.

    Args:
        state: The head's part of a state dict, without prefix.

    Returns:
        The head, on the CPU; None where no kind has such keys, or a part has no such shape.
    """
    for kind in _KINDS:
        if kind.matches(state.keys()):
            try:
                return kind.from_state(state)
            except (KeyError, ValueError):
                return None
    return None


def as_linear(head: nn.Module) -> nn.Linear:
    """Return the `nn.Linear` that a head stands for: itself, or what it folds into.

    Raises:
        UserError: If there is none.
    """
    return head if isinstance(head, nn.Linear) else head.fold()
