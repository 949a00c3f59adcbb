"""Contract tests over the whole table of methods."""

import copy
import logging

import numpy as np
import pytest
import torch
from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
)
from torch import nn

from ltlearn import LTDataLoaders, UserError
from ltlearn.callbacks import SAMN, CosineHead, DeferredReweighting
from ltlearn.data.samplers import SAMPLERS
from ltlearn.heads import CosineLinear, Foldable
from ltlearn.losses import CountedLoss, CrossEntropy, LDAMLoss
from ltlearn.methods import (
    DEFAULT_STAGE1,
    DEFAULT_STAGE2,
    DEFAULT_WITH_RESET,
    KINDS,
    METHODS,
    find_method,
    find_methods,
    prior_of,
    stage1_methods,
    usual_stage2,
)
from ltlearn.names import PROBE
from ltlearn.training.checkpoint import describe_options
from ltlearn.training.prior import leaves_prior
from tests.callbacks.helpers import (
    COUNTS,
    make_dls,
    make_images,
    make_lt_learner,
    model_of,
)

# Those that need several experts are tested with the experts.
LATER = [n for n, m in METHODS.items() if m.kind != "stage 1" and m.head != "experts"]
TRAINED = [name for name, m in METHODS.items() if m.kind == "stage 2"]
later = pytest.mark.parametrize("name", LATER)


def brief(name, **more):
    """Arguments that keep a method's own values, but train for two epochs at the most."""
    row = METHODS[name]
    if row.kind == "post hoc":
        return {"method": name, **more}
    return {"method": name, "epochs": min(2, row.values.get("epochs", 2)), **more}


def make(counts=COUNTS, **kwargs):
    return make_lt_learner(make_dls(counts), **kwargs)


def logits_of(learn, part="test"):
    return learn.predict_logits(part, cached=False)[0]


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_complete(name):
    method = find_method(name)
    assert method is METHODS[name]
    assert method.label and method.source and method.kind in KINDS
    assert method.sampler in SAMPLERS and method.prior in ("uniform", "train", "stage 1")
    assert method.kind == "stage 1" or method.values_from
    assert method.post is None or METHODS[method.post].kind == "post hoc"
    first, second = method.callbacks(), method.callbacks()
    assert not {id(cb) for cb in first} & {id(cb) for cb in second}, "callbacks hold state"
    if method.sweep is not None:
        assert method.sweep.default in method.sweep.values
        assert list(method.sweep.values) == sorted(method.sweep.values)


@pytest.mark.parametrize("name", [*stage1_methods(), *TRAINED])
def test_the_row_and_its_loss_and_callbacks_agree_on_the_prior(name):
    arguments = METHODS[name].arguments()
    loss = CrossEntropy() if arguments["loss"] is None else arguments["loss"]
    leaves = leaves_prior(arguments["sampler"], loss, arguments["cbs"])
    assert leaves == (METHODS[name].prior == "train")


def test_the_default_methods_are_in_the_table():
    assert METHODS[DEFAULT_STAGE2].kind == METHODS[DEFAULT_WITH_RESET].kind == "stage 2"
    assert METHODS[DEFAULT_WITH_RESET].reset


@pytest.mark.parametrize("stage1", stage1_methods())
def test_the_usual_stage2_goes_with_each_stage1(stage1):
    usual = usual_stage2(stage1)
    assert find_methods(usual, stage1) == [usual]
    assert (usual == DEFAULT_STAGE2) == (METHODS[stage1].head != "experts")


def test_each_method_has_its_own_label():
    assert len({m.label for m in METHODS.values()}) == len(METHODS)


def test_samn_is_samn():
    assert [type(cb) for cb in find_method("samn").callbacks()] == [SAMN]


def test_unknown_methods():
    with pytest.raises(UserError, match="'sanm'.*did you mean samn"):
        find_method("sanm")
    with pytest.raises(UserError, match=f"'zzz'.*{', '.join(METHODS)}"):
        find_method("zzz")
    with pytest.raises(UserError, match="'crtt'.*did you mean crt"):
        make().retrain_classifier(method="crtt")
    assert find_methods("crt, ce,crt") == ["crt", "ce"]
    assert find_methods(None) == list(METHODS)
    with pytest.raises(UserError, match="ce, probe, mixup"):
        find_methods(" , ")


