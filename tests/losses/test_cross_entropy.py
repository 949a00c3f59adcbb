import copy
import pickle

import pytest
import torch
from fastai.torch_core import TensorBase, TensorCategory

from ltlearn.errors import UserError
from ltlearn.losses import CrossEntropy
from tests.losses.helpers import assert_reductions, make_batch, plain_cross_entropy, rows_of

WEIGHTS = [0.5, 2, 1, 3]


def weighted(**kwargs):
    loss = CrossEntropy(**kwargs)
    loss.set_weights(WEIGHTS)
    return loss


def test_against_a_plain_loop():
    logits, target = make_batch()
    plain = [plain_cross_entropy(z, y) for z, y in rows_of(logits, target)]
    assert_reductions(CrossEntropy, logits, target, plain)
    plain = [WEIGHTS[y] * plain_cross_entropy(z, y) for z, y in rows_of(logits, target)]
    assert_reductions(weighted, logits, target, plain, sum(WEIGHTS[y] for y in target.tolist()))


def test_weights_come_and_go():
    logits, target = make_batch()
    loss = weighted()
    assert loss.weights.tolist() == WEIGHTS
    loss.set_weights(None)
    assert loss.weights is None
    assert loss(logits, target) == CrossEntropy()(logits, target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_with_logits_of_any_dtype(dtype):
    """torch itself wants weights in the dtype of the logits."""
    logits, target = make_batch()
    loss = weighted()
    value = loss(logits.to(dtype), target)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(value.double(), loss(logits, target), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_large_logits_in_half_precision(dtype, soft):
    """The difference of two logits of 6e4 is infinite in float16."""
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 0])
    if soft:
        target = torch.nn.functional.one_hot(target, 2).to(dtype)
    loss = CrossEntropy()(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(6e4, rel=0.01)
    loss.backward()
    assert logits.grad.tolist() == [[0, 0], [-0.5, 0.5]]


def test_weights_follow_the_logits():
    loss = weighted()
    loss(torch.zeros(2, 4, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))
    assert loss.weights.device.type == "meta"


def test_targets_that_are_probabilities():
    logits, target = make_batch()
    soft = torch.nn.functional.one_hot(target, 4).double()
    torch.testing.assert_close(CrossEntropy()(logits, soft), CrossEntropy()(logits, target))


@pytest.mark.parametrize("make", [CrossEntropy, weighted])
def test_tensors_of_fastai(make):
    logits, target = make_batch()
    logits = logits.float()
    expected = make()(logits, target)
    assert make()(TensorBase(logits), TensorCategory(target)).item() == expected.item()
    assert make()(logits, TensorCategory(target)).item() == expected.item()


def test_copies():
    logits, target = make_batch()
    loss = weighted()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(logits, target) == loss(logits, target)


def test_gradients():
    logits, target = make_batch()
    assert torch.autograd.gradcheck(lambda z: weighted()(z, target), logits.requires_grad_())


def test_predictions():
    logits, _ = make_batch()
    loss = CrossEntropy()
    assert torch.equal(loss.decodes(loss.activation(logits)), logits.argmax(1))
    torch.testing.assert_close(loss.activation(logits).sum(1), torch.ones(9, dtype=torch.float64))


def test_weights_that_are_none():
    with pytest.raises(UserError, match=r"weights\[0\] is -1; it must be finite and not negative"):
        CrossEntropy().set_weights([-1, 1])
