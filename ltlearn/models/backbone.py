"""A model as a backbone and a head, and how to find the head of any model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.heads.linear import in_full_precision
from ltlearn.heads.registry import head_from_state, is_head, is_trainable
from ltlearn.models.experts import fit_experts_to_state

__all__ = [
    "HEAD_NAMES",
    "LTModel",
    "device_of",
    "evaluating",
    "find_head",
    "fit_adapters_to_shapes",
    "fit_to_shapes",
    "is_adapter_tensor",
    "set_head",
]

# Names of classifiers in weights files, besides those that timm knows.
HEAD_NAMES = ("head", "head_dist", "fc", "classifier", "last_linear", "pre_logits")


class LTModel(nn.Module):
    """A backbone that gives pooled features, and a classifier head.

    The model also loads a state dict with another kind of head from `ltlearn.heads`, with other
    adapters (`AdaptFormer`, `LoRA`) or with experts (`ExpertBackbone`); it then replaces its head,
    or adds and removes adapters and experts.

    In evaluation the head computes in float32, also under autocast: in bfloat16 the two largest
    logits of an image are often equal, and the more frequent class would win.

    Args:
        backbone: Maps images to (N, D) features.
        head: Maps features to (N, C) logits.

    Shape:
        Input (N, 3, H, W) float. Output (N, C) logits.

    Example:
        >>> model = LTModel(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(3, 10))
        >>> model(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 10])
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_load_state_dict_pre_hook(_fit_to_state)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        features = self.backbone(x)
        if self.training:
            return self.head(features)
        # Not x.device: the x that torch.fx traces with has none.
        kind = device_of(self.head).type
        if not torch.is_autocast_enabled(kind):
            return self.head(features)
        with torch.autocast(kind, enabled=False):
            return self.head(in_full_precision(features))


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first tensor; the CPU if it has none.

    Args:
        module: The module. One without parameters, such as the nearest class mean, has buffers.
    """
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _fit_to_state(module: LTModel, state: dict, prefix: str, *_) -> None:
    """Give the model the experts, the kind of head and the adapters of a state dict."""
    fit_to_shapes(module, {k: v.shape for k, v in state.items()}, prefix)
    _fit_head_to_state(module, state, prefix)


def fit_to_shapes(model: LTModel, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> None:
    """Give a model the experts and the adapters of a state dict; the values are not loaded.

    Args:
        model: The model; it is changed if it or the state dict has some.
        shapes: The shapes of the tensors in the state dict, by name.
        prefix: What the names of the model's tensors begin with there.
    """
    fit_experts_to_state(model, shapes, prefix)
    fit_adapters_to_shapes(model.backbone, shapes, f"{prefix}backbone.")


def _fit_head_to_state(module: LTModel, state: dict, prefix: str) -> None:
    """Replace the head if the state dict holds another kind of head."""
    start = f"{prefix}head."
    parts = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    head = module.head
    if not is_head(head) or parts.keys() == head.state_dict().keys():
        return
    new = head_from_state(parts)
    # Torch raises an error for an unknown head and for another number of classes or features.
    if new is None or _size(new) != _size(head):
        return
    new.requires_grad_(is_trainable(head))
    like = next(v for v in head.state_dict().values() if v.is_floating_point())
    module.head = new.to(like.device, like.dtype).train(head.training)


def is_adapter_tensor(name: str) -> bool:
    """Return whether a tensor of a backbone belongs to an adapter.

    Args:
        name: Its name in a state dict.
    """
    return ".adapter." in name or ".lora_" in name


def fit_adapters_to_shapes(
    backbone: nn.Module, shapes: Mapping[str, Sequence[int]], prefix: str = ""
) -> None:
    """Add and remove adapters until a backbone has the same ones as a state dict.

    Args:
        backbone: The backbone; it is changed if it or the state dict has adapters.
        shapes: The shapes of the tensors in the state dict, by name.
        prefix: What the names of the backbone's tensors begin with there.
    """
    own = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
    if any(map(is_adapter_tensor, [*own, *(n for n, _ in backbone.named_parameters())])):
        from ltlearn.models.adapters import fit_adapters  # it imports timm

        fit_adapters(backbone, own)


def _size(head: nn.Module) -> tuple[int, int]:
    return head.in_features, head.out_features


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode inside the block; then restore the mode of each module.

    Args:
        model: The model.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def find_head(model: nn.Module, num_classes: int | None = None) -> tuple[str, nn.Module]:
    """Find the classifier at the end of a model, and its dotted name ("" for the model itself).

    The classifier is the result of `get_classifier` (timm) if the model has this method, else the
    last layer with parameters or the last head from `ltlearn.heads`.

    Args:
        model: The model.
        num_classes: The number of classes that the classifier must have. None: any number.

    Raises:
        UserError: If the last layer is neither an `nn.Linear` nor a head from `ltlearn.heads`, or
            does not give `num_classes` logits.

    Example:
        >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3)
        ('1', Linear(in_features=4, out_features=3, bias=True))
    """
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    name, head = "", None
    for n, module in model.named_modules():
        if classifier is not None:
            if module is classifier:
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
    """Replace the classifier of a model.

    Args:
        model: The model.
        name: The dotted name of the classifier, as `find_head` returns it.
        head: The new classifier.

    Returns:
        The model; the new classifier if the model itself is a classifier (name "").
    """
    if not name:
        return head
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, head)
    return model
