"""Take the classifier of a trained model, so that the cut model gives the same logits."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, spell
from ltlearn.heads.registry import head_from_state, is_head
from ltlearn.models.backbone import evaluating
from ltlearn.models.weights_file import describe_some

__all__ = ["head_from_tensors", "linear_classifier", "reorder_outputs"]

# Parts of a training that stand beside the model and do not enter its logits.
_NO_LAYERS = ("criterion", "loss", "ema", "train_", "val_", "valid_", "test_", "metric")
# Tensors of the heads of `ltlearn.heads` that have a row for each class.
_PER_CLASS = (
    "weight", "bias", "scales", "means", "has_images", "class_counts", "class_to_rank",
    "raw_norm_weight", "raw_norm_bias",
)  # fmt: skip
_RTOL, _ATOL = 1e-3, 1e-4  # logits differ by rounding alone


def head_from_tensors(outside: Mapping[str, Tensor], path: Path) -> tuple[str, nn.Module] | None:
    """Build the classifier that stands beside a backbone in a file.

    Args:
        outside: The tensors beside the backbone.
        path: The file, for messages.

    Returns:
        The name of the classifier, and the classifier; None if there is none.

    Raises:
        UserError: If there are several layers, or other layers stand beside it.
    """
    layers = {
        k: v
        for k, v in outside.items()
        if not k.startswith(_NO_LAYERS) and not (v.is_floating_point() and v.ndim == 0)
    }
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in layers.items():
        name, _, last = key.rpartition(".")
        groups.setdefault(name, {})[last] = value
    heads = {name: head_from_state(parts) for name, parts in groups.items()}
    heads = {name: head for name, head in heads.items() if head is not None}
    if not heads:
        return None
    if len(heads) > 1:
        raise UserError(
            f"the classifier in {path} is not one linear layer but several "
            f"({', '.join(heads)}), as in fastai's vision_learner; start with a new one "
            f"({spell('keep_head', False)})."
        )
    ((name, head),) = heads.items()
    others = [
        k for k, v in layers.items() if k.rpartition(".")[0] != name and v.is_floating_point()
    ]
    if others:
        raise UserError(
            f"{path} has {describe_some(others)} beside the backbone and the classifier {name}, so "
            f"the cut model would give other logits; start with a new classifier "
            f"({spell('keep_head', False)})."
        )
    head.load_state_dict(groups[name])
    return name, head


def linear_classifier(
    whole: nn.Module, names: Sequence[str], backbone: nn.Module, shape: tuple[int, int, int]
) -> nn.Linear | None:
    """Return the linear layer that gives a whole model's logits on the features of its backbone.

    In some models of timm, the classifier is more than a linear layer: a batch normalisation before
    it, or two classifiers that are averaged. In evaluation mode these are affine as well.

    Args:
        whole: The whole model, with its weights.
        names: The names of its classifiers.
        backbone: The same model without them, with the same weights.
        shape: Channels, height and width of an image.

    Returns:
        The layer; None if no linear layer gives the logits.
    """
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with evaluating(whole), evaluating(backbone), torch.no_grad():
        features, logits = backbone(x), whole(x)
        if features.ndim != 2 or not isinstance(logits, Tensor):
            return None
        for head in _candidates(whole, names, features.shape[1]):
            if torch.allclose(head(features), logits, _RTOL, _scale(logits), equal_nan=True):
                return head
    return None


def _scale(logits: Tensor) -> float:
    """Return the absolute tolerance for logits."""
    finite = logits[logits.isfinite()]
    return _ATOL * float(finite.abs().max()) if len(finite) else _ATOL


def _candidates(whole: nn.Module, names: Sequence[str], width: int) -> Iterator[nn.Linear]:
    """Yield linear layers that may be the classifier: the layers named, then modules around them.

    Several classifiers on the same features are averaged, as timm does.
    """
    several = whole.get_classifier() if hasattr(whole, "get_classifier") else None
    if isinstance(several, tuple):  # timm's configuration may name one of them alone
        names = [n for n, m in whole.named_modules() if any(m is layer for layer in several)]
    names = list(names)
    while names and all(names):
        heads = [_as_linear(whole.get_submodule(name), width) for name in names]
        if None not in heads:
            yield heads[0] if len(heads) == 1 else _mean_of(heads)
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _as_linear(layer: nn.Module, width: int) -> nn.Linear | None:
    """Return the linear layer that is equal to an affine module; None if it is not affine."""
    if isinstance(layer, nn.Linear) and layer.in_features == width:
        return _linear(layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d) and layer.weight[0].numel() == width:
        return _linear(layer.weight.flatten(1), layer.bias)
    try:
        module = copy.deepcopy(layer).double()
        bias = module(torch.zeros(1, width, dtype=torch.float64))[0]
        weight = (module(torch.eye(width, dtype=torch.float64)) - bias).T
    except Exception:  # any module, which may take no features at all
        return None
    return _linear(weight, bias) if bias.ndim == 1 else None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # On "meta", no random numbers are drawn.
    head = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    head.weight = nn.Parameter(weight.detach().float().contiguous().clone())
    if bias is not None:
        head.bias = nn.Parameter(bias.detach().float().clone())
    return head


def _mean_of(heads: Sequence[nn.Linear]) -> nn.Linear:
    biases = [torch.zeros(h.out_features) if h.bias is None else h.bias for h in heads]
    weights = [h.weight.double() for h in heads]
    mean_bias = torch.stack([b.double() for b in biases]).mean(0)
    return _linear(torch.stack(weights).mean(0), mean_bias)


def reorder_outputs(head: nn.Module, order: Sequence[int]) -> None:
    """Put the outputs of a classifier into another order, in place.

    Args:
        head: An `nn.Linear` or a head of `ltlearn.heads`.
        order: For each new output, the number of the old one.

    Raises:
        UserError: If the head is of another kind.
    """
    if not is_head(head) or not type(head).__module__.startswith(("torch.", "ltlearn.")):
        raise UserError(
            f"the outputs of a {type(head).__name__} cannot be put into another order; give the "
            "data with its classes in the order of the outputs."
        )
    order = torch.as_tensor(list(order))
    state = dict(head.state_dict())
    for key, value in state.items():
        if key in _PER_CLASS:
            state[key] = value[order.to(value.device)]
        elif key == "rank_to_class":
            state[key] = order.argsort().to(value.device)[value]
    head.load_state_dict(state)
