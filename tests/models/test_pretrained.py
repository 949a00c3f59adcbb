import copy
import json
from threading import Event

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear, UserError
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.heads.registry import as_linear, head_from_state, is_head
from ltlearn.models.backbone import LTModel, evaluating, find_head, set_head
from ltlearn.models.pretrained import check_weights, create_lt_model
from tests.models.helpers import SMALL


@pytest.mark.parametrize("arch", SMALL)
def test_the_backbone_gives_pooled_features_and_the_head_is_one_layer(arch):
    model = create_lt_model(arch, 3, pretrained=False, img_size=32, **SMALL[arch]).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.backbone(x)
    assert type(model.head) is nn.Linear
    assert features.shape == (2, model.head.in_features)
    assert torch.equal(model(x), model.head(features))
    assert find_head(model, 3) == ("head", model.head)


@pytest.mark.parametrize("arch", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_classifier_of_a_timm_model_is_found(arch):
    model = timm.create_model(arch, num_classes=5, **SMALL[arch])
    name, head = find_head(model, 5)
    assert head is model.get_classifier() and model.get_submodule(name) is head
    new = SAMNLinear.from_linear(head, [5, 4, 3, 2, 1])
    assert set_head(model, name, new) is model
    assert model.get_classifier() is new and find_head(model) == (name, new)


class TorchvisionLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_the_classifier_of_other_models_is_found():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3), nn.Dropout()))
    assert find_head(model) == ("2.0", model[2][0])
    linear = nn.Linear(4, 3)
    assert find_head(linear, 3) == ("", linear)
    samn = SAMNLinear(4, [3, 2, 1])
    assert find_head(samn, 3) == ("", samn)
    assert set_head(linear, "", samn) is samn
    model = TorchvisionLike()
    assert find_head(model, 3) == ("fc", model.fc)