@pytest.mark.parametrize("name", TRAINED)
def test_a_name_and_its_spelling_are_the_same(name):
    named, spelled = make(), make()
    args = brief(name)
    named.retrain_classifier(**args, seed=3)
    row = METHODS[name]
    spelled.retrain_classifier(**{**row.arguments(), "epochs": args["epochs"]}, seed=3)
    if row.post is not None:
        spelled.correct_classifier(row.post, seed=3, start="current")
    for a, b in zip(*(x.model.state_dict().items() for x in (named, spelled)), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    facts = [{k: v for k, v in s.stages[0].items() if k != "method"} for s in (named, spelled)]
    assert all(f.pop("seconds") >= 0 for f in facts) and facts[0] == facts[1]


def test_crt_in_words():
    named, spelled = make(), make()
    named.retrain_classifier(method="crt", epochs=1)
    spelled.retrain_classifier(1, 0.025, wd=5e-4, sampler="class_balanced", reset=True)
    assert torch.equal(named.model.head.weight, spelled.model.head.weight)


def test_arguments_win_over_the_row():
    learn = make()
    learn.retrain_classifier(1, 0.5, method="crt", reset=False, sampler="instance")
    stage = learn.stages[-1]
    assert (stage["epochs"], stage["lr"], stage["head"], stage["sampler"]) == (
        1, 0.5, "kept", "instance",
    )  # fmt: skip


def test_a_method_that_trains_nothing_takes_no_values():
    learn = make()
    with pytest.raises(UserError, match="tau_norm.* lr "):
        learn.retrain_classifier(method="tau_norm", lr=0.1)
    with pytest.raises(UserError, match="ce .*stage 1"):
        learn.retrain_classifier(method="ce")
    with pytest.raises(UserError, match="crt.*retrain_classifier"):
        learn.correct_classifier("crt")
    with pytest.raises(UserError, match="ncm.*value"):
        learn.correct_classifier("ncm", 0.5)
    with pytest.raises(UserError, match="value must be .*-1"):
        learn.correct_classifier("tau_norm", -1)


def test_each_stage_1_has_its_methods():
    assert stage1_methods()[0] == DEFAULT_STAGE1 == "ce" and "glmc" in stage1_methods()
    assert "glmc_samn" in find_methods(None, "glmc") and "ce" not in find_methods(None, "glmc")
    assert "glmc_samn" not in find_methods(None, "ce") and "crt" in find_methods("crt", "glmc")
    with pytest.raises(UserError, match="glmc_samn.*GLMC.*CE"):
        find_methods("samn,glmc_samn", "ce")


@pytest.mark.parametrize("name", stage1_methods())
def test_options_of_stage_1_reach_its_callback(name):
    row = METHODS[name]
    numbers = {k: v for k, v in row.options.items() if k not in row.choices}
    # The default of a whole number is one.
    steps = {k: 1 if isinstance(v, int) else 0.125 for k, v in numbers.items()}
    options = {k: v - steps[k] if v > 0.5 else v + steps[k] for k, v in numbers.items()}
    made = row.arguments(**options)
    reached = [o for o in (made["loss"], *made["cbs"]) if o is not None]
    assert bool(reached) == (name not in (DEFAULT_STAGE1, PROBE))
    for key, value in options.items():
        found = [getattr(o, key) for o in reached if hasattr(type(o), key) or key in vars(o)]
        assert found and set(found) == {value}, key
    plain, spelled = row.arguments(), row.arguments(**row.options)
    assert describe_options(plain["loss"]) == describe_options(spelled["loss"])
    assert [*map(describe_options, plain["cbs"])] == [*map(describe_options, spelled["cbs"])]


def test_options_of_a_method_reach_its_loss_and_callbacks():
    given = {"head_smoothing": 0.25, "tail_smoothing": 0.125, "head_lr_factor": 0.5}
    spelled = METHODS["mislas"].arguments(**given)
    assert (spelled["loss"].head_smoothing, spelled["loss"].tail_smoothing) == (0.25, 0.125)
    assert spelled["cbs"][0].head_lr_factor == 0.5
    for name in TRAINED:
        defaults = METHODS[name].arguments(**METHODS[name].options)
        plain = METHODS[name].arguments()
        assert describe_options(defaults["loss"]) == describe_options(plain["loss"])
        assert [*map(describe_options, defaults["cbs"])] == [*map(describe_options, plain["cbs"])]
    learn = make()
    with pytest.raises(UserError, match="CE . SAMN.*'tau'.*none"):
        learn.retrain_classifier(method="samn", options={"tau": 1})
    with pytest.raises(UserError, match="tau_norm.* options "):
        learn.retrain_classifier(method="tau_norm", options={"tau": 1})
    with pytest.raises(UserError, match="options.*method"):
        learn.retrain_classifier(1, options={"tau": 1})


def test_the_learner_knows_its_stage_1():
    learn = make()
    assert learn.stage1_method == "ce"
    learn.fit_stage1(1, 0.01, cbs=METHODS["glmc"].callbacks())
    assert learn.stage1_method == "glmc"
    learn.retrain_classifier(method="glmc_samn", epochs=1)
    assert learn.stage1_method == "glmc"
    learn.fit_stage1(1, 0.01)
    assert learn.stage1_method == "ce"
    deferred = DeferredReweighting()
    learn.fit_stage1(1, 0.01, cbs=deferred)
    assert learn.stage1_method == "ce", "deferred re-weighting of cross-entropy is not LDAM-DRW"
    learn.fit_stage1(1, 0.01, loss=LDAMLoss(), cbs=[CosineHead(), deferred])
    assert learn.stage1_method == "ldam_drw_stage1"


def test_after_a_cosine_classifier_come_the_methods_that_can_use_it():
    learn = make()
    learn.fit_stage1(1, 0.01, method="ldam_drw_stage1")
    assert type(learn.model.head) is CosineLinear
    names = find_methods(None, "ldam_drw_stage1")
    assert set(names) == set(LATER) - {"glmc_samn"} | {"ldam_drw_stage1"}
    table = learn.compare_classifiers(
        names, arguments={n: {"epochs": 1} for n in names if n in TRAINED}
    )
    assert table.methods == names
    own = learn.compare_classifiers(
        [("mine", lambda learn: learn.retrain_classifier(1, reset=True))]
    )
    assert own.methods == ["mine"]


def test_tau_norm_has_no_effect_after_a_cosine_classifier():
    learn = make()
    learn.fit_stage1(1, 0.01, method="ldam_drw_stage1")
    logits = learn.predict_logits()[0]
    learn.correct_classifier("tau_norm", 1.0)
    torch.testing.assert_close(learn.predict_logits()[0], logits, rtol=1e-4, atol=1e-4)
    learn.correct_classifier("logit_adjustment", 1.0)
    counts = learn.dls.class_counts
    shift = (counts / counts.sum()).log()
    torch.testing.assert_close(learn.predict_logits()[0], logits - shift, rtol=1e-4, atol=1e-4)
    assert learn.model.head.length == 30


def test_ldam_drw_is_deferred_to_epoch_160_of_200():
    seen, learn = [], make()

    class Keep(Callback):
        def before_batch(self):
            if self.learn.training:
                seen.append((self.learn.epoch, self.learn.loss_func.weights is not None))

    learn.fit_stage1(10, 0.01, method="ldam_drw_stage1", cbs=Keep())
    assert {epoch for epoch, weighted in seen if weighted} == {8, 9}
    assert dict(METHODS["ldam_drw_stage1"].options) == {
        "max_margin": 0.5, "scale": 30.0, "beta": 0.9999, "start_pct": 0.8,
    }  # fmt: skip


def test_the_values_of_mislas_are_of_one_setting():
    # CIFAR-100-LT 50: smoothing .3 to 0 goes with a tenth of the rate, not with a fifth.
    row = METHODS["mislas"]
    (scaling,), loss = row.callbacks(), row.loss()
    assert (scaling.head_lr_factor, loss.head_smoothing, loss.tail_smoothing) == (0.1, 0.3, 0.0)


def test_views_reach_the_nearest_class_mean():
    named, spelled, other = make(), make(), make()
    named.retrain_classifier(method="ncm", views=0)
    spelled.correct_classifier("ncm", views=0)
    other.correct_classifier("ncm")
    means = [x.model.head.means for x in (named, spelled, other)]
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])
    with pytest.raises(UserError, match="views must be .*-1"):
        named.correct_classifier("ncm", views=-1)


