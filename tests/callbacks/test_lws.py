import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed
from torch import nn

from ltlearn import SAMN, LearnableWeightScaling, SAMNLinear, ScaledLinear, UserError
from ltlearn.models.backbone import find_head
from ltlearn.training.schedule import EpochSchedule
from tests.callbacks.helpers import (
    OPTIMIZERS,
    make_dls,
    make_learner,
    make_lt_learner,
    torch_sgd,
    two_groups,
)

BOTH = pytest.mark.parametrize("train", ["scale", "all"])
MODELS = {
    "sequential": lambda: None,
    "linear": lambda: nn.Linear(6, 3),
    "no bias": lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3, bias=False)),
}


@BOTH
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_plain_learner_and_any_optimiser(make, opt, train):
    set_seed(0)  # fastai shuffles with Python's random numbers
    learn = make_learner(MODELS[make](), opt_func=OPTIMIZERS[opt])
    linear = find_head(learn.model)[1]
    weight = linear.weight.detach().clone()
    learn.fit(2, 0.05, wd=0.01, cbs=LearnableWeightScaling(train))
    head = find_head(learn.model)[1]
    assert type(head) is ScaledLinear and head.trains == train
    assert (head.scales - 1).abs().min() > 1e-4
    assert torch.equal(head.weight, weight) == (train == "scale")
    learn.unfreeze()
    learn.fit(1, 0.05, cbs=LearnableWeightScaling(train))
    assert find_head(learn.model)[1] is head
    assert torch.equal(head.weight, weight) == (train == "scale")


@BOTH
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_the_optimiser_keeps_groups_hyper_parameters_and_frozen_parameters(opt, train):
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    learn.fit(1, [0.01, 0.02], wd=0.003)
    learn.freeze()
    before, old = [dict(h) for h in learn.opt.hypers], learn.opt
    head = LearnableWeightScaling(train).install(learn)
    assert learn.opt is old and [dict(h) for h in learn.opt.hypers] == before
    assert {id(p) for p in learn.opt.param_lists[1]} == {id(p) for p in head.parameters()}
    assert learn.opt.frozen_idx == 1
    assert [p.requires_grad for p in learn.model[0].parameters()] == [False, False]
    assert all(p.requires_grad for p in head.parameters())


class Record(Callback):
    """Note the batches and the learning rate of each step."""

    order = 90

    def __init__(self):
        self.batches = []

    def before_step(self):
        x, y = self.learn.xb[0], self.learn.yb[0]
        self.batches.append((x.clone(), y.clone(), self.learn.opt.hypers[0]["lr"]))


@pytest.mark.parametrize("opt", ["SGD", "torch SGD"])
@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("bias", [True, False])
def test_the_factor_is_another_learning_rate_of_the_head(bias, factor, opt):
    """As MiSLAS trains: one rate for weight and bias, another for the scales."""
    learn = make_learner(nn.Linear(6, 3, bias), opt_func=OPTIMIZERS[opt])
    w = learn.model.weight.detach().clone().requires_grad_()
    b = torch.zeros(3) if not bias else learn.model.bias.detach().clone().requires_grad_()
    f = torch.ones(3, requires_grad=True)
    record = Record()
    cb = LearnableWeightScaling("all", factor)
    learn.fit(3, 0.1, wd=0.0, cbs=[cb, record, EpochSchedule("cosine")])
    slow = [w, b] if bias else [w]
    plain = torch.optim.SGD([{"params": slow}, {"params": [f]}], lr=0.1, momentum=0.9)
    assert len(record.batches) == 21
    for x, y, lr in record.batches:
        plain.param_groups[0]["lr"], plain.param_groups[1]["lr"] = factor * lr, lr
        plain.zero_grad()
        nn.functional.cross_entropy(f * (x @ w.T + b), y).backward()
        plain.step()
    head = learn.model
    for got, expected in ((head.weight, w), (head.scales, f), *([(head.bias, b)] if bias else [])):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert head.head_lr_factor == 1


