"""A kept classifier gives the logits of timm's model."""

import pytest
import timm
import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear, UserError
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.models import create_lt_model
from ltlearn.models.kept_head import linear_classifier, reorder_outputs


def randomise(model):
    """Give the norms weights and statistics that a lost layer would show."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            for name in ("weight", "running_var"):
                getattr(module, name).data.uniform_(0.5, 1.5)
            for name in ("bias", "running_mean"):
                getattr(module, name).data.normal_()
    return model.eval()


# A batch normalisation in the classifier; two classifiers on the same features.
@pytest.mark.parametrize("arch", ["shvit_s1", "efficientvit_m0", "levit_128s"])
def test_a_classifier_with_a_norm_keeps_its_logits(arch, tmp_path):
    torch.manual_seed(0)
    model = randomise(timm.create_model(arch, num_classes=5))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    size = model.pretrained_cfg["input_size"][1]
    before = torch.random.get_rng_state()
    cut = create_lt_model(arch, 5, tmp_path / "w.pth", size, keep_head=True).eval()
    assert type(cut.head) is nn.Linear
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), model(x), rtol=1e-3, atol=1e-3)
    torch.random.set_rng_state(before)


def test_two_classifiers_on_two_features_are_refused(tmp_path):
    arch, options = "deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=5, **options)
    for head in (model.head, model.head_dist):
        nn.init.normal_(head.weight)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"deit_tiny.* more than a linear layer.*keep_head=False"):
        create_lt_model(arch, 5, tmp_path / "w.pth", keep_head=True, **options)
    create_lt_model(arch, 5, tmp_path / "w.pth", **options)


class Odd(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.head = last

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def test_only_an_affine_classifier_is_folded():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    affine = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 4))
    whole = randomise(Odd(affine))
    head = linear_classifier(whole, ["head"], backbone, (3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(head(backbone(x)), whole(x))
    bent = Odd(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert linear_classifier(bent, ["head"], backbone, (3, 8, 8)) is None
    assert linear_classifier(whole, ["head.2"], backbone, (3, 8, 8)) is not None


@pytest.mark.parametrize("kind", ["linear", "samn", "samn step 2", "scaled", "cosine", "mean"])
def test_outputs_in_another_order(kind):
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    mean = NearestClassMean(4, 4)
    mean.means.normal_(), mean.centre.normal_(), mean.has_images.fill_(True)
    head = {
        "linear": linear,
        "samn": SAMNLinear.from_linear(linear, [9, 5, 3, 1]),
        "samn step 2": SAMNLinear.from_linear(linear, [1, 9, 3, 5], project="forward"),
        "scaled": ScaledLinear.from_linear(linear),
        "cosine": CosineLinear(4, 4),
        "mean": mean,
    }[kind].eval()
    x, order = torch.randn(3, 4), [2, 0, 3, 1]
    expected = head(x)[:, order].detach().clone()
    reorder_outputs(head, order)
    torch.testing.assert_close(head(x), expected)


def test_a_foreign_head_is_not_reordered():
    with pytest.raises(UserError, match="Bilinear"):
        reorder_outputs(nn.Bilinear(2, 2, 2), [1, 0])
