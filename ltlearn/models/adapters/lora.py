"""LoRA on the queries and values of timm's attention.

`peft` would need transformers and accelerate, and cannot leave the keys of a fused qkv layer as
they are. So this is shorter.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

__all__ = ["LoRALinear", "add_lora", "lora_rank", "lora_sites", "merge_lora", "remove_lora"]

_ATTENTION = (Attention, AttentionRope, EvaAttention)


class LoRALinear(nn.Linear):
    """A linear layer plus Up(Down x) / r, with Up at zero in the beginning.

    A fused layer of queries, keys and values (q, k, v) has two such pairs, for q and v.
    `add_lora` makes it of an `nn.Linear`, whose parameters keep their names.

    Shape:
        Input (..., in_features). Output (..., out_features).

    Source:
        Hu et al., ICLR 2022, arXiv:2106.09685; scale 1 / r: Shi et al., ICML 2024,
        arXiv:2309.10019.
    """

    lora_down: nn.Parameter  # (r, in), or (2 r, in) for q and v
    lora_up: nn.Parameter  # (out, r), or (2 / 3 out, r) for q and v

    @property
    def rank(self) -> int:
        """Return r."""
        return self.lora_up.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        # The small product is added to the output. Added to a weight in half precision, most of
        # it would be rounded away.
        y, low = F.linear(x, self.weight, self.bias), F.linear(x, self.lora_down) / self.rank
        if not self._is_fused():
            return y + F.linear(low, self.lora_up)
        q, k, v = y.chunk(3, -1)
        changes = zip(low.chunk(2, -1), self.lora_up.chunk(2), strict=True)
        of_q, of_v = (F.linear(part, up) for part, up in changes)
        return torch.cat([q + of_q, k, v + of_v], -1)

    def change(self) -> Tensor:
        """Return what LoRA adds to the weight, (out, in), float32."""
        down, up = self.lora_down.float() / self.rank, self.lora_up.float()
        if not self._is_fused():
            return up @ down
        of_q, of_v = (u @ d for u, d in zip(up.chunk(2), down.chunk(2), strict=True))
        return torch.cat([of_q, torch.zeros_like(of_q), of_v])

    def _is_fused(self) -> bool:
        return self.lora_up.shape[0] != self.out_features

    def extra_repr(self) -> str:
        """Describe the layer for `repr`."""
        return f"{super().extra_repr()}, rank={self.rank}"


def lora_sites(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules that have LoRA or can get it, by name.

    Args:
        backbone: A timm model.
    """
    # Exact types: other attention may order or use its weights in another way.
    return {name: m for name, m in backbone.named_modules() if type(m) in _ATTENTION}


def lora_rank(attention: nn.Module) -> int:
    """Return the rank of LoRA in an attention module; 0 without LoRA.

    Args:
        attention: A result of `lora_sites`.
    """
    layer = _layers_of(attention)[0]
    return layer.rank if isinstance(layer, LoRALinear) else 0


def add_lora(attention: nn.Module, rank: int) -> None:
    """Give queries and values of an attention module new LoRA.

    Args:
        attention: A result of `lora_sites` without LoRA.
        rank: Rank r, at least 1.
    """
    layers = _layers_of(attention)
    for layer in layers:
        weight, parts, out = layer.weight, 1, layer.out_features
        if len(layers) == 1:  # q, k and v in one
            parts, out = 2, 2 * (out // 3)
        down, up = torch.empty(parts * rank, layer.in_features), torch.zeros(out, rank)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        layer.__class__ = LoRALinear
        layer.lora_down = nn.Parameter(down.to(weight.device, weight.dtype))
        layer.lora_up = nn.Parameter(up.to(weight.device, weight.dtype))
    if getattr(attention, "q_bias", None) is not None:
        # Else `EvaAttention` reads the weight of its fused layer and does not call the layer.
        attention.qkv_bias_separate = True


def remove_lora(attention: nn.Module) -> None:
    """Remove LoRA from an attention module, without adding it to the weights.

    Args:
        attention: A result of `lora_sites` with LoRA.
    """
    for layer in _layers_of(attention):
        _make_plain(layer)


def _layers_of(attention: nn.Module) -> list[nn.Linear]:
    """Return the layer of q, k and v, or the layers of q and of v."""
    fused = attention.qkv
    return [attention.q_proj, attention.v_proj] if fused is None else [fused]


def _make_plain(layer: nn.Linear) -> None:
    del layer.lora_down, layer.lora_up
    layer.__class__ = nn.Linear


@torch.no_grad()
def merge_lora(module: nn.Module) -> int:
    """Add LoRA to the weights of the layers that have it, which become plain linear layers.

    The module then computes the same, up to rounding, with the tensors of a plain timm model.

    Args:
        module: A model or backbone; it is changed.

    Returns:
        How many layers had LoRA.

    Example:
        >>> merge_lora(learn.model)
        12
    """
    layers = [m for m in module.modules() if isinstance(m, LoRALinear)]
    for layer in layers:
        layer.weight.copy_(layer.weight.float() + layer.change())
        _make_plain(layer)
    return len(layers)
