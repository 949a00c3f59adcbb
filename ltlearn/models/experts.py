"""A backbone of several experts: shared early layers, then stages of its own for each expert."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.heads.experts import ExpertHead
from ltlearn.heads.registry import is_head

__all__ = ["ExpertBackbone", "fit_experts_to_state", "last_stages", "plain_key"]

# A name in the state of an `ExpertBackbone`: the stage, the expert, and the rest.
_OWN = re.compile(r"trunk\.(?P<stage>.+?)\.experts\.(?P<expert>\d{1,2})\.(?P<rest>.+)")
_MAX_EXPERTS = 32  # a file of weights may name no more


class _OwnStage(nn.Module):
    """A stage of a network, once for each expert.

    From the first such stage on, the batch holds the rows of the first expert, then those of the
    second, and so on: the layers behind the stages need no change.
    """

    def __init__(self, experts: Iterable[nn.Module], is_first: bool):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.is_first = is_first

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        count = len(self.experts)
        own = [x] * count if self.is_first else x.unflatten(0, (count, -1)).unbind()
        parts = zip(self.experts, own, strict=True)
        return torch.cat([stage(part, *args, **kwargs) for stage, part in parts])


class ExpertBackbone(nn.Module):
    """A backbone whose last stages exist once for each expert.

    Early layers are shared, and so are the layers behind the last stage, such as a norm or the
    pooling.

    Args:
        trunk: Maps images to (N, D) features; it is copied. At first all experts are
            equal to it.
        stages: Names of its modules that each expert has for itself, in the order of the forward
            pass. Each is called once, with a batch in its first argument.
        experts: E, at least 1.

    Shape:
        Input (N, 3, H, W). Output (N, E * D): the features of the first expert, then those of the
        second, and so on.

    Source:
        Wang et al., ICLR 2021, arXiv:2010.01809 (RIDE). In the code of BalPoE for CIFAR each expert
        has the last two stages of the ResNet.

    Example:
        >>> backbone = ExpertBackbone(timm.create_model("resnet18", num_classes=0), ["layer4"], 3)
        >>> backbone(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 1536])
    """

    def __init__(self, trunk: nn.Module, stages: Sequence[str], experts: int):
        super().__init__()
        self.trunk, self.experts = copy.deepcopy(trunk), experts
        for position, name in enumerate(stages):
            stage = self.trunk.get_submodule(name)
            others = [copy.deepcopy(stage) for _ in range(experts - 1)]
            self.trunk.set_submodule(name, _OwnStage([stage, *others], position == 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of all experts."""
        features = self.trunk(x)
        return features.unflatten(0, (self.experts, -1)).transpose(0, 1).flatten(1)

    def parts_of(self, expert: int) -> list[nn.Module]:
        """Return the stages of one expert.

        Args:
            expert: Its number, from 0.
        """
        own = [m for m in self.trunk.modules() if isinstance(m, _OwnStage)]
        return [stage.experts[expert] for stage in own]


def last_stages(backbone: nn.Module, count: int) -> list[str]:
    """Return the names of the last stages of a timm model, in the order of the forward pass.

    A stage is a module that timm numbers in its coarse layer groups: a stage of a ResNet, ConvNeXt,
    EfficientNet or Swin, a block of a ViT.

    Args:
        backbone: A timm model.
        count: The most stages to return, at least 1.

    Raises:
        UserError: If timm does not number the layers of this model.
    """
    matcher = backbone.group_matcher(coarse=True) if hasattr(backbone, "group_matcher") else None
    patterns = list(_patterns(matcher)) if isinstance(matcher, Mapping) else []
    sizes: dict[tuple[int, ...], dict[str, int]] = {}
    for key, p in backbone.named_parameters():
        match = next(filter(None, (re.match(pattern, key) for pattern in patterns)), None)
        # A pattern without a number matches the first layers, or a norm behind the last stage.
        if match and match.groups() and all(map(str.isdigit, map(str, match.groups()))):
            name = key[: match.end()] + re.match(r"[^.]*", key[match.end() :])[0]
            of_number = sizes.setdefault(tuple(map(int, match.groups())), {})
            of_number[name] = of_number.get(name, 0) + p.numel()
    if not sizes:
        raise UserError(
            f"timm does not number the stages of {type(backbone).__name__}, so it is "
            "unknown which ones each expert needs for itself; take another timm model."
        )
    # A DenseNet also numbers its transitions: they are shared.
    return [max(sizes[number], key=sizes[number].get) for number in sorted(sizes)[-count:]]


def _patterns(matcher: Mapping) -> Iterator[str]:
    for group in matcher.values():
        for one in group if isinstance(group, list | tuple) else [group]:
            yield one[0] if isinstance(one, list | tuple) else one


def plain_key(key: str) -> str:
    """Return the name that a tensor of an expert has in a model without experts.

    Args:
        key: A key of the state dict of an `LTModel`. It stays if it belongs to no expert.
    """
    start, _, rest = key.partition(".")
    if start != "backbone" or not rest.startswith("trunk."):
        return key
    own = _OWN.fullmatch(rest)
    return f"{start}.{own['stage']}.{own['rest']}" if own else f"{start}.{rest[len('trunk.') :]}"


def fit_experts_to_state(module: nn.Module, state: Mapping, prefix: str = "") -> None:
    """Give a model the experts of a state dict, if it has none; the values are not loaded.

    Args:
        module: An `LTModel`; backbone and head are replaced.
        state: The state dict. Its keys alone are read.
        prefix: What the keys of the model begin with.
    """
    backbone, head, start = module.backbone, module.head, f"{prefix}backbone."
    if isinstance(backbone, ExpertBackbone) or not is_head(head):
        return
    keys = (key[len(start) :] for key in state if key.startswith(start))
    own = [match for match in map(_OWN.fullmatch, keys) if match]
    named, count = {match["stage"] for match in own}, len({match["expert"] for match in own})
    stages = [name for name, _ in backbone.named_modules() if name in named]
    # Torch raises an error for a state that fits no such model.
    if not own or len(stages) != len(named) or count > _MAX_EXPERTS:
        return
    like = next(v for v in head.state_dict().values() if v.is_floating_point())
    new = ExpertHead(count * head.in_features, head.out_features, count)
    module.backbone = ExpertBackbone(backbone, stages, count).train(backbone.training)
    module.head = new.to(like.device, like.dtype).train(head.training)
