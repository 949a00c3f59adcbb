import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.mixup import MixUp
from torch import nn

from ltlearn import DeferredReweighting, UserError
from ltlearn.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedBCELoss,
    ClassBalancedLoss,
    CrossEntropy,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    effective_number_weights,
)
from tests.callbacks.helpers import COUNTS, make_dls, make_learner, make_lt_learner

LOSSES = (
    BalancedSoftmaxLoss, ClassBalancedBCELoss, ClassBalancedLoss, CrossEntropy,
    LabelAwareSmoothingLoss, LDAMLoss, LogitAdjustedLoss, SigmoidFocalLoss, SoftmaxFocalLoss,
)  # fmt: skip


def plain_weights(counts, beta):
    raw = np.array([(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts])
    return raw / raw[raw > 0].mean()


class Weights(Callback):
    """Note the loss's weights in each step, as a list per epoch."""

    order = 90

    def __init__(self, loss):
        self.loss, self.seen = loss, {}

    def after_loss(self):
        weights = self.loss.weights
        kept = None if weights is None else tuple(weights.tolist())
        self.seen.setdefault(self.learn.epoch, set()).add(kept)


def epochs_with_weights(seen):
    assert all(len(kinds) == 1 for kinds in seen.values()), "they change between epochs alone"
    return [epoch for epoch, kinds in sorted(seen.items()) if kinds != {None}]


@pytest.mark.parametrize(
    ("epochs", "kwargs", "expected"),
    [
        (5, {}, [4]),
        (3, {}, [2]),
        (1, {}, [0]),
        (4, {"start_pct": 0}, [0, 1, 2, 3]),
        (10, {"start_pct": 0.7}, [7, 8, 9]),
        (4, {"start_epoch": 1}, [1, 2, 3]),
        (4, {"start_epoch": 0}, [0, 1, 2, 3]),
    ],
)
def test_where_the_weights_begin(epochs, kwargs, expected):
    loss = CrossEntropy()
    learn = make_learner(loss_func=loss)
    look = Weights(loss)
    learn.fit(epochs, 0.01, cbs=[DeferredReweighting(beta=0.9, **kwargs), look])
    assert len(look.seen) == epochs and epochs_with_weights(look.seen) == expected
    weights = next(iter(look.seen[expected[0]]))
    assert weights == pytest.approx(plain_weights(COUNTS, 0.9), rel=1e-5)
    assert loss.weights is None


def test_a_recipe_of_200_epochs_starts_at_160():
    loss = CrossEntropy()
    learn = make_learner(loss_func=loss)
    learn.n_epoch = 200
    cb = DeferredReweighting()
    learn.add_cb(cb)
    cb.before_fit()
    assert cb._start == 160
    learn.remove_cb(cb)
    cb.close()


def test_a_start_that_is_never_reached_is_warned_of(caplog):
    learn = make_learner(loss_func=CrossEntropy())
    with caplog.at_level("WARNING", "ltlearn"):
        learn.fit(2, 0.01, cbs=DeferredReweighting(start_epoch=160))
    assert "epoch 160, which a fit of 2 epochs" in caplog.text


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_takes_the_weights_and_keeps_its_own(kind):
    loss = kind() if kind is CrossEntropy else kind(class_counts=COUNTS)
    for own in (loss.weights, torch.tensor([0.1, 1 / 3, 3.0])):
        loss.set_weights(own)
        before = None if loss.weights is None else loss.weights.clone()
        learn = make_learner(loss_func=loss)
        look = Weights(loss)
        learn.fit(2, 0.01, cbs=[DeferredReweighting(start_epoch=1), look])
        assert epochs_with_weights(look.seen) == [1]
        assert (loss.weights is None) == (before is None)
        assert before is None or torch.equal(loss.weights, before)


def test_a_class_with_one_image_and_one_with_none():
    loss = CrossEntropy()
    learn = make_learner(loss_func=loss)
    look = Weights(loss)
    counts = [40, 1, 0]
    learn.fit(1, 0.01, cbs=[DeferredReweighting(0, class_counts=counts), look])
    weights = next(iter(look.seen[0]))
    assert weights[2] == 0 and weights == pytest.approx(plain_weights(counts, 0.9999), rel=1e-5)
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [1, 0], ids=["features", "images"])
@pytest.mark.parametrize("counts", [[20, 5, 1], [20, 1]], ids=str)
def test_retrain_classifier(views, precision, counts):
    learn = make_lt_learner(make_dls(counts), precision=precision)
    loss = LDAMLoss(counts)
    look = Weights(loss)
    cbs = [DeferredReweighting(start_pct=0.5), look]
    learn.retrain_classifier(4, 0.1, views=views, loss=loss, cbs=cbs)
    assert epochs_with_weights(look.seen) == [2, 3] and loss.weights is None