def test_the_factor_counts_once_where_gradients_are_accumulated():
    learn = make_learner(nn.Linear(6, 3), opt_func=torch_sgd)
    w, b = (p.detach().clone().requires_grad_() for p in learn.model.parameters())
    f = torch.ones(3, requires_grad=True)
    batches = []

    class Batches(Callback):
        def before_backward(self):
            batches.append((self.learn.xb[0].clone(), self.learn.yb[0].clone()))

    cbs = [GradientAccumulation(16), LearnableWeightScaling("all", 0.5), Batches()]
    learn.fit(1, 0.1, wd=0.0, cbs=cbs)
    groups = [{"params": [w, b], "lr": 0.05}, {"params": [f]}]
    plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    assert len(batches) == 7
    for pair in (batches[0:2], batches[2:4], batches[4:6]):
        plain.zero_grad()
        for x, y in pair:
            (nn.functional.cross_entropy(f * (x @ w.T + b), y) / 2).backward()
        plain.step()
    for got, expected in ((learn.model.weight, w), (learn.model.bias, b), (learn.model.scales, f)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [1, 0], ids=["features", "images"])
@pytest.mark.parametrize("counts", [[20, 5, 1], [20, 1]], ids=str)
@BOTH
def test_retrain_classifier(train, counts, views, precision):
    learn = make_lt_learner(make_dls(counts), precision=precision)
    linear = learn.model.head
    weight, backbone = linear.weight.detach().clone(), learn.model.backbone.state_dict()
    backbone = {k: v.clone() for k, v in backbone.items()}
    record = learn.retrain_classifier(
        2, 0.1, sampler="class_balanced", views=views, select="last",
        cbs=LearnableWeightScaling(train),
    )  # fmt: skip
    head = learn.model.head
    assert type(head) is ScaledLinear and head.trains == train
    assert torch.equal(head.weight, weight) == (train == "scale")
    assert (head.scales != 1).all()
    assert record["norms"][0] == pytest.approx(weight.norm(dim=1).tolist(), rel=1e-5)
    assert record["norms"][-1] == pytest.approx(head.norms().tolist(), rel=1e-5)
    after = learn.model.backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in backbone.items())
    c = len(counts)
    wanted = c if train == "scale" else c * (head.in_features + 2)
    assert learn.stages[-1]["parameters"] == wanted


@BOTH
def test_save_and_load(train, tmp_path):
    learn, fresh = make_lt_learner(), make_lt_learner(seed=1)
    learn.path = fresh.path = tmp_path
    learn.retrain_classifier(1, 0.1, select="last", cbs=LearnableWeightScaling(train))
    learn.save("scaled")
    fresh.load("scaled")
    assert type(fresh.model.head) is ScaledLinear and fresh.model.head.trains == train
    assert torch.equal(fresh.predict_logits()[0], learn.predict_logits()[0])
    plain = make_learner(tmp_path=tmp_path)
    LearnableWeightScaling(train).install(plain)
    plain.fit(1, 0.1)
    plain.save("plain")
    other = make_learner(tmp_path=tmp_path)
    LearnableWeightScaling(train).install(other)
    other.load("plain")
    x = torch.randn(5, 6)
    assert torch.equal(other.model(x), plain.model(x))


def test_without_the_callback_it_is_folded(caplog):
    learn = make_lt_learner()
    learn.retrain_classifier(1, 0.1, select="last", cbs=LearnableWeightScaling())
    logits = learn.predict_logits()[0]
    with caplog.at_level("WARNING", "ltlearn"):
        learn.retrain_classifier(0, start="current")
    assert "the head is a ScaledLinear and no callback that trains one is given" in caplog.text
    assert type(learn.model.head) is nn.Linear
    assert all(p.requires_grad for p in learn.model.head.parameters())
    torch.testing.assert_close(learn.predict_logits()[0], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["LTLearner", "plain"])