@later
def test_same_seed_same_numbers_and_the_backbone_stays(name):
    outcomes = []
    for seed in (1, 1, 2):
        learn = make()
        before = copy.deepcopy(learn.model.backbone.state_dict())
        record = learn.retrain_classifier(**brief(name, seed=seed))
        assert record["epoch"] and record is learn.trajectory
        for key, value in learn.model.backbone.state_dict().items():
            assert torch.equal(value, before[key])
        outcomes.append(logits_of(learn))
        assert outcomes[-1].isfinite().all()
    assert torch.equal(outcomes[0], outcomes[1])


@later
def test_saves_and_loads(name, tmp_path):
    learn, other = make(), make(seed=5)
    learn.path = other.path = tmp_path
    learn.retrain_classifier(**brief(name))
    learn.save("kept")
    other.load("kept")
    assert torch.equal(logits_of(learn), logits_of(other))
    assert type(learn.model.head) is type(other.model.head)
    assert not torch.equal(learn.head_norms(), make(seed=5).head_norms())


@later
def test_folds_into_a_linear_layer_where_it_is_linear(name):
    learn = make()
    learn.retrain_classifier(**brief(name))
    head, logits = learn.model.head, logits_of(learn)
    if not isinstance(head, nn.Linear | Foldable):
        with pytest.raises(UserError, match="cannot be folded|not linear|fold"):
            head.fold()
        return
    learn.model.head = head if type(head) is nn.Linear else head.fold()
    assert type(learn.model.head) is nn.Linear
    torch.testing.assert_close(logits_of(learn), logits, rtol=1e-5, atol=1e-5)


