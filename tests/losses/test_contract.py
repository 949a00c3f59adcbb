"""What every loss does alike."""

import copy
import inspect
import logging
import pickle
from functools import partial

import pytest
import torch
from fastai.layers import NoneReduce
from fastai.torch_core import TensorBase, TensorCategory
from torch import nn

import ltlearn.losses
from ltlearn.errors import UserError
from ltlearn.losses import (
    BalancedSoftmaxLoss,
    BalPoELoss,
    ClassBalancedBCELoss,
    ClassBalancedLoss,
    CountedLoss,
    CrossEntropy,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SADELoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)
from tests.losses.helpers import COUNTS, REDUCTIONS, make_batch

COUNTED = {
    "balanced_softmax": BalancedSoftmaxLoss,
    "balpoe": BalPoELoss,
    "class_balanced": ClassBalancedLoss,
    "class_balanced_images": partial(ClassBalancedLoss, divide_by="images"),
    "class_balanced_bce": ClassBalancedBCELoss,
    "las": LabelAwareSmoothingLoss,
    "ldam": LDAMLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "sade": SADELoss,
    "sigmoid_focal_cb": partial(SigmoidFocalLoss, beta=0.9),
    "softmax_focal_cb": partial(SoftmaxFocalLoss, beta=0.9),
}
UNCOUNTED = {
    "sigmoid_focal": SigmoidFocalLoss,
    "softmax_focal": SoftmaxFocalLoss,
    "softmax_focal_half": partial(SoftmaxFocalLoss, gamma=0.5),
}
ALL = {**COUNTED, **UNCOUNTED}
# Equal counts of these make no difference to cross-entropy.
AS_CROSS_ENTROPY = (
    "balanced_softmax", "balpoe", "class_balanced", "class_balanced_images", "las",
    "logit_adjusted", "sade",
)  # fmt: skip

counted = pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def cosines(batch):
    """Logits that are fit for LDAM as for any other loss."""
    return batch[0].tanh(), batch[1]


def test_no_public_loss_is_left_out():
    public = {
        value
        for name in ltlearn.losses.__all__
        if inspect.isclass(value := getattr(ltlearn.losses, name))
    }
    tested = {type(make()) for make in ALL.values()}
    assert public - tested == {CountedLoss, CrossEntropy}


@every
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [None, [0.5, 2, 1, 3]], ids=["alike", "weighted"])
def test_gradients(make, reduction, weights):
    loss = make(class_counts=COUNTS, reduction=reduction)
    if weights:
        loss.set_weights(weights)
    logits, target = cosines(make_batch())
    assert torch.autograd.gradcheck(partial(loss, target=target), logits.requires_grad_())


@every
@pytest.mark.parametrize("counts", [[9, 1], [9, 9]])
def test_two_classes(make, counts):
    logits, target = cosines(make_batch(num_classes=2))
    logits.requires_grad_()
    make(class_counts=counts)(logits, target).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.any()


@pytest.mark.parametrize("name", AS_CROSS_ENTROPY)
@pytest.mark.parametrize("weights", [None, [0.5, 2, 1, 3]], ids=["alike", "weighted"])
def test_equal_counts_are_cross_entropy(name, weights):
    logits, target = make_batch()
    loss, plain = ALL[name](class_counts=[8] * 4), CrossEntropy()
    loss.set_weights(weights)
    plain.set_weights(weights)
    expected = plain(logits, target)
    if name == "class_balanced_images" and weights:
        expected *= torch.tensor(weights)[target].mean()
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("spread", [1, 1000])
def test_a_class_without_images_leaves_all_finite(make, spread, caplog):
    """Targets of it, too, which a validation set may hold, and logits far out."""
    logits, target = make_batch(absent=None, spread=spread)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        loss = make(class_counts=[50, 0, 4, 1])
    assert len(caplog.records) == loss.needs_counts
    for rows in (slice(None), target == 1):
        z = logits[rows].float().requires_grad_()
        value = loss(z, target[rows])
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(z.grad).all()


@every
@pytest.mark.parametrize("margin", [1e4, 0.0, -1e4])
def test_the_extremes_are_finite(make, margin):
    """Probabilities that round to 0 and 1 once gave 0 times infinity."""
    loss = make(class_counts=COUNTS)
    logits = torch.zeros(4, 4).fill_diagonal_(margin).requires_grad_()
    value = loss(logits, torch.arange(4))
    value.backward()
    assert torch.isfinite(value) and value >= 0 and torch.isfinite(logits.grad).all()


@counted
def test_no_counts_yet(make):
    loss = make()
    assert loss.needs_counts and loss.class_counts is None
    name = type(loss).__name__
    with pytest.raises(UserError, match=f"^{name} has no class counts yet: .*set_class_counts"):
        loss(*make_batch())


