"""The kinds of adapters, and how a backbone gets the adapters of a state dict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ltlearn.models.adapters.adaptformer import (
    add_branch,
    branch_blocks,
    branch_width,
    remove_branch,
)
from ltlearn.models.adapters.lora import add_lora, lora_rank, lora_sites, remove_lora

__all__ = ["ADAPTFORMER", "LORA", "AdapterKind", "fit_adapters", "has_branches"]

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Args:
        sites: Returns the modules of a backbone that have an adapter or can get one, by name.
        size: Returns the size of a site's adapter; 0 without one.
        add: Gives a site without an adapter a new one of a size.
        remove: Removes the adapter of a site.
        keys: Names of tensors below the name of the site; an adapter has exactly one of them.
        axis: The axis of this tensor whose length is the adapter's size.
        share: The size is 2 to the power of floor(log2(classes / (share * blocks))), at least 1.
        size_name: What the size is called.
    """

    sites: Callable[[nn.Module], dict[str, nn.Module]]
    size: Callable[[nn.Module], int]
    add: Callable[[nn.Module, int], None]
    remove: Callable[[nn.Module], None]
    keys: tuple[str, ...]
    axis: int
    share: int
    size_name: str

    def rule(self, num_classes: int, blocks: int) -> int:
        """Return LIFT's size of an adapter.

        Args:
            num_classes: Number of classes C, at least 1.
            blocks: Number of blocks L, at least 1.
        """
        ratio = num_classes // (self.share * blocks)
        return 1 << max(0, ratio.bit_length() - 1)

    def size_in(self, shapes: Shapes, name: str) -> int:
        """Return the size of a site's adapter in a state dict; 0 without one.

        Args:
            shapes: The shapes of its tensors, by name.
            name: The name of the site.
        """
        found = [shapes[key] for k in self.keys if (key := f"{name}.{k}") in shapes]
        return found[0][self.axis] if found and len(found[0]) == 2 else 0


ADAPTFORMER = AdapterKind(
    sites=branch_blocks,
    size=branch_width,
    add=add_branch,
    remove=remove_branch,
    keys=("adapter.down.weight",),
    axis=0,
    share=2,
    size_name="bottleneck",
)
LORA = AdapterKind(
    sites=lora_sites,
    size=lora_rank,
    add=add_lora,
    remove=remove_lora,
    keys=("qkv.lora_up", "q_proj.lora_up"),
    axis=1,
    share=4,
    size_name="rank",
)


def fit_adapters(backbone: nn.Module, shapes: Shapes) -> None:
    """Add and remove adapters until a backbone has the same ones as a state dict.

    A site whose own tensors the state dict lacks stays as it is. The values of the new adapters
    are to be loaded afterwards.

    Args:
        backbone: The backbone; it is changed.
        shapes: The shapes of the backbone's tensors in the state dict, by name.
    """
    for kind in (ADAPTFORMER, LORA):
        for name, site in kind.sites(backbone).items():
            wanted = kind.size_in(shapes, name)
            own = next(n for n, _ in site.named_parameters())
            if wanted == kind.size(site) or f"{name}.{own}" not in shapes:
                continue
            if kind.size(site):
                kind.remove(site)
            if wanted:
                with torch.random.fork_rng(devices=[]):  # the caller's draws stay
                    kind.add(site, wanted)


def has_branches(backbone: nn.Module) -> bool:
    """Return whether a backbone has branches of AdaptFormer, which no plain weights replace.

    Args:
        backbone: The backbone.
    """
    return any(map(branch_width, branch_blocks(backbone).values()))
