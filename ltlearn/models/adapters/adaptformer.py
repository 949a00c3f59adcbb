"""AdaptFormer: a bottleneck branch beside the MLP of each block of a timm model."""

import math

import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

__all__ = ["AdapterBranch", "add_branch", "branch_blocks", "branch_width", "remove_branch"]


class AdapterBranch(nn.Module):
    """s * Up(ReLU(Down(LN x))), with a norm of its own and a learnt scalar s that begins at 1.

    Up begins at zero, so that a block with a new branch computes what it did without.

    Args:
        width: Features of a token, at least 1.
        bottleneck: Features between Down and Up, at least 1.

    Shape:
        Input and output (..., width).

    Source:
        Chen et al., NeurIPS 2022, arXiv:2205.13535; Shi et al., ICML 2024, arXiv:2309.10019.

    Example:
        >>> AdapterBranch(768, 32)(torch.randn(2, 197, 768)).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for values in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(values)

    def forward(self, x: Tensor) -> Tensor:
        """Return the term that a block adds to the output of its MLP."""
        return self.scale * self.up(self.down(self.norm(x)).relu())


# timm's blocks with one more term. A block changes its class, so its tensors keep their names.


class _AdaptedBlock(Block):
    """timm's pre-norm transformer block, with a branch."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Run attention, then MLP and branch."""
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + self.adapter(x)


class _AdaptedEvaBlock(EvaBlock):
    """The block of timm's `Eva`, which DINOv3 uses, with a branch."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Run attention, then MLP and branch."""
        attended = self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        x = x + self.drop_path1(attended)
        mixed = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            mixed = self.gamma_2 * mixed
        return x + self.drop_path2(mixed) + self.adapter(x)


class _AdaptedConvNeXtBlock(ConvNeXtBlock):
    """timm's ConvNeXt block, with a branch from the input of the MLP's norm to the output."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the depthwise convolution, then MLP and branch."""
        shortcut = x
        x = self.conv_dw(x)
        last = x.permute(0, 2, 3, 1)  # channels last, for linear layers
        branch = self.adapter(last).permute(0, 3, 1, 2)
        if self.use_conv_mlp:
            x = self.mlp(self.norm(x))
        else:
            x = self.mlp(self.norm(last)).permute(0, 3, 1, 2)
        if self.gamma is not None:
            x = x.mul(self.gamma.reshape(1, -1, 1, 1))
        return self.drop_path(x) + branch + self.shortcut(shortcut)


_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    Block: _AdaptedBlock,
    EvaBlock: _AdaptedEvaBlock,
    ConvNeXtBlock: _AdaptedConvNeXtBlock,
}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}


def branch_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks that have a branch or can get one, by name.

    Args:
        backbone: A timm model.
    """
    # Exact types: a subclass may compute something else.
    kinds = {*_ADAPTED, *_PLAIN}
    return {name: m for name, m in backbone.named_modules() if type(m) in kinds}


def branch_width(block: nn.Module) -> int:
    """Return the bottleneck of a block's branch; 0 without a branch.

    Args:
        block: A result of `branch_blocks`.
    """
    return block.adapter.down.out_features if type(block) in _PLAIN else 0


def add_branch(block: nn.Module, bottleneck: int) -> None:
    """Give a block without a branch a new one.

    Args:
        block: A result of `branch_blocks`.
        bottleneck: Features between Down and Up, at least 1.
    """
    norm = block.norm if isinstance(block, ConvNeXtBlock) else block.norm2
    like = next(block.parameters())
    block.__class__ = _ADAPTED[type(block)]
    branch = AdapterBranch(norm.normalized_shape[0], bottleneck)
    block.adapter = branch.to(like.device, like.dtype).train(block.training)


def remove_branch(block: nn.Module) -> None:
    """Remove the branch of a block.

    Args:
        block: A result of `branch_blocks` with a branch.
    """
    block.__class__ = _PLAIN[type(block)]
    del block.adapter
