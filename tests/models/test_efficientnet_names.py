import re

import pytest
import timm
import torch

from ltlearn import UserError
from ltlearn.models.efficientnet_names import rename_efficientnet
from ltlearn.models.pretrained import create_lt_model

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names_of_efficientnet_pytorch(blocks):
    """List the tensors of EfficientNet-PyTorch in its order: the order of timm, too."""
    names = ["_conv_stem.weight", *(f"_bn0.{leaf}" for leaf in NORM)]
    for number in range(blocks):
        start = f"_blocks.{number}"
        if number:
            names += [f"{start}._expand_conv.weight", *(f"{start}._bn0.{leaf}" for leaf in NORM)]
        names += [f"{start}._depthwise_conv.weight", *(f"{start}._bn1.{leaf}" for leaf in NORM)]
        names += [
            f"{start}._se_{kind}.{leaf}" for kind in ("reduce", "expand") for leaf in NORM[:2]
        ]
        names += [f"{start}._project_conv.weight", *(f"{start}._bn2.{leaf}" for leaf in NORM)]
    names += ["_conv_head.weight", *(f"_bn1.{leaf}" for leaf in NORM)]
    return [*names, "_fc.weight", "_fc.bias"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_b0", num_classes=5).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


@pytest.fixture
def file(network, tmp_path):
    blocks = sum(len(stage) for stage in network.blocks)
    values = network.state_dict().values()
    state = dict(zip(names_of_efficientnet_pytorch(blocks), values, strict=True))
    torch.save(state, tmp_path / "b0.pth")
    return tmp_path / "b0.pth"


def test_a_file_of_efficientnet_pytorch_gives_the_same_logits(network, file):
    x = torch.randn(2, 3, 64, 64)
    kept = create_lt_model("tf_efficientnet_b0", 5, file, keep_head=True).eval()
    assert torch.allclose(kept(x), network(x), atol=1e-5)
    new = create_lt_model("tf_efficientnet_b0", 3, file).eval()
    assert torch.equal(new.backbone(x), kept.backbone(x)) and new(x).shape == (2, 3)


def test_other_padding_than_the_weights_need_is_refused(file):
    with pytest.raises(UserError, match=re.escape("tf_efficientnet_b0")):
        create_lt_model("efficientnet_b0", 5, file)


def test_another_depth_is_refused(file):
    with pytest.raises(UserError, match=r"b0\.pth.*tf_efficientnet_b1"):
        create_lt_model("tf_efficientnet_b1", 5, file)


def test_a_block_that_the_model_lacks_keeps_its_name(network):
    state = {"_conv_stem.weight": torch.ones(1), "_blocks.16._bn2.bias": torch.ones(1)}
    assert "_blocks.16._bn2.bias" in rename_efficientnet(state, network)
