import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltlearn.errors import UserError
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.posthoc.nearest_mean import nearest_class_mean


def data(n=60, width=5, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % num_classes
    shift = 3 * torch.randn(num_classes, width, generator=generator)
    return torch.randn(n, width, generator=generator) + shift[targets] + 2, targets


def make(**kwargs):
    features, targets = data()
    return nearest_class_mean(features, targets, 4, **kwargs)


def test_logits_are_distances_in_a_plain_loop():
    head, (x, _) = make(), data(seed=1)
    got = head(x)
    mu, means = head.centre.double().tolist(), head.means.double().tolist()
    for row, logits in zip(x.double().tolist(), got.tolist(), strict=True):
        moved = [v - m for v, m in zip(row, mu, strict=True)]
        length = math.sqrt(sum(v * v for v in moved))
        phi = [v / length for v in moved]
        expected = [-sum((p - m) ** 2 for p, m in zip(phi, mean, strict=True)) for mean in means]
        assert logits == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("missing", [False, True])
def test_a_state_dict_fills_an_empty_head(normalize, missing):
    features, targets = data()
    head = nearest_class_mean(features, targets, 6 if missing else 4, normalize=normalize)
    state = head.state_dict()
    other = NearestClassMean(head.in_features, head.out_features)
    other.load_state_dict(state)
    assert torch.equal(other(features), head(features))
    assert torch.equal(copy.deepcopy(head)(features), head(features))
    assert not list(head.parameters())


def test_an_empty_head_is_finite():
    head = NearestClassMean(5, 3)
    assert head(torch.randn(2, 5)).isfinite().all()
    assert head.norms().tolist() == [0, 0, 0]
    assert repr(head) == "NearestClassMean(in_features=5, out_features=3)"


@pytest.mark.parametrize("scale", [1.0, 1e8])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_class_without_images_is_finite_and_last(normalize, scale):
    features, targets = data()
    features = features * scale
    head = nearest_class_mean(features, targets * 2, 8, normalize=normalize)
    logits = head(torch.cat([features, torch.zeros(1, 5), head.centre[None]]))
    assert logits.isfinite().all() and logits.log_softmax(1).isfinite().all()
    present, absent = logits[:, ::2], logits[:, 1::2]
    assert (absent.amax(1) < present.amin(1)).all()
    assert (logits.argmax(1) % 2 == 0).all()
    if normalize:
        assert (absent < present.amin(1, keepdim=True) - 9999).all()
        assert logits.half().isfinite().all()


def test_leading_dimensions_and_dtypes():
    head, (x, _) = make(), data()
    expected = head(x)
    assert torch.equal(head(x.reshape(3, 20, 5)), expected.reshape(3, 20, 4))
    assert head(x.double()).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        assert head(x.to(dtype)).dtype == torch.float32
        assert torch.equal(head(x.to(dtype)), head(x.to(dtype).float()))


def test_autocast_and_half_do_not_round_the_distances():
    head, (x, _) = make(), data()
    expected = head(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), expected)
    assert torch.equal(copy.deepcopy(head).half()(x), expected)
    assert torch.equal(copy.deepcopy(head).bfloat16()(x), expected)


def test_the_gradient_reaches_the_features():
    head, (x, _) = make(), data()
    x = x[:3].double().requires_grad_()
    assert torch.autograd.gradcheck(head, x)


def test_norms_are_those_of_the_means():
    head = make()
    assert np.allclose(head.norms(), np.linalg.norm(head.means.numpy(), axis=1), atol=1e-6)
    assert (head.norms() < 1).all()  # means of unit vectors are not normalised again


def test_export_gives_the_same_logits():
    head, (x, _) = make(), data()
    program = torch.export.export(head, (x,))
    assert torch.allclose(program.module()(x), head(x), atol=1e-6)


def test_a_temperature_leaves_the_nearest_class():
    head, (x, y) = make(), data()
    assert (head(x).argmax(1) == y).float().mean() > 0.8
    assert F.cross_entropy(head(x) / 0.1, y) < F.cross_entropy(head(x), y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make().fold(), "NearestClassMean head cannot be folded into an nn.Linear"),
        (lambda: NearestClassMean(0, 3), "in_features must be a whole number of at least 1"),
        (lambda: NearestClassMean(3, 2.5), "num_classes must be a whole number .* got 2.5"),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()
