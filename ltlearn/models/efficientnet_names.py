"""Translate the names of tensors in files of EfficientNet-PyTorch to timm's names."""

import re

from torch import Tensor, nn

__all__ = ["rename_efficientnet"]

_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")
_OUTSIDE = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3", **_SQUEEZE,
}  # fmt: skip
# Blocks of the first stage do not expand, and timm counts their layers from there.
_NOT_EXPANDED = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
    **_SQUEEZE,
}  # fmt: skip


def rename_efficientnet(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give the tensors of an EfficientNet-PyTorch file the names that timm uses.

    Other files are returned unchanged.

    Args:
        state: Tensors by their names in the file.
        model: timm's model, which states how many blocks each stage has.

    Raises:
        ValueError: If the model pads its images otherwise than these weights need.

    Source:
        github.com/lukemelas/EfficientNet-PyTorch; the names only.
    """
    if "_conv_stem.weight" not in state or not hasattr(model, "blocks"):
        return state
    arch = model.pretrained_cfg["architecture"]
    if not arch.startswith("tf_"):
        raise ValueError(f"these weights need the padding of TensorFlow, as in tf_{arch}")
    blocks = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    return {_timm_name(name, blocks, state): tensor for name, tensor in state.items()}


def _timm_name(name: str, blocks: list[tuple[int, int]], state: dict[str, Tensor]) -> str:
    layer, _, leaf = name.rpartition(".")
    if layer in _OUTSIDE:
        return f"{_OUTSIDE[layer]}.{leaf}"
    match = _BLOCK.fullmatch(layer)
    if match is None or int(match[1]) >= len(blocks):
        return name  # reported as a tensor that the model does not use
    number, inside = match.groups()
    stage, place = blocks[int(number)]
    is_expanded = f"_blocks.{number}._expand_conv.weight" in state
    names = _EXPANDED if is_expanded else _NOT_EXPANDED
    return f"blocks.{stage}.{place}.{names.get(inside, inside)}.{leaf}"
