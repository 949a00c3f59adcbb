import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn.errors import UserError
from ltlearn.losses import BalancedSoftmaxLoss, CountedLoss, LDAMLoss
from ltlearn.losses.counted import check_vector
from tests.losses.helpers import COUNTS, make_batch


@pytest.mark.parametrize(
    "counts, message",
    [
        ([3, -1, 2], r"class_counts\[1\] is -1; it must be finite and not negative\."),
        ([3, 1, math.nan], r"class_counts\[2\] is nan; it must be finite"),
        ([math.inf, 1], r"class_counts\[0\] is inf; it must be finite"),
        ([0, 0, 0], r"class_counts must not be 0 for all 3 classes"),
        ([[3, 1], [2, 4]], r"class_counts must be a vector .* got shape \(2, 2\)"),
        (7, r"class_counts must be a vector .* got shape \(\)"),
        ([7], r"class_counts must be a vector .* at least 2 classes, got shape \(1,\)"),
        ([], r"class_counts must be a vector .* got shape \(0,\)"),
        ("many", r"class_counts must be a vector of numbers, got 'many'"),
        ({"cat": 3}, r"class_counts must be a vector of numbers, got \{'cat': 3\}"),
    ],
)
def test_counts_that_are_none(counts, message):
    with pytest.raises(UserError, match=message):
        BalancedSoftmaxLoss(counts)
    loss = BalancedSoftmaxLoss(COUNTS)
    with pytest.raises(UserError, match=message):
        loss.set_class_counts(counts)
    assert loss.class_counts.tolist() == COUNTS
    with pytest.raises(UserError, match=message.replace("class_counts", "weights")):
        loss.set_weights(counts)
    assert loss.weights is None


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, nn.Parameter])
def test_counts_of_any_kind(kind):
    counts = kind(torch.tensor([4.0, 2.0])) if kind is nn.Parameter else kind([4, 2])
    loss = BalancedSoftmaxLoss(counts)
    assert loss.class_counts.tolist() == [4, 2] and loss.class_counts.dtype == torch.int64
    assert type(loss.class_counts) is torch.Tensor and not loss.class_counts.requires_grad


def test_arguments_are_copied():
    counts, weights = torch.tensor([4.0, 2.0], dtype=torch.float64), torch.ones(2)
    checked = check_vector("counts", counts)
    loss = BalancedSoftmaxLoss(counts)
    loss.set_weights(weights)
    counts[0], weights[0] = 9, 9
    assert checked.tolist() == [4, 2] and loss.weights.tolist() == [1, 1]


def test_counts_may_be_fractions():
    assert BalancedSoftmaxLoss([1.5, 0.5]).class_counts.tolist() == [1.5, 0.5]


def test_an_unknown_reduction():
    with pytest.raises(UserError, match="reduction must be one of mean, sum, none, got 'avg'"):
        BalancedSoftmaxLoss(COUNTS, reduction="avg")


def test_one_warning_names_the_classes_without_images(caplog):
    with caplog.at_level(logging.WARNING, "ltlearn"):
        loss = BalancedSoftmaxLoss([5, 0, 3, 0])
        loss(*make_batch(absent=1))
    assert len(caplog.records) == 1
    assert "BalancedSoftmaxLoss: no training images of class 1, 3;" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ltlearn"):
        loss.set_class_counts([0] * 20 + [1, 1])
    assert "of class 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ...;" in caplog.records[0].getMessage()


def test_no_warning_where_all_classes_have_images(caplog):
    BalancedSoftmaxLoss(COUNTS)
    assert not caplog.records


def test_counts_that_come_later_and_go():
    logits, target = make_batch()
    loss = BalancedSoftmaxLoss()
    loss.set_class_counts(COUNTS)
    assert loss(logits, target) == BalancedSoftmaxLoss(COUNTS)(logits, target)
    loss.set_class_counts(None)
    assert loss.class_counts is None
    with pytest.raises(UserError, match="no class counts .* set_class_counts"):
        loss(logits, target)


def test_lengths_that_differ():
    loss = LDAMLoss(COUNTS)
    with pytest.raises(UserError, match="LDAMLoss has 4 class_counts and 2 weights"):
        loss.set_weights([1, 2])
    with pytest.raises(UserError, match="LDAMLoss has 4 class_counts and 2 weights"):
        LDAMLoss(COUNTS, weights=[1, 2])
    loss = LDAMLoss(weights=[1, 2])
    with pytest.raises(UserError, match="LDAMLoss has 4 class_counts and 2 weights"):
        loss.set_class_counts(COUNTS)
    assert loss.class_counts is None


@pytest.mark.parametrize(
    "logits, target, message",
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), "of 4 classes.* 3;"),
        (torch.zeros(2, 4), torch.tensor([0]), r"got shapes \(2, 4\) and \(1,\)"),
        (torch.zeros(2, 4), torch.zeros(2, 4), r"got shapes \(2, 4\) and \(2, 4\)"),
        (torch.zeros(2, 4, 1), torch.tensor([0, 1]), r"got shapes \(2, 4, 1\) and \(2,\)"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "indices as targets, got torch.float32"),
        (torch.zeros(2, 4), torch.tensor([True, False]), "indices as targets, got torch.bool"),
    ],
)
def test_batches_of_the_wrong_form(logits, target, message):
    with pytest.raises(UserError, match=f"^BalancedSoftmaxLoss .*{message}"):
        BalancedSoftmaxLoss(COUNTS)(logits, target)


def test_targets_of_32_bits():
    logits, target = make_batch()
    loss = BalancedSoftmaxLoss(COUNTS)
    assert loss(logits, target.int()) == loss(logits, target)


def test_a_batch_that_weighs_nothing():
    loss = BalancedSoftmaxLoss(COUNTS)
    loss.set_weights([1, 0, 1, 1])
    logits = torch.randn(3, 4, requires_grad=True)
    value = loss(logits, torch.tensor([1, 1, 1]))
    value.backward()
    assert value == 0 and not logits.grad.any()


def test_a_subclass_that_forgets_to_derive():
    with pytest.raises(NotImplementedError, match="CountedLoss .*_derive"):
        CountedLoss().set_class_counts(COUNTS)


def test_repr():
    assert repr(LDAMLoss()) == "LDAMLoss(max_margin=0.5, scale=30.0, reduction='mean')"
    assert repr(LDAMLoss([2, 1])).endswith("reduction='mean', num_classes=2)")