@pytest.mark.parametrize("make", UNCOUNTED.values(), ids=UNCOUNTED)
def test_losses_that_need_no_counts(make):
    logits, target = make_batch()
    loss = make()
    before = loss(logits, target)
    loss.set_class_counts(COUNTS)
    assert not loss.needs_counts and loss(logits, target) == before


@every
def test_counts_given_later(make):
    logits, target = cosines(make_batch())
    loss = make()
    loss.set_class_counts(torch.tensor(COUNTS))
    assert loss(logits, target) == make(class_counts=COUNTS)(logits, target)


@every
def test_weights_for_deferred_re_weighting(make):
    logits, target = cosines(make_batch())
    loss = make(class_counts=COUNTS, reduction="none")
    own = loss.weights
    loss.set_weights(None)
    alike = loss(logits, target)
    loss.set_weights([1, 1, 1, 1])
    torch.testing.assert_close(loss(logits, target), alike)
    loss.set_weights([1, 2, 1, 1])
    changed = ~torch.isclose(loss(logits, target), alike)
    assert changed.tolist() == (target == 1).tolist()
    loss.set_weights(own)
    assert torch.equal(
        loss(logits, target), make(class_counts=COUNTS, reduction="none")(logits, target)
    )


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(make, dtype):
    logits, target = cosines(make_batch())
    logits = logits.to(dtype)
    loss = make(class_counts=COUNTS)
    value = loss(logits.requires_grad_(), target)
    assert value.dtype == torch.float32
    assert value == loss(logits.float(), target)
    value.backward()
    assert logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()


@every
def test_no_value_is_looked_at_and_the_buffers_follow_the_logits(make):
    """On the meta device there are no values, and each look at one is an error."""
    loss = make(class_counts=COUNTS)
    loss.set_weights([1, 2, 3, 4])
    logits = torch.zeros(9, 4, device="meta", requires_grad=True)
    value = loss(logits, torch.zeros(9, dtype=torch.long, device="meta"))
    value.backward()
    assert value.device.type == "meta" and logits.grad.shape == (9, 4)
    assert {buffer.device.type for buffer in loss.buffers()} == {"meta"}


@every
def test_moved_but_not_rounded(make):
    loss = make(class_counts=[1001, 70_001, 7, 1])
    loss.set_weights([1 / 3, 1, 1, 1])
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    for after in (loss.half(), loss.to("cpu", torch.bfloat16), nn.Sequential(loss).double()[0]):
        buffers = dict(after.named_buffers())
        assert buffers.keys() == before.keys()
        for name, buffer in buffers.items():
            assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])
    assert {b.device.type for b in loss.to("meta").buffers()} == {"meta"}


@every
def test_copies_and_state_dict(make):
    logits, target = cosines(make_batch())
    loss = make(class_counts=COUNTS)
    assert not loss.state_dict() and not list(loss.parameters())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(logits, target) == loss(logits, target)
        other.set_weights([1, 2, 3, 4])
        assert other(logits, target) != loss(logits, target)


@every
def test_tensors_of_fastai(make):
    logits, target = cosines(make_batch())
    logits = logits.float()
    loss = make(class_counts=COUNTS)
    loss.set_weights([1, 2, 3, 4])
    expected = loss(logits, target)
    wrapped = TensorBase(logits).requires_grad_()
    value = loss(wrapped, TensorCategory(target))
    value.backward()
    assert value == expected and torch.isfinite(wrapped.grad).all()
    assert loss(logits, TensorCategory(target)) == expected


@every
def test_fastai_mixes_the_losses(make):
    logits, target = cosines(make_batch())
    loss = make(class_counts=COUNTS)
    assert loss.y_int
    with NoneReduce(loss) as single:
        assert single(logits, target).shape == (9,)
    assert loss.reduction == "mean"


@every
def test_predictions(make):
    logits, _ = make_batch()
    loss = make(class_counts=COUNTS)
    probabilities = loss.activation(logits)
    assert torch.equal(loss.decodes(probabilities), logits.argmax(1))
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    if not isinstance(loss, SigmoidFocalLoss):
        torch.testing.assert_close(probabilities.sum(1), torch.ones(9, dtype=torch.float64))


@every
def test_the_order_of_the_rows_is_no_matter(make):
    logits, target = cosines(make_batch())
    loss = make(class_counts=COUNTS)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(logits[order], target[order]), loss(logits, target))


@every
@pytest.mark.gpu
def test_on_a_gpu_without_waiting_for_it(make):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    logits, target = cosines(make_batch())
    loss = make(class_counts=COUNTS)
    loss.set_weights([1, 2, 3, 4])
    expected = loss(logits, target)
    logits, target = logits.cuda().requires_grad_(), target.cuda()
    loss(logits, target)  # moves the buffers
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(logits, target)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), expected)
