from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn

from ltlearn import SAMN, MaxNorm, UserError
from ltlearn.models.backbone import find_head
from tests.callbacks.helpers import OPTIMIZERS, make_dls, make_learner, make_lt_learner

# So large a rate that the norms grow within an epoch.
RATE = 0.5


class Look(Callback):
    """Note weight and bias of the head before and after the callback's turn."""

    def __init__(self, order, event):
        self.order, self.seen = order, []
        setattr(self, event, self._look)

    def _look(self):
        head = find_head(self.learn.model)[1]
        self.seen.append((head.weight.detach().clone(), head.bias.detach().clone()))


def plain_threshold(weight, share=0.1):
    norms = np.linalg.norm(weight.detach().numpy().astype(float), axis=1)
    return norms.min() + share * (norms.max() - norms.min())


def plain_clip(weight, threshold):
    rows = weight.numpy().astype(float)
    return np.array([row * min(1, threshold / np.linalg.norm(row)) for row in rows])


@pytest.mark.parametrize("share", [0, 0.1, 1])
@pytest.mark.parametrize("when", ["epoch", "step"])
def test_it_is_the_published_projection(when, share):
    learn = make_learner()
    threshold = plain_threshold(learn.model[2].weight, share)
    event, times = ("after_train", 3) if when == "epoch" else ("after_step", 21)
    before, after = Look(5, event), Look(7, event)
    cb = MaxNorm(share=share, when=when)
    learn.fit(3, RATE, cbs=[cb, before, after])
    assert cb.threshold_.item() == pytest.approx(threshold)
    assert len(before.seen) == len(after.seen) == times
    clipped = 0
    for (weight, bias), (new, same) in zip(before.seen, after.seen, strict=True):
        np.testing.assert_allclose(new.numpy(), plain_clip(weight, threshold), rtol=1e-5)
        assert torch.equal(bias, same)
        clipped += not torch.equal(weight, new)
    assert clipped, "nothing was ever clipped"


def test_between_the_epochs_the_norms_are_free():
    learn = make_learner()
    steps = Look(90, "after_step")
    cb = MaxNorm()
    learn.fit(1, RATE, cbs=[cb, steps])
    assert steps.seen[-1][0].norm(dim=1).max() > cb.threshold_ * 1.01
    assert learn.model[2].weight.norm(dim=1).max() <= cb.threshold_ * (1 + 1e-6)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_given_threshold_and_any_optimiser(opt):
    learn = make_learner(opt_func=OPTIMIZERS[opt])
    learn.fit(2, 0.1, wd=0.01, cbs=MaxNorm(0.25, when="step"))
    norms = learn.model[2].weight.norm(dim=1)
    assert norms.max() <= 0.25 * (1 + 1e-6) and norms.isfinite().all()


def test_the_threshold_is_computed_once_a_fit():
    learn = make_learner()
    cb = MaxNorm()
    for _ in range(2):
        expected = plain_threshold(learn.model[2].weight)
        learn.fit(2, RATE, cbs=cb)
        assert cb.threshold_.item() == pytest.approx(expected)


def begun(cb, linear):
    """Begin a fit of a model that ends in this layer."""
    cb.learn = SimpleNamespace(model=nn.Sequential(linear), lock=Lock())
    cb.before_fit()
    return cb


def test_rows_of_zeros_and_half_precision():
    linear = nn.Linear(6, 3).to(torch.bfloat16)
    with torch.no_grad():
        linear.weight[1] = 0
    begun(MaxNorm(0.1), linear).after_train()
    norms = linear.weight.float().norm(dim=1)
    assert linear.weight.dtype == torch.bfloat16 and norms[1] == 0
    assert norms[[0, 2]].tolist() == pytest.approx([0.1, 0.1], rel=0.01)


@pytest.mark.parametrize("views", [1, 0], ids=["features", "images"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("counts", [[20, 5, 1], [20, 1]], ids=str)
def test_retrain_classifier(views, precision, counts):
    learn = make_lt_learner(make_dls(counts), precision=precision)
    threshold = plain_threshold(learn.model.head.weight)
    record = learn.retrain_classifier(2, RATE, views=views, select="last", cbs=MaxNorm())
    assert type(learn.model.head) is nn.Linear
    # The validation after an epoch sees the clipped norms.
    assert all(max(norms) <= threshold * (1 + 1e-5) for norms in record["norms"][1:])
    assert max(record["norms"][0]) > threshold


def test_no_epoch_clips_nothing():
    learn = make_lt_learner()
    weight = learn.model.head.weight.clone()
    learn.retrain_classifier(0, select="last", cbs=MaxNorm())
    assert torch.equal(learn.model.head.weight, weight)


class Stop(Callback):
    def __init__(self, how):
        self.how = how

    def before_batch(self):
        if self.learn.training and self.learn.iter == 3:
            raise self.how


@pytest.mark.parametrize("how", [KeyboardInterrupt, CancelFitException])
def test_an_interrupted_epoch_is_clipped(how):
    learn = make_lt_learner()
    cb = MaxNorm()
    try:
        learn.fit(2, RATE, cbs=[cb, Stop(how)])
    except KeyboardInterrupt:
        pass
    assert learn.model.head.weight.norm(dim=1).max() <= cb.threshold_ * (1 + 1e-6)


def test_validate_and_get_preds_change_no_model():
    learn = make_learner(cbs=MaxNorm(0.01))
    weight = learn.model[2].weight.clone()
    learn.validate()
    learn.get_preds()
    assert torch.equal(learn.model[2].weight, weight)


def test_another_head_is_refused():
    learn = make_learner()
    with pytest.raises(UserError, match="MaxNorm .* nn.Linear, .*SAMNLinear"):
        learn.fit(1, 0.1, cbs=[SAMN(), MaxNorm()])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": 0}, "threshold must be .*, got 0"),
        ({"share": -0.1}, "share must be .*, got -0.1"),
        ({"share": 1.1}, "share must be .*, got 1.1"),
        ({"when": "fit"}, "when must be one of epoch, step, got 'fit'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(UserError, match=message):
        MaxNorm(**kwargs)


@pytest.mark.gpu
def test_clipping_never_waits_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    linear = nn.Linear(6, 3).cuda()
    cb = begun(MaxNorm(0.1), linear)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cb.after_train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert linear.weight.norm(dim=1).max().item() == pytest.approx(0.1)
