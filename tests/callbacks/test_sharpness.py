import copy
import math

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from torch import nn

from ltlearn import GLMC, SAMN, BatchMixUp, SharpnessAware, UserError
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.loop import sgd
from tests.callbacks.helpers import (
    OPTIMIZERS,
    assert_monotone,
    make_dls,
    make_learner,
    make_lt_learner,
    two_groups,
)


class Batches(Callback):
    """Keep what each step trained on, and the model before it."""

    order = -20
    run_valid = False

    def before_fit(self):
        self.seen, self.start = [], copy.deepcopy(self.learn.model)

    def before_batch(self):
        self.seen.append((self.learn.xb[0].clone(), self.learn.yb[0].clone()))


def slow_sam(model, batches, rho, lr, loss=nn.functional.cross_entropy, clip=None):
    """Algorithm 1 of the paper with plain SGD, in loops."""
    model = copy.deepcopy(model).train()
    parameters = list(model.parameters())
    for x, y in batches:
        at = [p.detach().clone() for p in parameters]
        grads = torch.autograd.grad(loss(model(x), y), parameters)
        norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads))
        buffers = [b.clone() for b in model.buffers()]
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p += rho * g / norm
        grads = torch.autograd.grad(loss(model(x), y), parameters)
        if clip is not None:
            total = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads))
            grads = [g * min(1, clip / (total + 1e-6)) for g in grads]
        with torch.no_grad():
            for b, before in zip(model.buffers(), buffers, strict=True):
                b.copy_(before)
            for p, before, g in zip(parameters, at, grads, strict=True):
                p.copy_(before - lr * g)
    return model


def assert_close(model, expected, **kwargs):
    for (k, v), w in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.allclose(v, w, **{"atol": 1e-5, "rtol": 1e-4, **kwargs}), k


def with_norm():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("rho", [0.05, 2.0])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_it_is_algorithm_1(rho, clip):
    """With batch normalisation, whose statistics see each batch once."""
    learn = make_learner(with_norm())
    batches = Batches()
    cbs = [SharpnessAware(rho), batches] + ([GradientClip(clip)] if clip else [])
    learn.fit(2, 0.1, wd=0.0, cbs=cbs)
    assert len(batches.seen) == 14
    assert_close(learn.model, slow_sam(batches.start, batches.seen, rho, 0.1, clip=clip))
    assert learn.model[1].num_batches_tracked == 14
    plain = make_learner(with_norm())
    plain.fit(2, 0.1, wd=0.0)
    assert not torch.allclose(plain.model[0].weight, learn.model[0].weight, atol=1e-4)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_optimiser_steps_from_the_weights_below(opt):
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    learn.freeze_to(1)
    frozen, passes = learn.model[0].weight.detach().clone(), []

    class Look(Callback):
        def before_backward(self):
            passes.append(self.learn.model[2].weight.detach().clone())

        def before_step(self):
            at, above = passes[-2:]
            assert torch.equal(self.learn.model[2].weight, at)
            assert not torch.equal(above, at)

    learn.fit(1, 0.1, cbs=[SharpnessAware(0.5), Look()])
    assert len(passes) == 2 * len(learn.dls.train)
    assert torch.equal(learn.model[0].weight, frozen)


def test_a_gradient_of_zero_stays_where_it_is():
    learn = make_learner(loss_func=lambda pred, y: pred.sum() * 0)
    before = learn.model[0].weight.detach().clone()
    learn.fit(1, 0.1, wd=0.0, cbs=SharpnessAware())
    assert torch.equal(before, learn.model[0].weight)


def test_dropout_is_the_same_in_both_passes():
    class Masks(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            mask = torch.rand_like(x) > 0.5
            if self.training:
                self.seen.append(mask)
            return x * mask

    masks = Masks()
    learn = make_learner(nn.Sequential(nn.Linear(6, 8), masks, nn.Linear(8, 3)))
    learn.fit(1, 0.1, cbs=SharpnessAware())
    first, second = masks.seen[::2], masks.seen[1::2]
    assert len(first) == len(learn.dls.train)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_the_draws_of_later_batches_are_those_of_a_plain_fit():
    def run(cbs):
        learn = make_learner(nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)))
        learn.fit(1, 0.0, cbs=cbs)
        return torch.rand(3)

    assert torch.equal(run([]), run([SharpnessAware()]))


@pytest.mark.parametrize("mix", [lambda: BatchMixUp(1.0), lambda: MixUp(1.0)])
def test_the_mixed_loss_is_computed_again(mix):
    """A callback that lets go of its draw after the loss has it again in the second pass."""
    losses = []

    class Look(Callback):
        order = 57

        def after_loss(self):
            if self.learn.training:
                losses.append((self.learn.loss_grad.item(), self.learn.xb[0].clone()))

    learn = make_lt_learner()
    learn.fit_stage1(1, 1e-9, cbs=[mix(), Look(), SharpnessAware(1e-6)])
    n = len(learn.dls.train)
    assert len(losses) == 2 * n
    for (a, x), (b, again) in zip(losses[::2], losses[1::2], strict=True):
        assert torch.equal(x, again) and a == pytest.approx(b, rel=1e-3)


