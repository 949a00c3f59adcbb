"""The kinds of classifier head, and how the keys of a state dict identify a kind.

It needs torch alone. `register_head` adds a kind.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.experts import ExpertHead
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.heads.normalized import NormalizedFeatureHead, over_normalized_features
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.scaled import ScaledLinear

__all__ = [
    "HeadKind",
    "as_linear",
    "as_linear_over_features",
    "head_from_state",
    "is_head",
    "is_trainable",
    "kind_of",
    "register_head",
    "unregister_head",
]


def _is_samn(keys: Collection[str]) -> bool:
    return "class_counts" in keys and ("raw_norm_weight" in keys or "raw_norm_bias" in keys)


def _samn(state: Mapping[str, Tensor]) -> nn.Module:
    on = tuple(part for part in ("weight", "bias") if f"raw_norm_{part}" in state)
    width, _ = _width_and_classes(state)
    head = SAMNLinear(width, state["class_counts"], on=on, bias="bias" in state)
    if "norm_scale" in state:
        head.norm_scale = torch.ones(())
    return head


def _scaled(state: Mapping[str, Tensor]) -> nn.Module:
    train = "scale" if "trains_scales_alone" in state else "all"
    return ScaledLinear(*_width_and_classes(state), "bias" in state, train)


def _cosine(state: Mapping[str, Tensor]) -> nn.Module:
    return CosineLinear(*_width_and_classes(state))


def _experts(state: Mapping[str, Tensor]) -> nn.Module:
    experts, classes, width = state["weight"].shape
    return ExpertHead(experts * width, classes, experts)


def _nearest_mean(state: Mapping[str, Tensor]) -> nn.Module:
    return NearestClassMean(*_width_and_classes(state, "means"))


def _normalized(state: Mapping[str, Tensor]) -> nn.Module:
    parts = {k.removeprefix("inner."): v for k, v in state.items() if k.startswith("inner.")}
    inner = head_from_state(parts)
    if inner is None:
        raise KeyError("inner")
    return NormalizedFeatureHead(inner, 1.0)


def _linear(state: Mapping[str, Tensor]) -> nn.Module:
    return nn.Linear(*_width_and_classes(state), "bias" in state)


def _width_and_classes(state: Mapping[str, Tensor], key: str = "weight") -> tuple[int, int]:
    classes, width = state[key].shape
    return width, classes


class HeadKind(NamedTuple):
    """A kind of head.

    Args:
        type: The class of the head.
        matches: Returns whether the keys of a state dict belong to this kind.
        from_state: Makes a head of the right size from a state dict, which is loaded afterwards.
    """

    type: type[nn.Module]
    matches: Callable[[Collection[str]], bool]
    from_state: Callable[[Mapping[str, Tensor]], nn.Module]


_KINDS = [
    HeadKind(SAMNLinear, _is_samn, _samn),
    HeadKind(ScaledLinear, lambda keys: "scales" in keys, _scaled),
    # Before the cosine head, which has a scale, too.
    HeadKind(ExpertHead, lambda keys: "expert_weights" in keys, _experts),
    HeadKind(CosineLinear, lambda keys: "cosine_scale" in keys, _cosine),
    HeadKind(NearestClassMean, lambda keys: "means" in keys, _nearest_mean),
    HeadKind(
        NormalizedFeatureHead,
        lambda keys: "length" in keys and any(key.startswith("inner.") for key in keys),
        _normalized,
    ),
]
_BUILT_IN = tuple(_KINDS)
# It comes last: the other kinds have a weight, too.
_LINEAR = HeadKind(nn.Linear, lambda keys: "weight" in keys, _linear)


def register_head(
    type: type[nn.Module],
    matches: Callable[[Collection[str]], bool],
    from_state: Callable[[Mapping[str, Tensor]], nn.Module],
) -> None:
    """Register a kind of head, so that a model and a checkpoint with such a head can be loaded.

    The head has `in_features`, `out_features`, `norms()` (C,) and `fold()`, which returns an equal
    `nn.Linear` or raises a `UserError`. `ltlearn.heads.Foldable` has the last two.

    Args:
        type: The class of the head. A second registration of a class replaces the first.
        matches: Returns whether the keys of a head's state dict belong to this kind. The built-in
            kinds are tried first.
        from_state: Makes a head of the right size from a state dict, which is loaded afterwards.

    Raises:
        UserError: If the class is no module, or is a built-in head.

    Example:
        >>> register_head(MyHead, lambda keys: "my_key" in keys, MyHead.from_state)
    """
    is_module = inspect.isclass(type) and issubclass(type, nn.Module)
    if not is_module or any(kind.type is type for kind in (*_BUILT_IN, _LINEAR)):
        raise UserError(f"type must be a class of heads from outside ltlearn, got {type!r}.")
    unregister_head(type)
    _KINDS.append(HeadKind(type, matches, from_state))


def unregister_head(type: type[nn.Module]) -> None:
    """Remove a registered kind of head, if there is one of this class.

    Args:
        type: The class of the head.
    """
    _KINDS[:] = [kind for kind in _KINDS if kind.type is not type or kind in _BUILT_IN]


def is_head(module: nn.Module | None) -> bool:
    """Return whether a module is an `nn.Linear` or a registered head."""
    return isinstance(module, tuple(kind.type for kind in (*_KINDS, _LINEAR)))


def is_trainable(head: nn.Module) -> bool:
    """Return whether no parameter of a head is frozen; True for a head without parameters."""
    return all(p.requires_grad for p in head.parameters())


def head_from_state(state: Mapping[str, Tensor]) -> nn.Module | None:
    """Make a head of the kind and the size of a state dict, without loading its values.

    Args:
        state: The head's part of a state dict, without prefix.

    Returns:
        The head, on the CPU. None if the keys belong to no kind, or a tensor has a wrong shape.
    """
    for kind in (*_KINDS, _LINEAR):
        if kind.matches(state.keys()):
            try:
                return kind.from_state(state)
            except (KeyError, ValueError):
                return None
    return None


def as_linear(head: nn.Module) -> nn.Linear:
    """Return the `nn.Linear` that is equal to a head: itself, or the folded head.

    Args:
        head: The head.

    Raises:
        UserError: If no linear layer is equal to it.
    """
    return head if isinstance(head, nn.Linear) else head.fold()  # type: ignore[operator]


def as_linear_over_features(head: nn.Module) -> nn.Module:
    """Return an equal head whose rows have free norms: an `nn.Linear`, or one over scaled features.

    A cosine classifier, and a head over normalised features, become a `NormalizedFeatureHead` of
    an `nn.Linear`.

    Args:
        head: The head.

    Raises:
        UserError: If there is none.
    """
    if isinstance(head, CosineLinear):
        return over_normalized_features(head)
    if isinstance(head, NormalizedFeatureHead):
        if isinstance(head.inner, nn.Linear):
            return head
        new = NormalizedFeatureHead(as_linear(head.inner), 1.0)
        new.length = head.length.detach().clone()
        return new.train(head.training)
    return as_linear(head)


def kind_of(head: nn.Module) -> str:
    """Return the kind of a head as records name it.

    Args:
        head: The head.
    """
    if isinstance(head, NormalizedFeatureHead):
        return f"{type(head.inner).__name__} on normalised features"
    return type(head).__name__
