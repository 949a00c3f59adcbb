"""Methods do not stack: each begins from stage 1, or from the last result if that is asked for."""

import copy
from dataclasses import replace

import pytest
import torch
from fastai.learner import load_learner
from torch import nn

from ltlearn import SAMN, UserError
from ltlearn.methods import METHODS
from ltlearn.training.checkpoint import Checkpoint
from tests.callbacks.helpers import Stop, make_dls, make_images, make_lt_learner

METHODS_TRIED = ["crt", "ncm", "samn", "tau_norm", "ldam_drw", "logit_adjustment", "lws"]


def make():
    learn = make_lt_learner(make_dls(valid=make_images([15, 15, 15], seed=1)))
    learn.fit_stage1(2, 0.05)
    return learn


def state(learn):
    return {k: v.detach().clone() for k, v in learn.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def one(learn, method, **options):
    if METHODS[method].kind == "post hoc":
        learn.correct_classifier(method, **options)
    else:
        learn.retrain_classifier(1, 0.05, method=method, **options)
    return state(learn)


@pytest.fixture(scope="module")
def stage1():
    return make()


@pytest.fixture
def learn(stage1):
    stage1.use("stage1")
    return stage1


@pytest.fixture(scope="module")
def alone(stage1):
    """The result of each method on a copy of stage 1."""
    return {name: one(copy.deepcopy(stage1), name) for name in METHODS_TRIED}


def test_methods_one_after_another_are_those_alone(learn, alone):
    """The README's two lines once put the second method on the result of the first."""
    first = learn.stages[0]
    for name in [*METHODS_TRIED, *reversed(METHODS_TRIED)]:
        assert same(one(learn, name), alone[name]), name
        assert learn.stages[0] is first and learn.stages[1]["method"] == name
        assert len(learn.stages) == 2
    learn.retrain_classifier(1, 0.05, cbs=SAMN())
    assert same(state(learn), alone["samn"])
    learn.retrain_classifier(method="ncm")
    assert same(state(learn), alone["ncm"])


def test_the_last_result_can_be_gone_on_with(learn, alone):
    one(learn, "crt")
    stacked = one(learn, "tau_norm", start="current")
    assert [s.get("method") for s in learn.stages[1:]] == ["crt", "tau_norm"]
    assert not same(stacked, alone["tau_norm"])
    other = make_lt_learner(learn.dls)
    other.model.load_state_dict(alone["crt"])
    assert same(one(other, "tau_norm"), stacked)
    assert same(one(learn, "tau_norm"), alone["tau_norm"])
    with pytest.raises(UserError, match="start.*stage1, current.*'stage2'"):
        learn.retrain_classifier(method="crt", start="stage2")
    with pytest.raises(UserError, match="start.*'stage2'"):
        learn.correct_classifier("ncm", start="stage2")


def test_batch_statistics_come_back_too(learn, alone):
    before = state(learn)
    learn.retrain_classifier(1, 0.05, method="crt", bn="train")
    changed = state(learn)
    assert any(not torch.equal(before[k], changed[k]) for k in before if "running" in k)
    learn.retrain_classifier(1, 0.05, method="crt", bn="train", start="current")
    for name in ("samn", "tau_norm"):
        assert same(one(learn, name), alone[name]), name
    learn.retrain_classifier(1, 0.05, method="crt", bn="train")
    assert same(state(learn), changed)
    assert same(state(learn.use("stage1")), before)


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_a_stage_that_diverges_leaves_the_last_result(learn, bn):
    """Batch statistics of a stage that diverged once stayed in the backbone."""
    one(learn, "ncm")
    before, records = state(learn), list(learn.stages)
    with pytest.raises(UserError, match="diverged"):
        learn.retrain_classifier(
            1, 0.05, method="crt", bn=bn, loss=lambda p, t: p.sum() * torch.nan
        )
    assert same(state(learn), before) and learn.stages == records
    with pytest.raises(UserError, match="value.*-1"):
        learn.correct_classifier("tau_norm", -1)
    assert same(state(learn), before)


def test_an_interrupted_stage_is_no_stage_1(learn, alone, tmp_path):
    one(learn, "ncm")
    with pytest.raises(KeyboardInterrupt):
        learn.retrain_classifier(3, 0.05, cbs=Stop(KeyboardInterrupt(), 1))
    assert len(learn.stages) == 1
    assert same(one(learn, "tau_norm"), alone["tau_norm"])
    # A checkpoint is gone on with, although the learner has another classifier by now.
    arguments = {"method": "crt", "epochs": 4, "lr": 0.05}
    whole = learn.retrain_classifier(**arguments)
    kept = lambda: Checkpoint(tmp_path / "crt", resume=True, min_seconds=0)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        # Two epochs of one batch each.
        learn.retrain_classifier(**arguments, cbs=[kept(), Stop(KeyboardInterrupt(), 2)])
    one(learn, "ncm")
    never = Stop(KeyboardInterrupt(), 1_000)
    resumed = learn.retrain_classifier(**arguments, cbs=[kept(), never])
    assert resumed["norms"] == whole["norms"] and resumed["balanced"] == whole["balanced"]


def moved(learn):
    learn.fit(1, 0.05)


def by_hand(learn):
    learn.model.head = nn.Linear(learn.model.head.in_features, 3)


def one_number(learn):
    with torch.no_grad():
        learn.model.head.weight[0, 0] += 1


def tuned(learn):
    learn.fine_tune(1, 0.05)


def more(learn):
    learn.fit_stage1(1, 0.05)


@pytest.mark.parametrize("change", [moved, by_hand, one_number, tuned, more])
def test_what_anything_else_leaves_is_stage_1(change):
    learn = make()
    one(learn, "crt")
    change(learn)
    new, other = state(learn), copy.deepcopy(learn)
    expected = one(other, "tau_norm")
    one(learn, "crt")
    assert same(one(learn, "tau_norm"), expected)
    assert same(state(learn.use("stage1")), new)


def test_a_file_that_is_loaded_is_stage_1(learn, alone, tmp_path):
    learn.path = tmp_path
    learn.save("stage1", with_opt=False)
    one(learn, "crt")
    learn.save("crt", with_opt=False)
    learn.load("stage1", with_opt=False)
    assert same(one(learn, "tau_norm"), alone["tau_norm"])
    assert [s["stage"] for s in learn.stages] == ["stage 1", "post hoc"]
    fresh = make_lt_learner(learn.dls, seed=3)
    fresh.path = tmp_path
    fresh.load("stage1", with_opt=False)
    one(fresh, "ncm")
    assert same(one(fresh, "tau_norm"), alone["tau_norm"])
    fresh.load("crt", with_opt=False)
    assert same(state(fresh.use("stage1")), alone["crt"])


@pytest.mark.filterwarnings("ignore:load_learner")
def test_an_exported_learner_has_stage_1(learn, tmp_path):
    before = state(learn)
    one(learn, "ncm")
    learn.path = tmp_path
    learn.export("model.pkl")
    again = load_learner(tmp_path / "model.pkl")
    assert same(state(again), state(learn))
    assert same(state(again.use("stage1")), before)


def test_without_a_stage_1_of_ours_the_given_model_is_it():
    learn = make_lt_learner(make_dls(valid=make_images([15, 15, 15], seed=1)), seed=4)
    given = state(learn)
    assert same(state(learn.use("stage1")), given)
    first = one(learn, "tau_norm")
    one(learn, "crt")
    assert same(one(learn, "tau_norm"), first) and len(learn.stages) == 1
    assert same(state(learn.use("stage1")), given) and learn.stages == []


def test_a_row_of_one_s_own_needs_no_name(learn, alone):
    mine = replace(METHODS["crt"], label="mine", values={"epochs": 1, "lr": 0.05, "wd": 5e-4})
    learn.retrain_classifier(1, 0.05, method=mine)
    assert same(state(learn), alone["crt"]) and "mine" not in METHODS
    assert learn.stages[-1]["method"] == "mine" and learn.assumed_prior == "uniform"
    learn.correct_classifier(replace(METHODS["tau_norm"], label="my tau"))
    assert same(state(learn), alone["tau_norm"]) and learn.stages[-1]["method"] == "my_tau"
    learn.retrain_classifier(method=METHODS["ncm"])
    assert learn.stages[-1]["method"] == "ncm"
    with pytest.raises(UserError, match="'cRT'.*another name"):
        learn.retrain_classifier(method=replace(METHODS["crt"], label="cRT", reset=False))
    with pytest.raises(UserError, match="'mine'.*register_method"):
        learn.fit_stage1(1, method=replace(METHODS["mixup"], label="mine"))