def test_one_head_becomes_another(where, caplog):
    cbs = [SAMN, LearnableWeightScaling, SAMN]
    kinds = [SAMNLinear, ScaledLinear, SAMNLinear]
    learn = make_lt_learner() if where == "LTLearner" else make_learner()
    for cb, kind in zip(cbs, kinds, strict=True):
        if where == "LTLearner":
            learn.retrain_classifier(1, 0.05, cbs=cb(), start="current")
        else:
            learn.fit(1, 0.05, cbs=cb())
        assert type(find_head(learn.model)[1]) is kind
    assert "the head is a SAMNLinear" in caplog.text and "is a ScaledLinear" in caplog.text


def test_a_reset_head_is_a_plain_one_first():
    learn = make_lt_learner()
    learn.retrain_classifier(1, 0.1, cbs=LearnableWeightScaling())
    learn.retrain_classifier(1, 0.1, reset=True)
    assert type(learn.model.head) is nn.Linear


def test_other_options_for_an_existing_head_are_warned_of(caplog):
    learn = make_learner()
    learn.fit(1, 0.1, cbs=LearnableWeightScaling())
    learn.fit(1, 0.1, cbs=LearnableWeightScaling())
    assert not caplog.records
    learn.fit(1, 0.1, cbs=LearnableWeightScaling("all"))
    assert "ScaledLinear it already has, with train='scale'" in caplog.text


class Stop(Callback):
    def __init__(self, how):
        self.how = how

    def before_batch(self):
        if self.learn.training and self.learn.iter == 3:
            raise self.how


@pytest.mark.parametrize("how", [KeyboardInterrupt, CancelFitException])
def test_the_factor_ends_with_an_interrupted_fit(how):
    learn = make_lt_learner()
    try:
        learn.fit(1, 0.1, cbs=[LearnableWeightScaling("all", 0.5), Stop(how)])
    except KeyboardInterrupt:
        pass
    assert type(learn.model.head) is ScaledLinear and learn.model.head.head_lr_factor == 1


def test_the_factor_outlives_a_validation_within_the_fit():
    learn = make_lt_learner()
    seen = []

    class Look(Callback):
        order = 90

        def after_step(self):
            seen.append(self.learn.model.head.head_lr_factor)
            if self.learn.iter == 1:
                with self.learn.validation_context():
                    pass

    learn.fit(1, 0.1, cbs=[LearnableWeightScaling("all", 0.5), Look()])
    assert len(seen) == len(learn.dls.train) and set(seen) == {0.5}


def test_get_preds_and_validate_change_no_model():
    learn = make_learner(cbs=LearnableWeightScaling())
    learn.validate()
    learn.get_preds()
    assert type(learn.model[2]) is nn.Linear
    learn.fit(1, 0.1)
    assert type(learn.model[2]) is ScaledLinear


@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_of_fastai():
    learn = make_learner(cbs=MixedPrecision("bf16"))
    learn.fit(1, 0.1, cbs=LearnableWeightScaling("all", 0.5))
    assert learn.model[2].scales.isfinite().all() and (learn.model[2].scales != 1).all()


def test_no_warning_of_a_shadowed_name(recwarn):
    learn = make_lt_learner()
    learn.retrain_classifier(1, cbs=LearnableWeightScaling())
    learn.fit_stage1(1, cbs=LearnableWeightScaling())
    assert [w for w in recwarn if "shadowing" in str(w.message)] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("both",), "train must be one of scale, all, got 'both'"),
        (("all", 0), "head_lr_factor must be .*, got 0"),
        (("scale", 0.5), "head_lr_factor must be 1 with train='scale', .* got 0.5"),
    ],
)
def test_errors(args, message):
    with pytest.raises(UserError, match=message):
        LearnableWeightScaling(*args)
