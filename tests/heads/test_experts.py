import copy

import pytest
import torch

from ltlearn import CosineLinear, UserError
from ltlearn.heads import ExpertHead, head_from_state


def make_head(experts=3, width=6, classes=4, scale=30.0):
    torch.manual_seed(0)
    return ExpertHead(experts * width, classes, experts, scale)


@pytest.mark.parametrize("experts", [1, 3])
def test_each_expert_is_a_cosine_classifier_and_the_mean_predicts(experts):
    head, x = make_head(experts, scale=16.0), torch.randn(5, experts * 6)
    own = []
    for e in range(experts):
        one = CosineLinear(6, 4, scale=16.0)
        one.weight.data = head.weight.data[e]
        own.append(one(x[:, 6 * e : 6 * e + 6]))
    torch.testing.assert_close(head.expert_logits(x), torch.stack(own, 1))
    torch.testing.assert_close(head(x), torch.stack(own).mean(0))
    assert head.norms().tolist() == [16.0] * 4
    weights = torch.arange(1.0, experts + 1)
    head.set_weights(weights)
    mean = sum(w * z for w, z in zip(weights / weights.sum(), own, strict=True))
    torch.testing.assert_close(head(x), mean)
    head.set_weights(None)
    torch.testing.assert_close(head(x), torch.stack(own).mean(0))


def test_separate_logits_in_training_alone():
    head, x = make_head().train(), torch.randn(5, 18)
    assert head(x).shape == (5, 4)
    head.separate = True
    assert head(x).shape == (5, 3, 4)
    assert head.eval()(x).shape == (5, 4)
    assert "separate" not in head.state_dict()


def test_gradients():
    head = make_head().double()
    x = torch.randn(3, 18, dtype=torch.float64, requires_grad=True)

    def run(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, head.weight))
    zeros = torch.zeros(2, 18, requires_grad=True)
    make_head()(zeros).sum().backward()
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    head, x = make_head(scale=30.1), torch.randn(5, 18)
    expected = head(x)
    assert (head(x.to(dtype)) - expected).abs().max() < 0.5
    assert head(x.to(dtype)).dtype == dtype
    moved = copy.deepcopy(head).to(dtype)
    if dtype != torch.float64:
        assert moved.cosine_scale.dtype == moved.expert_weights.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.bfloat16


def test_a_state_dict_names_its_head():
    head = make_head(scale=17.0)
    head.set_weights([1, 0, 3])
    new = head_from_state(head.state_dict())
    assert type(new) is ExpertHead
    new.load_state_dict(head.state_dict())
    x = torch.randn(2, 18)
    assert torch.equal(new(x), head(x))
    assert type(head_from_state(CosineLinear(6, 4).state_dict())) is CosineLinear


def test_no_linear_layer_is_equal_to_it():
    with pytest.raises(UserError, match="ExpertHead cannot be folded.*crt"):
        make_head().fold()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ExpertHead(7, 4, 3), "7 features.*experts=3"),
        (lambda: ExpertHead(6, 4, 0), "experts must be .*got 0"),
        (lambda: ExpertHead(6, 4, 3, 0.0), "scale must be .*got 0"),
        (lambda: make_head().set_weights([1, 2]), r"weights.*3.*\[1, 2\]"),
        (lambda: make_head().set_weights([0, 0, 0]), "weights.*3"),
        (lambda: make_head().set_weights([1, -1, 1]), "weights.*3"),
    ],
)
def test_bad_options(call, words):
    with pytest.raises(UserError, match=words):
        call()
