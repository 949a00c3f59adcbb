import math

import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import ClassBalancedBCELoss, ClassBalancedLoss, effective_number_weights
from tests.losses.helpers import (
    COUNTS,
    assert_reductions,
    make_batch,
    plain_cross_entropy,
    plain_softmax,
    plain_weights,
    rows_of,
)


@pytest.mark.parametrize("beta", [0, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("counts", [COUNTS, [5000, 50], [7, 0, 3], [1, 1]])
def test_weights_against_a_plain_loop(counts, beta):
    weights = effective_number_weights(counts, beta)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(plain_weights(counts, beta), rel=1e-6)


@pytest.mark.parametrize("counts", [COUNTS, [7, 0, 3, 0]])
@pytest.mark.parametrize("beta", [0.3, 0.999])
def test_the_mean_weight_of_classes_with_images_is_one(counts, beta):
    weights = effective_number_weights(counts, beta)
    assert weights.sum().item() == pytest.approx(sum(n > 0 for n in counts))
    assert (weights == 0).tolist() == [n == 0 for n in counts]


def test_limits_of_beta():
    assert effective_number_weights([9, 0, 1], 0).tolist() == [1, 0, 1]
    # Towards 1, by inverse count, and without loss of digits.
    near = effective_number_weights([400, 100], 1 - 1e-12)
    assert near.tolist() == pytest.approx([0.4, 1.6], rel=1e-6)
    assert effective_number_weights([10**9, 10**9]).tolist() == [1, 1]


def test_weights_stay_on_the_device_of_the_counts():
    assert effective_number_weights(torch.tensor(COUNTS)).device.type == "cpu"


@pytest.mark.parametrize("beta", [-0.1, 1, 1.5, math.nan, "0.9"])
def test_beta_out_of_range(beta):
    message = f"beta must be .*, got {beta!r}"
    with pytest.raises(UserError, match=message):
        effective_number_weights(COUNTS, beta)
    for loss in (ClassBalancedLoss, ClassBalancedBCELoss):
        with pytest.raises(UserError, match=message):
            loss(beta=beta)


def test_counts_that_are_none():
    with pytest.raises(UserError, match=r"class_counts\[1\] is -2; it must be finite and not"):
        effective_number_weights([3, -2])


@pytest.mark.parametrize("divide_by", ["weights", "images"])
@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_cross_entropy_against_a_plain_loop(beta, divide_by):
    logits, target = make_batch()
    weights = [plain_weights(COUNTS, beta)[y] for y in target.tolist()]
    plain = [
        plain_weights(COUNTS, beta)[y] * plain_cross_entropy(z, y)
        for z, y in rows_of(logits, target)
    ]

    def make(reduction):
        return ClassBalancedLoss(COUNTS, beta, divide_by, reduction)

    assert_reductions(make, logits, target, plain, sum(weights) if divide_by == "weights" else 9)


def test_it_is_the_weighted_cross_entropy_of_torch():
    logits, target = make_batch()
    weights = effective_number_weights(COUNTS, 0.99).double()
    torch.testing.assert_close(
        ClassBalancedLoss(COUNTS, 0.99)(logits, target),
        torch.nn.functional.cross_entropy(logits, target, weights),
    )


def test_an_unknown_divisor():
    with pytest.raises(UserError, match="divide_by must be one of weights, images, got 'N'"):
        ClassBalancedLoss(COUNTS, divide_by="N")


@pytest.mark.parametrize("make", [ClassBalancedLoss, ClassBalancedBCELoss])
def test_a_target_without_images_adds_nothing(make):
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    make([5, 0, 2], reduction="sum")(logits, torch.tensor([0, 1])).backward()
    assert logits.grad[0].all() and not logits.grad[1].any()


@pytest.mark.parametrize("beta", [0.9, 0.9999])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_binary_cross_entropy_against_a_plain_loop(beta, num_classes):
    logits, target = make_batch(num_classes=num_classes)
    counts = COUNTS[:num_classes]
    plain = []
    for z, y in rows_of(logits, target):
        p = plain_softmax(z)
        bce = [-math.log(p[c]) if c == y else -math.log(1 - p[c]) for c in range(num_classes)]
        plain.append(plain_weights(counts, beta)[y] * sum(bce) / num_classes)

    def make(reduction):
        return ClassBalancedBCELoss(counts, beta, reduction)

    assert_reductions(make, logits, target, plain)


def test_binary_cross_entropy_is_that_of_torch():
    logits, target = make_batch()
    target_rows = torch.nn.functional.one_hot(target, 4).double()
    weights = effective_number_weights(COUNTS, 0.99).double()[target][:, None].expand(9, 4)
    torch.testing.assert_close(
        ClassBalancedBCELoss(COUNTS, 0.99)(logits, target),
        torch.nn.functional.binary_cross_entropy(logits.softmax(1), target_rows, weights),
    )


def test_binary_cross_entropy_keeps_its_digits_where_p_is_one():
    """1 - p of the top class is 0 in float32, and its logarithm was minus infinity."""
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    loss = ClassBalancedBCELoss([1, 1])(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(40)
    assert logits.grad.tolist() == [pytest.approx([1, -1])]