def test_stage_1_with_mixup_that_exchanges_the_loss():
    learn = make_lt_learner()
    own = learn.loss_func
    look = Weights(own)
    learn.fit_stage1(4, 0.01, cbs=[MixUp(), DeferredReweighting(start_pct=0.5), look])
    assert epochs_with_weights(look.seen) == [2, 3]
    assert learn.loss_func is own and own.weights is None


class Stop(Callback):
    def __init__(self, how):
        self.how = how

    def before_batch(self):
        if self.learn.epoch == 1:
            raise self.how


@pytest.mark.parametrize("how", [KeyboardInterrupt, CancelFitException, RuntimeError("user")])
def test_an_interrupted_fit_leaves_the_loss_as_it_was(how):
    learn = make_lt_learner()
    learn.loss_func.set_weights([1, 2, 3])
    try:
        learn.fit(3, 0.01, cbs=[DeferredReweighting(0), Stop(how)])
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert learn.loss_func.weights.tolist() == [1, 2, 3]


def test_a_plain_learner_that_was_interrupted_is_put_right_by_the_next_fit():
    loss = CrossEntropy()
    learn = make_learner(loss_func=loss)
    cb = DeferredReweighting(0)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, 0.01, cbs=[cb, Stop(KeyboardInterrupt)])
    learn.fit(1, 0.01, cbs=cb)
    assert loss.weights is None


def test_validation_and_predictions_leave_the_loss_alone():
    learn = make_learner(loss_func=CrossEntropy(), cbs=DeferredReweighting(0))
    own = torch.tensor([1.0, 2.0, 3.0])
    learn.loss_func.set_weights(own)
    look = Weights(learn.loss_func)
    learn.validate(cbs=look)
    learn.get_preds()
    assert look.seen and {k for kinds in look.seen.values() for k in kinds} == {(1, 2, 3)}


def test_the_loss_is_the_weighted_one():
    counts, beta = [9, 3, 1], 0.5
    loss = CrossEntropy()
    learn = make_learner(loss_func=loss)
    logits, target = torch.randn(8, 3), torch.arange(8) % 3
    seen = []

    class Look(Callback):
        order = 90

        def before_batch(self):
            seen.append(loss(logits, target).item())

    learn.fit(2, 0.0, cbs=[DeferredReweighting(1, beta=beta, class_counts=counts), Look()])
    w = plain_weights(counts, beta)[target]
    losses = -logits.log_softmax(1)[range(8), target].numpy()
    assert seen[0] == pytest.approx(losses.mean(), rel=1e-5)
    assert seen[-1] == pytest.approx((w * losses).sum() / w.sum(), rel=1e-5)
    expected = effective_number_weights(counts, beta).tolist()
    assert expected == pytest.approx(plain_weights(counts, beta))


def test_a_loss_without_weights_is_refused():
    for loss in (nn.CrossEntropyLoss(), nn.functional.cross_entropy):
        learn = make_learner(loss_func=loss)
        name = getattr(loss, "__name__", type(loss).__name__)
        with pytest.raises(UserError, match=f"{name} takes none"):
            learn.fit(1, 0.1, cbs=DeferredReweighting())
    with pytest.raises(UserError, match="CrossEntropyLossFlat takes none"):
        make_learner().fit(1, 0.1, cbs=DeferredReweighting())


def test_missing_class_counts_raise_an_error():
    learn = make_learner(tell=False, loss_func=CrossEntropy())
    with pytest.raises(UserError, match=r"DeferredReweighting\(class_counts=\[500, 120, ...\]"):
        learn.fit(1, 0.1, cbs=DeferredReweighting())
    learn.fit(1, 0.1, cbs=DeferredReweighting(class_counts=COUNTS))
    with pytest.raises(UserError, match="weights"):
        learn = make_learner(loss_func=LDAMLoss(COUNTS))
        learn.fit(1, 0.1, cbs=DeferredReweighting(0, class_counts=[5, 1]))
    assert learn.loss_func.weights is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start_epoch": -1}, "start_epoch must be .*, got -1"),
        ({"start_epoch": 1.5}, "start_epoch must be .*, got 1.5"),
        ({"start_pct": 1}, "start_pct must be .*, got 1"),
        ({"beta": 1}, "beta must be .*, got 1"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(UserError, match=message):
        DeferredReweighting(**kwargs)
