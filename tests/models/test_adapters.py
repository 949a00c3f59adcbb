"""Adapters of timm's blocks: formulas, rules, files."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ltlearn.models.adapters import (
    ADAPTFORMER,
    LORA,
    AdapterBranch,
    LoRALinear,
    fit_adapters,
    has_branches,
    merge_lora,
)

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32, "patch_size": 16}
VIT = {
    "plain": ("vit_tiny_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}),
    "DINOv3": ("vit_small_patch16_dinov3", {"init_values": 0.5}),
    "DINOv3, bias": ("vit_small_patch16_dinov3_qkvb", {"init_values": 0.5}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "separate q": ("eva02_base_patch14_224", {"mlp_ratio": 2.0}),
}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}
CONV = {
    "ConvNeXt": ("convnext_atto", CONVNEXT),
    "ConvNeXt, 1x1": ("convnext_atto", {**CONVNEXT, "conv_mlp": True}),
    "ConvNeXt V2": ("convnextv2_atto", CONVNEXT),
}


def make(name):
    arch, more = {**VIT, **CONV}[name]
    torch.manual_seed(0)
    more = more if name in CONV else {**SMALL, **more}
    return timm.create_model(arch, num_classes=0, **more).eval()


def add(kind, backbone, size=4, random=True):
    sites = kind.sites(backbone)
    for site in sites.values():
        kind.add(site, size)
    if random:  # else they compute nothing
        with torch.no_grad():
            for n, p in backbone.named_parameters():
                if ".adapter." in n or ".lora_" in n:
                    p.normal_(0, 0.2)
    return sites


@pytest.mark.parametrize("kind", [ADAPTFORMER, LORA], ids=["AdaptFormer", "LoRA"])
@pytest.mark.parametrize("name", [*VIT, *CONV])
def test_nothing_changes_at_the_start_and_names_stay(name, kind):
    backbone = make(name)
    if kind is LORA and name in CONV:
        assert not kind.sites(backbone)
        return
    x, before = torch.randn(2, 3, 32, 32), dict(backbone.state_dict())
    with torch.no_grad():
        expected = backbone(x)
        sites = add(kind, backbone, random=False)
        # With a separate bias, EVA-02 rounds once more.
        torch.testing.assert_close(backbone(x), expected, rtol=1e-5, atol=1e-5)
        for values in (
            v for n, v in backbone.named_parameters() if n.endswith(("up", "up.weight"))
        ):
            values.normal_()
        assert not torch.allclose(backbone(x), expected, atol=1e-3)
    assert len(sites) == (4 if name in CONV else 2)
    assert before.keys() < backbone.state_dict().keys()


def branch(block, x):
    b = block.adapter
    low = F.layer_norm(x, x.shape[-1:], b.norm.weight, b.norm.bias) @ b.down.weight.T + b.down.bias
    return b.scale * (low.clamp(min=0) @ b.up.weight.T + b.up.bias)


@pytest.mark.parametrize("name", VIT)
def test_adaptformer_is_its_formula(name):
    backbone = make(name)
    plain = copy.deepcopy(backbone)
    blocks = add(ADAPTFORMER, backbone)
    seen = {}
    for path in blocks:
        # x after attention is what the norm of the MLP gets.
        block = plain.get_submodule(path)
        block.norm2.register_forward_pre_hook(lambda _, x, path=path: seen.update({path: x[0]}))
    for path, adapted in blocks.items():
        block, x = plain.get_submodule(path), torch.randn(2, 5, 24)
        with torch.no_grad():
            expected = block(x) + branch(adapted, seen[path])
            torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VIT)
def test_lora_is_its_formula_and_merges(name):
    backbone = make(name)
    plain = copy.deepcopy(backbone)
    sites = add(LORA, backbone)
    fused = [name.startswith("separate") for _ in sites]
    with torch.no_grad():
        for path in sites:
            new, old = backbone.get_submodule(path), plain.get_submodule(path)
            for part in ("qkv",) if new.qkv is not None else ("q_proj", "v_proj"):
                a, b = (getattr(getattr(new, part), f"lora_{k}") for k in ("down", "up"))
                weight, d = getattr(old, part).weight, 24
                if part == "qkv":
                    weight[:d] += b[:d] @ a[:4] / 4
                    weight[2 * d :] += b[d:] @ a[4:] / 4
                else:
                    weight += b @ a / 4
        x = torch.randn(2, 3, 32, 32)
        expected = backbone(x)
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
        layers = merge_lora(backbone)
        assert layers == len(fused) * (1 if sites[path].qkv is not None else 2)
        torch.testing.assert_close(backbone(x), expected, rtol=1e-5, atol=1e-5)
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert not any(isinstance(m, LoRALinear) for m in backbone.modules())


@pytest.mark.parametrize(
    ("classes", "bottleneck", "rank"),
    [(1000, 32, 16), (365, 8, 4), (8142, 256, 128), (100, 4, 2), (10, 1, 1)],
)
def test_sizes_follow_the_rule(classes, bottleneck, rank):
    assert ADAPTFORMER.rule(classes, 12) == bottleneck and LORA.rule(classes, 12) == rank


@pytest.mark.parametrize("kind", [ADAPTFORMER, LORA], ids=["AdaptFormer", "LoRA"])
def test_the_share_of_a_vit_b(kind):
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
        add(kind, backbone, kind.rule(1000, 12), random=False)
    total = sum(p.numel() for p in backbone.parameters()) + 768 * 1000
    own = ("adapter.", "lora_")
    new = sum(p.numel() for n, p in backbone.named_parameters() if any(k in n for k in own))
    assert 0 < (new + 768 * 1000) / total < 0.02


def test_a_backbone_takes_and_loses_the_adapters_of_a_state():
    backbone = make("plain")
    plain = {k: v.shape for k, v in backbone.state_dict().items()}
    other = make("plain")
    add(ADAPTFORMER, other, 3)
    add(LORA, other, 2)
    adapted = {k: v.shape for k, v in other.state_dict().items()}
    fit_adapters(backbone, adapted)
    backbone.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x), other(x)) and has_branches(backbone)
    fit_adapters(backbone, {})  # a state without the blocks leaves them as they are
    assert has_branches(backbone)
    fit_adapters(backbone, plain)
    assert backbone.state_dict().keys() == plain.keys() and not has_branches(backbone)
    # Shapes that are none of an adapter's.
    fit_adapters(backbone, {**plain, "blocks.0.adapter.down.weight": (3,)})
    assert not has_branches(backbone)


def test_an_adapted_model_is_copied_with_its_adapters():
    backbone = make("plain")
    add(ADAPTFORMER, backbone)
    add(LORA, backbone)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(copy.deepcopy(backbone)(x), backbone(x))
    assert "rank=4" in repr(backbone)


def test_a_branch_begins_as_published():
    branch = AdapterBranch(6, 2)
    assert branch.scale.item() == 1 and not branch.up.weight.any() and branch.down.weight.any()
    assert isinstance(branch.norm, nn.LayerNorm)