EXITS = {
    "batch": CancelBatchException,
    "epoch": CancelEpochException,
    "train": CancelTrainException,
    "valid": CancelValidException,
    "fit": CancelFitException,
    "exception": ArithmeticError("the user's"),
    "interrupt": KeyboardInterrupt,
}


class Leave(Callback):
    order = 100

    def __init__(self, how):
        self.how, self.left = how, False

    def before_batch(self):
        if not self.left and self.learn.training is not (self.how is CancelValidException):
            self.left = True
            raise self.how


# Every exit for a row of each kind (new head, callback with a head, cosine head), one for the rest.
ENDINGS = [
    (name, how)
    for name in TRAINED
    for how in (EXITS if name in ("crt", "samn", "ldam_drw") else ["exception"])
    if METHODS[name].values.get("epochs") != 0
]


@pytest.mark.parametrize(("name", "how"), ENDINGS)
def test_however_it_ends_all_else_is_as_it_was(name, how):
    learn = make()
    before = copy.deepcopy(learn.model.backbone.state_dict())
    flags = [p.requires_grad for p in learn.model.backbone.parameters()]
    train = learn.dls.train
    loader = (train.sampler, train.sampler_name, train.seed, train.bs)
    loss, optimiser, callbacks = learn.loss_func, learn.opt_func, list(learn.cbs)
    args = brief(name)
    for views in (1, 0):
        leave = Leave(EXITS[how])
        try:
            learn.retrain_classifier(**args, views=views, cbs=leave)
        except (ArithmeticError, KeyboardInterrupt):
            assert how in ("exception", "interrupt")
        assert leave.left
    for key, value in learn.model.backbone.state_dict().items():
        assert torch.equal(value, before[key])
    assert [p.requires_grad for p in learn.model.backbone.parameters()] == flags
    assert (train.sampler, train.sampler_name, train.seed, train.bs) == loader
    assert (learn.loss_func, learn.opt_func, list(learn.cbs)) == (loss, optimiser, callbacks)
    assert logits_of(learn).isfinite().all()
    learn.retrain_classifier(1, 0.05, reset=True)  # and another training works


@later
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("counts", ([30, 1], [40, 12, 1], [40, 0, 12, 4]), ids=str)
def test_two_classes_one_image_and_none(name, counts, caplog):
    images, targets = make_images(counts)
    held = make_images([3] * len(counts), seed=1)
    dls = LTDataLoaders.from_arrays(images, targets, valid=held, test=held, bs=8, device="cpu")
    learn = make_lt_learner(dls)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        learn.retrain_classifier(**brief(name))
    logits = logits_of(learn)
    assert logits.shape == (3 * len(counts), len(counts)) and logits.isfinite().all()
    loss = learn.stages[0].get("loss")
    assert loss is None or isinstance(loss, str)


def test_a_loss_has_the_class_counts_of_the_data_during_a_fit_only():
    seen = []

    class Keep(Callback):
        def before_batch(self):
            if self.learn.training:
                seen.append(self.learn.loss_func.class_counts.tolist())

    learn = make()
    losses = [METHODS["balanced_softmax"].loss() for _ in range(3)]
    learn.retrain_classifier(1, loss=losses[0], cbs=Keep())
    learn.retrain_classifier(1, loss=losses[1], views=0, cbs=Keep())
    learn.fit_stage1(1, 0.1, loss=losses[2], cbs=Keep())
    assert all(counts == learn.dls.class_counts.tolist() for counts in seen) and len(seen) >= 3
    assert all(isinstance(loss, CountedLoss) and loss.class_counts is None for loss in losses)
    own = type(losses[0])(class_counts=[1, 2, 3])
    learn.retrain_classifier(1, loss=own, cbs=Keep())
    assert seen[-1] == [1, 2, 3] and own.class_counts.tolist() == [1, 2, 3]