def test_the_record_has_the_loss_of_the_first_pass():
    plain, sharp = make_lt_learner(), make_lt_learner()
    recorded = []

    class Look(Callback):
        order = 65
        run_valid = False

        def after_loss(self):
            recorded.append(self.learn.loss.item())

        def after_batch(self):
            assert self.learn.loss.item() == recorded[-1]

    plain.fit_stage1(1, 1e-9, wd=0.0)
    sharp.fit_stage1(1, 1e-9, wd=0.0, cbs=[SharpnessAware(5.0), Look()])
    assert sharp.trajectory["loss"] == pytest.approx(plain.trajectory["loss"], rel=1e-4)
    assert len(recorded) == len(sharp.dls.train)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_with_samn(precision):
    learn = make_lt_learner(precision=precision)
    dtypes = set()
    learn.model.backbone.layer2[0].conv1.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    learn.fit_stage1(2, 0.05, cbs=[SharpnessAware(), GradientClip(1.0)])
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert learn.model.backbone.layer2[0].bn1.num_batches_tracked == 2 * len(learn.dls.train)
    learn.retrain_classifier(2, 0.05, bs=8, cbs=[SharpnessAware(), SAMN()])
    assert_monotone(learn.model.head)
    learn.retrain_classifier(1, 0.05, views=0, cbs=[SharpnessAware(), SAMN()])
    assert_monotone(learn.model.head)


class Spoil:
    """A loss that is not a number in some of its calls in training."""

    def __init__(self, *bad):
        self.bad, self.calls = bad, 0

    def __call__(self, pred, target):
        loss = nn.functional.cross_entropy(pred, target)
        self.calls += torch.is_grad_enabled()
        return loss * math.nan if torch.is_grad_enabled() and self.calls - 1 in self.bad else loss


@pytest.mark.parametrize("bad", [4, 5])  # the first and the second pass of the third step
def test_skip_leaves_out_the_whole_step(bad, caplog):
    learn = make_lt_learner()
    states = []

    class Watch(Callback):
        order = -30
        run_valid = False

        def before_batch(self):
            assert all(p.grad is None for p in self.learn.model.parameters())
            states.append({k: v.clone() for k, v in self.learn.model.state_dict().items()})

    learn.fit_stage1(1, 0.05, loss=Spoil(bad), on_nan="skip", cbs=[SharpnessAware(), Watch()])
    assert all(torch.equal(v, states[3][k]) for k, v in states[2].items())
    assert not torch.equal(states[1]["head.weight"], states[2]["head.weight"])
    assert not torch.equal(states[3]["head.weight"], states[4]["head.weight"])
    assert "1 of 7 steps were skipped" in caplog.text


def test_stop_stops_in_the_second_pass():
    with pytest.raises(UserError, match="the loss of step 3 with training images"):
        make_lt_learner().fit_stage1(1, 0.05, loss=Spoil(5), cbs=SharpnessAware())


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelBatchException, ArithmeticError("no")])
def test_what_ends_the_second_pass_finds_the_weights_below(error):
    learn = make_lt_learner()
    kept, calls = [], []

    class Leave(Callback):
        order = 57
        run_valid = False

        def before_batch(self):
            kept.append([p.detach().clone() for p in self.learn.model.parameters()])

        def after_loss(self):
            calls.append(1)
            if len(calls) == 6:
                raise error

    try:
        learn.fit(1, 0.05, wd=0.0, cbs=[SharpnessAware(1.0), Leave()])
    except (KeyboardInterrupt, ArithmeticError):
        now = list(learn.model.parameters())
        assert error is not CancelBatchException
    else:
        now = kept[3]
    assert all(torch.equal(a, b) for a, b in zip(now, kept[2], strict=True))


@pytest.mark.parametrize(
    ("cb", "message"),
    [
        (GLMC, "SharpnessAware cannot be combined with GLMC: .* leave one"),
        (GradientAccumulation, "GradientAccumulation: .* over batches"),
        (MixedPrecision, "MixedPrecision: .*precision='bf16'"),
    ],
)
def test_what_cannot_be_run_twice_is_refused(cb, message):
    learn = make_lt_learner()
    before = learn.model.head.weight.detach().clone()
    with pytest.raises(UserError, match=message) as caught:
        learn.fit_stage1(1, 0.05, cbs=[SharpnessAware(), cb()])
    assert "\n" not in str(caught.value)
    assert torch.equal(before, learn.model.head.weight)


@pytest.mark.parametrize("rho", [0, -1, math.inf, math.nan, "0.05", True])
def test_rho_is_checked(rho):
    with pytest.raises(UserError, match="rho must be .*, got"):
        SharpnessAware(rho)


def test_with_finite_loss_alone_and_a_learner_of_fastai():
    learn = make_learner(opt_func=sgd())
    learn.fit(1, 0.05, cbs=[FiniteLoss(), SharpnessAware()])
    make_lt_learner(make_dls([8, 4])).fit_stage1(1, 0.05, cbs=SharpnessAware)