def test_a_model_without_a_linear_classifier_is_refused():
    with pytest.raises(UserError, match=r"must end in an nn.Linear .* is BatchNorm1d \(1\)"):
        find_head(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.raises(UserError, match=r"linear layer of 3 outputs \(the model itself\)"):
        find_head(nn.Linear(4, 3), 5)
    with pytest.raises(UserError, match="must end in an nn.Linear"):
        find_head(timm.create_model("resnet20_cifar", width=4, num_classes=0))


def test_an_unknown_model_gets_suggestions():
    with pytest.raises(
        UserError,
        match="timm has no model arch='resnet23_cifar'; did you mean resnet32_c",
    ):
        create_lt_model("resnet23_cifar", 3)
    with pytest.raises(UserError, match="no model arch='qqqqqq'; `timm.list_models"):
        create_lt_model("qqqqqq", 3)


def test_an_argument_that_the_model_does_not_take():
    with pytest.raises(UserError, match="timm's resnet10t does not take girth"):
        create_lt_model("resnet10t", 3, pretrained=False, girth=3)


# ------------------------------------------------ weights


@pytest.mark.parametrize("arch", ["resnet18", "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_an_unreachable_hub_is_reported_before_the_download(monkeypatch, tmp_path, arch):
    def model_info(*args, timeout, **kwargs):
        assert timeout <= 5
        raise OSError("Name or service not known\nand a long story")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("timm downloads"))
    for call in (lambda: create_lt_model(arch, 3), lambda: check_weights(arch)):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert f"{arch} cannot be downloaded (Name or service not known); " in message
        assert "pretrained=False" in message and "pretrained='FILE'" in message


def test_a_hub_that_does_not_answer_is_reported_within_seconds(monkeypatch, tmp_path):
    """A dead name server once made the user wait for a minute."""
    over = Event()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: over.wait(60))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.05")
    try:
        with pytest.raises(UserError, match=rf"no answer within 0.05 s.*FILE.*{tmp_path}.*OFFLINE"):
            create_lt_model("resnet18", 3)
        assert not over.is_set()
    finally:
        over.set()


@pytest.mark.parametrize("pretrained", [False, "file"])
def test_a_model_of_the_hub_needs_its_configuration(monkeypatch, tmp_path, pretrained):
    """The message once recommended pretrained=False, which was given."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if pretrained:
        pretrained = tmp_path / "w.pth"
        torch.save(timm.create_model("resnet10t").state_dict(), pretrained)
    arch = "hf-hub:timm/resnet18.a1_in1k"
    for call in (
        lambda: create_lt_model(arch, 3, pretrained),
        lambda: check_weights(arch, needed=False),
    ):
        with pytest.raises(UserError, match=r"configuration of hf-hub.*arch='resnet18'") as caught:
            call()
        assert "pretrained" not in str(caught.value)
    assert check_weights("resnet18", needed=False) is False
    with pytest.raises(UserError, match=r"configuration of local-dir:.*config.json"):
        create_lt_model(f"local-dir:{tmp_path}", 3, False)


def test_offline_mode_without_cached_weights():
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set .* pretrained=False"):
        create_lt_model("resnet18", 3)


def test_a_failed_download_is_one_sentence(monkeypatch):
    def create(*args, **kwargs):
        raise OSError("connection lost\nand a long story")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: "cached")
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"cannot be downloaded \(connection lost\); .*pretrained="):
        create_lt_model("resnet18", 3)


def test_a_model_that_has_no_weights_starts_at_random(caplog):
    with caplog.at_level("WARNING", "ltlearn"):
        create_lt_model("resnet20_cifar", 3, width=4)
    assert "resnet20_cifar has no pre-trained weights" in caplog.text


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_weights_from_a_file(tmp_path, suffix, classes):
    source = timm.create_model("resnet20_cifar", width=4, num_classes=classes)
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(source.state_dict(), file)
    else:
        torch.save(source.state_dict(), file)
    for path in (file, str(file)):
        model = create_lt_model("resnet20_cifar", 3, pretrained=path, width=4)
        own = model.backbone.state_dict()
        assert all(torch.equal(own[k], v) for k, v in source.state_dict().items() if k in own)
        assert "conv1.weight" in own and model.head.out_features == 3


def test_weights_that_a_learner_saved(tmp_path):
    source = create_lt_model("resnet20_cifar", 5, pretrained=False, width=4)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    model = create_lt_model("resnet20_cifar", 3, pretrained=tmp_path / "model.pth", width=4)
    expected = source.backbone.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.backbone.state_dict().items())


def test_files_without_tensors(tmp_path):
    file = tmp_path / "weights.pth"
    formats = "give a model's state_dict.. as saved by safetensors"
    with pytest.raises(UserError, match="there is no weights file .*weights.pth; give a .safetens"):
        create_lt_model("resnet20_cifar", 3, pretrained=file, width=4)
    for junk in (b"no weights", b"hello", b"", b"PK\x03\x04" + bytes(60)):
        file.write_bytes(junk)
        with pytest.raises(UserError, match=f"no file of PyTorch tensors, or damaged; {formats}"):
            create_lt_model("resnet20_cifar", 3, pretrained=file, width=4)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=f"no file of safetensors, or damaged; {formats}"):
        create_lt_model("resnet20_cifar", 3, pretrained=file, width=4)
    torch.save({"epoch": 3, "net": {"depth": 20}}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=f"odd.pt holds epoch, net, but no .*tensors; {formats}"):
        create_lt_model("resnet20_cifar", 3, pretrained=tmp_path / "odd.pt", width=4)
    torch.save({}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="odd.pt holds nothing, but no"):
        create_lt_model("resnet20_cifar", 3, pretrained=tmp_path / "odd.pt", width=4)


def test_files_of_another_shape(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet20_cifar", width=8).state_dict(), file)
    with pytest.raises(UserError) as caught:
        create_lt_model("resnet20_cifar", 3, pretrained=file, width=4)
    assert str(caught.value).endswith(
        "weights.pth do not fit resnet20_cifar (conv1.weight is 8 x 3 x 3 x 3 in the file, but "
        "4 x 3 x 3 x 3 in the model, and 94 more differ); give the arch of the file, and its width "
        "(model.width=64 for example)."
    )
    # timm would load none of these tensors and only log a message.
    torch.save({"stem.weight": torch.zeros(3)}, file)
    problem = r"lacks \d+ tensors such as conv1.0.weight, and it has a tensor stem.weight, which"
    with pytest.raises(UserError, match=problem):
        create_lt_model("resnet10t", 3, pretrained=file)


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize(
    ("file_arch", "arch", "problem"),
    [
        ("resnet20_cifar", "resnet32_cifar", "lacks 60 tensors such as layer1.3.conv1.weight"),
        ("resnet32_cifar", "resnet20_cifar", "has 60 tensors such as layer1.3.conv1.weight, which"),
    ],
)
def test_files_of_another_depth(tmp_path, capfd, caplog, file_arch, arch, problem, keep_head):
    source = timm.create_model(file_arch, width=4, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=problem), caplog.at_level("WARNING"):
        create_lt_model(arch, 3, tmp_path / "w.pth", keep_head=keep_head, width=4)
    assert not caplog.text and not "".join(capfd.readouterr())


@pytest.mark.parametrize("key", ["layer3.2.conv2.weight", "layer1.0.bn1.running_var", "bn1.bias"])
def test_a_file_that_lacks_one_tensor(tmp_path, key):
    state = timm.create_model("resnet20_cifar", width=4, num_classes=0).state_dict()
    del state[key]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"the file lacks a tensor {key}"):
        create_lt_model("resnet20_cifar", 3, pretrained=tmp_path / "weights.pth", width=4)


def test_a_count_of_batches_is_not_needed(tmp_path):
    state = timm.create_model("resnet20_cifar", width=4, num_classes=0).state_dict()
    state = {k: v for k, v in state.items() if "num_batches" not in k}
    torch.save({**state, "epoch": 3}, tmp_path / "weights.pth")
    create_lt_model("resnet20_cifar", 3, pretrained=tmp_path / "weights.pth", width=4)


WHOLE = {
    "resnet20_cifar": {"width": 4},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)},
    "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "levit_128s": {},
    "vit_small_patch14_dinov2": {"depth": 1, "embed_dim": 24, "num_heads": 2},
}


@pytest.mark.parametrize("arch", WHOLE)
@pytest.mark.parametrize("classes", [1000, 7])
def test_a_whole_model_of_any_kind_fits(arch, classes, tmp_path, caplog):
    source = timm.create_model(arch, num_classes=classes, **WHOLE[arch]).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in source.items()}}, tmp_path / "weights.pth")
    with caplog.at_level("WARNING"):
        model = create_lt_model(arch, 3, tmp_path / "weights.pth", **WHOLE[arch])
    assert not caplog.text
    own = model.backbone.state_dict()
    assert all(torch.equal(v, source[k]) for k, v in own.items())


def test_a_hidden_layer_of_the_head_is_the_backbones(tmp_path):
    options = {**SMALL["convnext_atto"], "head_hidden_size": 10}
    source = timm.create_model("convnext_atto", num_classes=7, **options).state_dict()
    torch.save(source, tmp_path / "weights.pth")
    model = create_lt_model("convnext_atto", 3, tmp_path / "weights.pth", **options)
    own = model.backbone.state_dict()
    assert torch.equal(own["head.pre_logits.fc.weight"], source["head.pre_logits.fc.weight"])
    with pytest.raises(UserError, match="lacks 2 tensors such as head.pre_logits.fc.weight"):
        del source["head.pre_logits.fc.weight"], source["head.pre_logits.fc.bias"]
        torch.save(source, tmp_path / "weights.pth")
        create_lt_model("convnext_atto", 3, tmp_path / "weights.pth", **options)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_weights_of_images_of_another_size(arch, tmp_path):
    source = timm.create_model(arch, num_classes=7, **SMALL[arch])
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = create_lt_model(arch, 7, tmp_path / "weights.pth", 96, keep_head=True, **SMALL[arch])
    assert model.eval()(torch.randn(2, 3, 96, 96)).shape == (2, 7)


def test_a_wrong_size_is_reported_for_weights_from_a_file_too(tmp_path):
    arch = "vit_tiny_patch16_224"
    source = timm.create_model(arch, num_classes=7, **SMALL[arch])
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not take images of 8 x 24"):
        create_lt_model(arch, 3, tmp_path / "weights.pth", (8, 24), **SMALL[arch])
    with pytest.raises(UserError, match="does not take girth"):
        create_lt_model(arch, 3, tmp_path / "weights.pth", girth=3)


def test_the_weights_are_the_files_under_the_name_of_a_folder_too(tmp_path):
    torch.manual_seed(0)
    config = {"architecture": "resnet20_cifar", "num_classes": 5, "model_args": {"width": 4}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
    torch.save(
        timm.create_model("resnet20_cifar", width=4).state_dict(), tmp_path / "pytorch_model.bin"
    )
    other = timm.create_model("resnet20_cifar", width=4).state_dict()
    torch.save(other, tmp_path / "other.pth")
    model = create_lt_model(f"local-dir:{tmp_path}", 3, tmp_path / "other.pth")
    assert torch.equal(model.backbone.conv1.weight, other["conv1.weight"])


# ------------------------------------------------ state and mode


def tiny(head):
    return LTModel(nn.Flatten(), head)


@pytest.mark.parametrize("on", [("weight",), ("bias",), ("weight", "bias")])
def test_a_state_dict_brings_its_kind_of_head(on):
    plain = tiny(nn.Linear(4, 3))
    samn = tiny(SAMNLinear.from_linear(plain.head, [9, 3, 1], on=on, project="forward"))
    other = tiny(SAMNLinear(4, [9, 3, 1]))
    x = torch.randn(5, 4)
    for source in (plain, samn, other):
        for target in map(copy.deepcopy, (plain, samn, other)):
            target.load_state_dict(source.state_dict())
            assert type(target.head) is type(source.head)
            assert torch.equal(target(x), source(x))
            assert getattr(target.head, "project", "") == getattr(source.head, "project", "")


def make_nearest_mean():
    head = NearestClassMean(4, 3)
    head.load_state_dict(
        {
            "means": torch.randn(3, 4),
            "centre": torch.randn(4),
            "has_images": torch.tensor([True, True, False]),
            "normalize": torch.tensor(False),
        }
    )
    return head


HEADS = {
    "linear": lambda: nn.Linear(4, 3),
    "no bias": lambda: nn.Linear(4, 3, bias=False),
    "samn": lambda: SAMNLinear(4, [9, 3, 1]),
    "samn weight": lambda: SAMNLinear(4, [9, 3, 1], on=("weight",), bias=False),
    "scaled": lambda: ScaledLinear(4, 3),
    "scaled no bias": lambda: ScaledLinear(4, 3, bias=False),
    "scaled all": lambda: ScaledLinear(4, 3, train="all"),
    "cosine": lambda: CosineLinear(4, 3, scale=7.0),
    "nearest mean": make_nearest_mean,
}


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("target", HEADS)
def test_any_head_loads_into_a_model_with_any_other(source, target):
    torch.manual_seed(0)
    source, target = tiny(HEADS[source]()), tiny(HEADS[target]())
    target.eval()
    old, x = target.head, torch.randn(5, 4)
    target.load_state_dict(source.state_dict())
    assert type(target.head) is type(source.head)
    assert (target.head is old) == (old.state_dict().keys() == source.head.state_dict().keys())
    assert torch.equal(target(x), source(x)) and not target.head.training
    kept = dict(target.head.named_parameters())
    assert kept.keys() == dict(source.head.named_parameters()).keys()
    assert all(p.requires_grad for p in kept.values())
    if len(kept):
        assert find_head(target, 3) == ("head", target.head)


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_is_found(kind):
    head = HEADS[kind]()
    assert is_head(head)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), head, nn.Identity())
    assert find_head(model, 3) == ("2", head)
    if kind in ("cosine", "nearest mean"):
        with pytest.raises(UserError, match="cannot be folded into an nn.Linear"):
            as_linear(head)
    else:
        x = torch.randn(5, 4)
        torch.testing.assert_close(as_linear(head)(x), head(x))


def test_a_state_that_is_of_no_head():
    assert head_from_state({"kernel": torch.zeros(3, 4)}) is None
    assert head_from_state({"weight": torch.zeros(3)}) is None
    assert head_from_state({"scales": torch.zeros(3)}) is None
    model = tiny(nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"head.kernel": torch.zeros(3, 4)})
    assert type(model.head) is nn.Linear


def test_a_head_that_fits_is_not_exchanged():
    for head in (make() for make in HEADS.values()):
        model = tiny(head)
        model.load_state_dict(copy.deepcopy(model).state_dict())
        assert model.head is head


def test_a_state_of_other_classes_is_refused():
    model = tiny(nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="size mismatch|Unexpected key"):
        model.load_state_dict(tiny(SAMNLinear(4, [1, 2])).state_dict())
    assert model.head.out_features == 3


def test_a_frozen_head_stays_frozen_when_it_is_exchanged():
    for source in (SAMNLinear(4, [3, 2, 1]), ScaledLinear(4, 3), CosineLinear(4, 3)):
        model = tiny(nn.Linear(4, 3).requires_grad_(False))
        model.load_state_dict(tiny(source).state_dict())
        assert not any(p.requires_grad for p in model.head.parameters())


def test_evaluating_leaves_each_module_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Sequential(nn.Dropout()), nn.Dropout())
    before = [m.training for m in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == before == [True, False, True, True, True]


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_both_sides_of_the_images_are_passed_on(arch):
    model = create_lt_model(arch, 3, pretrained=False, img_size=(32, 48), **SMALL[arch]).eval()
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 3)


def test_a_size_that_the_model_refuses():
    with pytest.raises(UserError, match="^vit_tiny_patch16_224 does not take images of 8 x 24"):
        create_lt_model("vit_tiny_patch16_224", 3, False, (8, 24), **SMALL["vit_tiny_patch16_224"])
    with pytest.raises(UserError, match="levit_128s does not take images of 33 x 33 pixels"):
        create_lt_model("levit_128s", 3, False, 33)  # it says so in its first pass
    with pytest.raises(UserError, match="nest_tiny does not take .* 32 x 48 .*only .*square"):
        create_lt_model("nest_tiny", 3, False, (32, 48))


def test_an_arch_that_is_no_name():
    with pytest.raises(UserError, match="arch must be a name from .*, got None"):
        create_lt_model(None, 3)