def test_too_few_validation_images_take_the_published_value(caplog):
    learn = make()  # 12 validation images
    with caplog.at_level(logging.WARNING, "ltlearn"):
        done = learn.correct_classifier("tau_norm")
    assert (done["value"], done["chosen_on"]) == (1.0, None)
    assert "12 validation images of 3 classes" in caplog.text
    np.testing.assert_allclose(learn.head_norms(), 1, rtol=1e-5)


def test_too_few_validation_images_choose_no_epoch_by_default(caplog):
    learn = make()  # 12 validation images
    with caplog.at_level(logging.WARNING, "ltlearn"):
        assert learn.retrain_classifier(2, method="samn")["select"] == "last"
    assert "12 validation images" in caplog.text and "last epoch" in caplog.text
    assert learn.retrain_classifier(2, method="samn", select="best")["select"] == "best"
    held = make_images([20, 20, 20], seed=1)
    assert make_lt_learner(make_dls(valid=held)).retrain_classifier(2)["select"] == "best"


def test_tau_norm_comes_with_the_bias_and_without():
    learn = make()
    before = learn.model.head.bias.detach().clone()
    learn.correct_classifier("tau_norm", 1.0)
    torch.testing.assert_close(learn.model.head.bias.detach(), before)
    learn.correct_classifier("tau_norm_no_bias", 1.0)
    assert learn.model.head.bias is None or not learn.model.head.bias.any()


def test_tau_is_chosen_on_validation_images_where_there_are_enough():
    held = make_images([20, 20, 20], seed=1)
    learn = make_lt_learner(make_dls(valid=held))
    done = learn.correct_classifier("logit_adjustment")
    assert done["chosen_on"] == "validation" and len(done["curve"]) == 21
    best = max(accuracy for _, accuracy in done["curve"])
    assert dict(done["curve"])[done["value"]] == best
    assert learn.stages[-1]["value"] == done["value"]


# -- the prior where the images are from -------------------------------------------------------


def test_predict_under_a_known_prior():
    learn = make()
    learn.fit_stage1(2, 0.05)
    images = list(make_images([3, 3, 3], seed=4)[0])
    _, plain = learn.predict_batch(images)
    _, same = learn.predict_batch(images, target_prior="train")
    torch.testing.assert_close(same, plain)
    counts = torch.tensor(COUNTS) / sum(COUNTS)
    names, even = learn.predict_batch(images, target_prior="uniform")
    expected = plain / counts
    torch.testing.assert_close(even, expected / expected.sum(1, keepdim=True))
    assert names == [learn.dls.vocab[c] for c in even.argmax(1).tolist()]
    _, known = learn.predict_batch(images, target_prior=[0, 1, 1], source_prior="uniform")
    assert (known[:, 0] < 1e-6).all()
    torch.testing.assert_close(known[:, 1] / known[:, 2], plain[:, 1] / plain[:, 2])
    with pytest.raises(UserError, match="prior must be one of .*'sideways'"):
        learn.predict_batch(images, target_prior="sideways")
    with pytest.raises(UserError, match="source_prior.*target_prior"):
        learn.predict_batch(images, source_prior="train")


@pytest.mark.parametrize("name", stage1_methods())
def test_the_table_and_the_learner_agree_on_the_prior_of_stage_1(name):
    learn = make(**model_of(name))
    learn.fit_stage1(1, 0.01, method=name)
    assert learn.assumed_prior == prior_of(name) and learn.stage1_method == name
    if METHODS["temperature"].fits(METHODS[name]):
        learn.retrain_classifier(method="temperature")
        assert learn.assumed_prior == prior_of("temperature", name) == prior_of(name)


def test_the_prior_that_a_classifier_assumes():
    learn = make()
    assert learn.assumed_prior == "train"
    learn.fit_stage1(1, 0.05)
    assert learn.assumed_prior == "train"
    for name in LATER:
        again = make()
        again.fit_stage1(1, 0.05)
        again.retrain_classifier(**brief(name))
        post = METHODS[name].post
        assert again.assumed_prior == prior_of(post or name, "ce"), name
    learn.retrain_classifier(1, sampler="class_balanced")
    assert learn.assumed_prior == "uniform"
    learn.retrain_classifier(1, cbs=SAMN())
    assert learn.assumed_prior == "uniform"
    learn.retrain_classifier(1)
    assert learn.assumed_prior == "train"
