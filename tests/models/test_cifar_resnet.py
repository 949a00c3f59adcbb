import pytest
import timm
import torch
from torch.nn import functional as F

from ltlearn.models import CifarResNet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_sizes_are_those_of_the_paper(depth, millions):
    model = timm.create_model(f"resnet{depth}_cifar", num_classes=10)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)
    convs = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) + 1 == depth


def test_size_of_the_wide_net_of_samn():
    assert parameters(timm.create_model("resnet32_cifar", width=64, num_classes=100)) == 7_409_316


def test_option_a_shortcut():
    """Where the convolutions give nothing, a block is its shortcut alone."""
    model = CifarResNet(20, width=4, num_classes=3).eval()
    block = model.layer2[0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    out = block(x.clone())
    expected = torch.zeros(2, 8, 4, 4)
    for c in range(4):
        for i in range(4):
            for j in range(4):
                expected[:, 2 + c, i, j] = x[:, c, 2 * i, 2 * j].clamp(min=0)
    assert torch.equal(out, expected)
    block = model.layer2[1]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x.clone()), x.clamp(min=0))


def test_initialisation_is_kaiming_normal():
    torch.manual_seed(0)
    model = CifarResNet(20, width=64, num_classes=100)
    weight = model.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


def test_the_protocol_of_timm():
    model = timm.create_model("resnet20_cifar", width=4, num_classes=3).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 16, 4, 4)
    assert torch.allclose(pooled, features.mean((2, 3)))
    logits = model.forward_head(features)
    assert torch.equal(model(x), logits)
    assert torch.allclose(logits, F.linear(pooled, model.fc.weight, model.fc.bias))
    assert model.get_classifier() is model.fc

    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(x), features)

    bare = timm.create_model("resnet20_cifar", width=4, num_classes=0).eval()
    assert bare(x).shape == (2, 16) == (2, bare.num_features)
    assert bare.head_hidden_size == 16


def test_features_only_gives_what_the_network_computes():
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", width=4, num_classes=3).eval()
    torch.manual_seed(0)
    maps = timm.create_model("resnet20_cifar", width=4, features_only=True).eval()
    maps.load_state_dict({k: v for k, v in model.state_dict().items() if k in maps.state_dict()})
    x = torch.randn(2, 3, 16, 16)
    out = maps(x)
    assert [tuple(o.shape[1:]) for o in out] == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert torch.allclose(out[-1], model.forward_features(x), atol=1e-6)
    assert maps.feature_info.channels() == [4, 8, 16]


def test_other_options():
    model = CifarResNet(20, width=4, num_classes=3, in_chans=1, drop_rate=0.5)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 \(20, 32, 44, 56, ...\), got 33"):
        CifarResNet(33)
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        model.set_grad_checkpointing()
