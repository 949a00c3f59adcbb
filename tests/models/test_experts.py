import pytest
import timm
import torch
from torch import nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers resnet20_cifar)
from ltlearn import UserError
from ltlearn.heads import ExpertHead
from ltlearn.models.backbone import LTModel
from ltlearn.models.experts import ExpertBackbone, fit_experts_to_state, last_stages, plain_key
from ltlearn.models.pretrained import create_lt_model
from tests.models.helpers import SMALL

STAGES = {
    "resnet20_cifar": ["layer2", "layer3"],
    "resnet18": ["layer3", "layer4"],
    "convnext_atto": ["stages.2", "stages.3"],
    "vit_tiny_patch16_224": ["blocks.10", "blocks.11"],
    "tf_efficientnet_lite0": ["blocks.5", "blocks.6"],
    "mobilenetv3_small_050": ["blocks.4", "blocks.5"],
    "densenet121": ["features.denseblock3", "features.denseblock4"],
    "swin_tiny_patch4_window7_224": ["layers.2", "layers.3"],
}


@pytest.mark.parametrize("arch", STAGES)
def test_the_last_stages_of_an_architecture(arch):
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0)
    assert last_stages(model, 2) == STAGES[arch]
    assert last_stages(model, 1) == STAGES[arch][1:]


def make_trunk(arch="resnet20_cifar"):
    torch.manual_seed(0)
    kwargs = {"resnet20_cifar": {"width": 4}}.get(arch) or SMALL.get(arch, {})
    return timm.create_model(arch, num_classes=0, **kwargs)


@pytest.mark.parametrize("arch", ["resnet20_cifar", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("count", [1, 2])
def test_copies_give_the_features_of_the_trunk_and_experts_are_separate(arch, count):
    trunk = make_trunk(arch).eval()
    side = getattr(getattr(trunk, "patch_embed", None), "img_size", (32, 32))[0]
    x = torch.randn(3, 3, side, side)
    backbone = ExpertBackbone(trunk, last_stages(trunk, count), 3).eval()
    with torch.no_grad():
        expected, found = trunk(x), backbone(x)
        torch.testing.assert_close(found, expected.repeat(1, 3), rtol=1e-4, atol=1e-5)
        for stage in backbone.parts_of(1):
            for p in stage.parameters():
                p.mul_(1.5)
        width, changed = expected.shape[1], backbone(x)
    same = [torch.allclose(a, b) for a, b in zip(
        changed.split(width, 1), found.split(width, 1), strict=True
    )]  # fmt: skip
    assert same == [True, False, True]
    assert torch.equal(trunk(x), expected), "the trunk itself stays"


def test_batch_statistics_are_those_of_each_expert():
    trunk = make_trunk()
    backbone = ExpertBackbone(trunk, ["layer3"], 2).train()
    with torch.no_grad():
        next(backbone.parts_of(1)[0].parameters()).mul_(3)
        backbone(torch.randn(4, 3, 8, 8))
    one, two = (part[0].bn1.running_mean for part in (backbone.parts_of(e)[0] for e in range(2)))
    assert not torch.allclose(one, two)
    assert int(backbone.trunk.bn1.num_batches_tracked) == 1


def make_model(experts=3, stages=("layer2", "layer3")):
    model = LTModel(make_trunk(), nn.Linear(16, 4))
    if experts:
        model.backbone = ExpertBackbone(model.backbone, stages, experts)
        model.head = ExpertHead(experts * 16, 4, experts)
    return model.eval()


@pytest.mark.parametrize("stages", [("layer3",), ("layer2", "layer3")])
@pytest.mark.parametrize("head", ["experts", "linear"])
def test_a_model_takes_over_the_experts_of_a_state(stages, head):
    model, other = make_model(2, stages), make_model(0)
    if head == "linear":  # as a stage 2 leaves it
        model.head = nn.Linear(32, 4)
    own = other.backbone
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), model(x)) and not other.backbone.training
    assert type(own) is not ExpertBackbone and "layer3.0.conv1.weight" in own.state_dict()


def test_states_that_fit_no_model_are_refused():
    model = make_model()
    with pytest.raises(RuntimeError):
        model.load_state_dict(make_model(0).state_dict())
    state = {k.replace("layer3", "layer9"): v for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        make_model(0).load_state_dict(state)
    with pytest.raises(RuntimeError):
        make_model(0).load_state_dict(make_model(2, ["layer3"]).backbone.state_dict())
    with torch.device("meta"):
        plain = make_model(0)
    many = {f"backbone.trunk.layer3.experts.{e}.0.conv1.weight": () for e in range(40)}
    fit_experts_to_state(plain, many)
    assert type(plain.backbone) is not ExpertBackbone


def test_the_names_without_experts():
    plain = make_model(0).state_dict()
    named = {plain_key(k) for k in make_model().state_dict() if k.startswith("backbone.")}
    assert named == {k for k in plain if k.startswith("backbone.")}
    assert plain_key("head.weight") == "head.weight"


def test_models_without_stages():
    with pytest.raises(UserError, match="number the stages of Sequential"):
        last_stages(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), 1)

    class Flat(nn.Sequential):
        def group_matcher(self, coarse=False):
            return {"stem": ".*"}

    with pytest.raises(UserError, match="number the stages of Flat"):
        last_stages(Flat(nn.Linear(3, 4)), 1)


def test_a_file_of_experts_is_no_backbone(tmp_path):
    trunk = make_trunk()
    model = LTModel(ExpertBackbone(trunk, last_stages(trunk, 1), 3), nn.Linear(48, 5))
    torch.save(model.state_dict(), tmp_path / "experts.pth")
    with pytest.raises(UserError, match=r"experts\.pth.*several experts.*compare_run"):
        create_lt_model("resnet20_cifar", 5, tmp_path / "experts.pth", width=4)
