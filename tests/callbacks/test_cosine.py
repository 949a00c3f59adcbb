import pytest
import torch
from torch import nn

from ltlearn import (
    SAMN,
    CosineHead,
    CosineLinear,
    DeferredReweighting,
    LearnableWeightScaling,
    MaxNorm,
    SAMNLinear,
    ScaledLinear,
    UserError,
)
from ltlearn.heads import NormalizedFeatureHead
from ltlearn.losses import LDAMLoss
from ltlearn.models.backbone import find_head
from tests.callbacks.helpers import (
    COUNTS,
    OPTIMIZERS,
    make_dls,
    make_learner,
    make_lt_learner,
    two_groups,
)


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_learner_and_any_optimiser(opt, bias):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias))
    learn = make_learner(model, opt_func=OPTIMIZERS[opt], splitter=two_groups)
    learn.loss_func = LDAMLoss(COUNTS)
    learn.fit(1, 0.01)
    groups = [len(group) for group in learn.opt.param_lists]
    directions = nn.functional.normalize(learn.model[2].weight.detach(), dim=1)
    head = CosineHead().install(learn)
    assert type(head) is CosineLinear and find_head(learn.model) == ("2", head)
    torch.testing.assert_close(nn.functional.normalize(head.weight, dim=1), directions)
    assert [len(group) for group in learn.opt.param_lists] == [groups[0], 1]
    weight = head.weight.detach().clone()
    learn.fit(1, 0.01, cbs=CosineHead())
    assert learn.model[2] is head and not torch.equal(head.weight, weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [1, 0], ids=["features", "images"])
@pytest.mark.parametrize("counts", [[20, 5, 1], [20, 1]], ids=str)
def test_retrain_classifier_with_ldam_drw(counts, views, precision):
    learn = make_lt_learner(make_dls(counts), precision=precision)
    record = learn.retrain_classifier(
        2, 0.1, views=views, loss=LDAMLoss(counts), select="last",
        cbs=[CosineHead(), DeferredReweighting(1)],
    )  # fmt: skip
    assert type(learn.model.head) is CosineLinear
    assert record["norms"][-1] == [30.0] * len(counts)
    logits = learn.predict_logits()[0]
    assert logits.abs().max() <= 30.2
    report = learn.shot_report()
    assert 0 <= report.all <= 1


def test_stage_1():
    learn = make_lt_learner()
    learn.fit_stage1(2, 0.05, loss=LDAMLoss(COUNTS, scale=16.0), cbs=CosineHead(16))
    head = learn.model.head
    assert type(head) is CosineLinear and head.cosine_scale == 16
    learn.fit_stage1(1, 0.05, loss=LDAMLoss(COUNTS, scale=16.0), cbs=CosineHead(16))
    assert learn.model.head is head


OTHERS = {
    "none": (lambda: None, nn.Linear),
    "samn": (SAMN, SAMNLinear),
    "lws": (LearnableWeightScaling, ScaledLinear),
    "max norm": (MaxNorm, nn.Linear),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("views", [1, 0], ids=["features", "images"])
def test_without_the_callback_it_goes_on_over_features_of_one_length(case, views):
    make, kind = OTHERS[case]
    learn = make_lt_learner()
    learn.fit_stage1(2, 0.05, loss=LDAMLoss(COUNTS), cbs=CosineHead(20))
    cosine, logits = learn.model.head, learn.predict_logits()[0]
    learn.retrain_classifier(0, views=views, cbs=make())
    head = learn.model.head
    assert type(head) is NormalizedFeatureHead and type(head.inner) is kind
    assert head.norms().mean().item() == pytest.approx(20)
    if kind is not SAMNLinear:
        torch.testing.assert_close(learn.predict_logits()[0], logits, rtol=1e-4, atol=1e-4)
        assert head.length == 20
    learn.retrain_classifier(2, 0.01, views=views, cbs=make(), select="last")
    assert type(learn.model.head.inner) is kind
    # With a new head, and back.
    learn.retrain_classifier(1, 0.01, views=views, reset=True, select="last")
    assert type(learn.model.head.inner) is nn.Linear and learn.model.head.inner.bias is not None
    assert learn.model.head.length == 20
    learn.use("stage1")
    assert type(learn.model.head) is CosineLinear
    assert torch.equal(learn.model.head.weight, cosine.weight)
    learn.retrain_classifier(1, 0.1, views=views, loss=LDAMLoss(COUNTS), cbs=CosineHead(20))
    assert type(learn.model.head) is CosineLinear


def test_stage_1_goes_on_too():
    learn = make_lt_learner()
    learn.fit_stage1(1, 0.05, cbs=CosineHead(20))
    learn.fit_stage1(1, 0.05)
    head = learn.model.head
    assert type(head) is NormalizedFeatureHead and head.length == 20
    learn.fit_stage1(1, 0.05)
    assert learn.model.head is head


@pytest.mark.parametrize("make", [SAMN, LearnableWeightScaling])
def test_a_plain_learner_with_another_callback(make):
    learn = make_learner(splitter=two_groups)
    learn.fit(1, 0.1, cbs=CosineHead(20))
    weight = nn.functional.normalize(learn.model[2].weight.detach())
    cb = make(COUNTS) if make is SAMN else make()
    inner = cb.install(learn)
    assert type(learn.model[2]) is NormalizedFeatureHead and learn.model[2].inner is inner
    torch.testing.assert_close(nn.functional.normalize(inner.weight.detach()), weight)
    assert [len(group) for group in learn.opt.param_lists] == [2, len(list(inner.parameters()))]
    learn.fit(1, 0.1, cbs=make(COUNTS) if make is SAMN else make())
    assert learn.model[2].inner is inner


def test_save_and_load(tmp_path):
    learn, fresh = make_lt_learner(), make_lt_learner(seed=1)
    learn.path = fresh.path = tmp_path
    learn.retrain_classifier(1, 0.1, loss=LDAMLoss(COUNTS), select="last", cbs=CosineHead(12.5))
    learn.save("cosine")
    fresh.load("cosine")
    assert type(fresh.model.head) is CosineLinear and fresh.model.head.cosine_scale == 12.5
    assert torch.equal(fresh.predict_logits()[0], learn.predict_logits()[0])


def test_another_scale_for_an_existing_head_is_warned_of(caplog):
    learn = make_learner()
    learn.fit(1, 0.1, cbs=CosineHead(1 / 3))
    learn.fit(1, 0.1, cbs=CosineHead(1 / 3))
    assert not caplog.records
    learn.fit(1, 0.1, cbs=CosineHead())
    assert "CosineLinear it already has, with scale=0.333333" in caplog.text


def test_get_preds_and_validate_change_no_model():
    learn = make_learner(cbs=CosineHead())
    learn.validate()
    learn.get_preds()
    assert type(learn.model[2]) is nn.Linear
    learn.fit(1, 0.1)
    assert type(learn.model[2]) is CosineLinear


def test_no_warning_of_a_shadowed_name(recwarn):
    learn = make_lt_learner()
    learn.retrain_classifier(1, loss=LDAMLoss(COUNTS), cbs=[CosineHead(), DeferredReweighting()])
    assert [w for w in recwarn if "shadowing" in str(w.message)] == []


@pytest.mark.parametrize("scale", [0, None, -3.0])
def test_scales_that_are_not_allowed(scale):
    with pytest.raises(UserError, match="scale must be .* above 0, got"):
        CosineHead(scale)
