"""Methods and heads from outside the library go through all that takes a method's name.

Each fixture registers one kind of method and removes it afterwards.
"""

import logging
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from ltlearn import Method, UserError, register_method
from ltlearn.callbacks import SAMN
from ltlearn.experiments.sections import MethodSection, Stage1Section
from ltlearn.heads import head_from_state, register_head
from ltlearn.methods import (
    METHODS,
    find_method,
    find_methods,
    prior_of,
    registered_method,
    stage1_methods,
    unregister_method,
)
from ltlearn.methods import registry as registry_module
from ltlearn.names import RESERVED_OPTIONS
from ltlearn.training.checkpoint import Checkpoint
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner
from tests.outside import (
    HEAD,
    SOURCE,
    GainLinear,
    PowerLoss,
    apply_shift,
    choose_shift,
    registered_gain,
)


class Noise(Callback):
    """Add noise to the images of stage 1."""

    def __init__(self, strength):
        self.strength = strength

    def before_batch(self):
        if self.learn.training:
            x = self.learn.xb[0]
            self.learn.xb = (x + self.strength * torch.ones_like(x),)


LOSS = Method(
    "power", "stage 2", SOURCE, "own", loss=PowerLoss, loss_options={"power": 2.0},
    values={"epochs": 2, "lr": 0.05}, prior="train",
)  # fmt: skip
POST = Method("shift", "post hoc", SOURCE, "own", apply=apply_shift, choose=choose_shift)
STAGE1 = Method(
    "noise", "stage 1", SOURCE, callbacks=lambda **options: [Noise(**options)],
    callback_options={"strength": 0.1}, prior="train",
)  # fmt: skip
FOLLOWED = Method("power, shifted", "stage 2", SOURCE, loss=PowerLoss, post="shift", after="noise")


@pytest.fixture
def loss_method():
    with registered_method("power", LOSS):
        yield "power"


@pytest.fixture
def head_method():
    with registered_gain():
        yield "gain"


@pytest.fixture
def post_method():
    with registered_method("shift", POST):
        yield "shift"


@pytest.fixture
def stage1_method():
    with registered_method("noise", STAGE1):
        yield "noise"


def make(**kwargs):
    held = make_images([20, 20, 20], seed=1)
    return make_lt_learner(make_dls(valid=held), **kwargs)


class Stop(Callback):
    """End a fit before an epoch."""

    def __init__(self, epoch=2):
        self.epoch_of_end = epoch

    def before_train(self):
        if self.learn.epoch == self.epoch_of_end:
            raise KeyboardInterrupt


def check_resume(folder, fit):
    """A fit that is killed and resumed ends with the weights of a whole fit."""
    whole = make()
    torch.manual_seed(3)
    fit(whole, [])
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), [Checkpoint(folder, min_seconds=0), Stop()])
    resumed = make()
    fit(resumed, [Checkpoint(folder, resume=True), Stop(9)])
    assert resumed.first_epoch == 2 or not fit.is_stage1
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def fit_stage1(method, **options):
    def fit(learn, cbs):
        learn.fit_stage1(4, 0.05, method=method, options=options, cbs=cbs)

    fit.is_stage1 = True
    return fit


def retrain(method, **options):
    def fit(learn, cbs):
        learn.retrain_classifier(4, method=method, options=options, select="last", cbs=cbs)

    fit.is_stage1 = False
    return fit


def check_save_and_load(learn, folder):
    other = make(seed=5)
    learn.path = other.path = folder
    learn.save("model")
    other.load("model")
    assert type(other.model.head) is type(learn.model.head)
    for key, value in learn.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])


# ------------------------------------------------ the four kinds


def test_a_loss_with_an_option(loss_method, tmp_path):
    learn, other = make(), make()
    learn.retrain_classifier(method=loss_method, select="last")
    assert learn.stages[-1]["loss"] == "PowerLoss" and learn.stages[-1]["epochs"] == 2
    assert learn.assumed_prior == prior_of(loss_method) == "train"
    other.retrain_classifier(method=loss_method, options={"power": 1.5}, select="last")
    assert not torch.equal(learn.model.head.weight, other.model.head.weight)
    check_save_and_load(learn, tmp_path)
    check_resume(tmp_path / "c", retrain(loss_method, power=1.5))
    with pytest.raises(UserError, match="power.*'gamma'"):
        learn.retrain_classifier(method=loss_method, options={"gamma": 1.0})


def test_a_checkpoint_of_another_option_is_refused(loss_method, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cbs = [Checkpoint(tmp_path, min_seconds=0), Stop()]
        make().retrain_classifier(4, method=loss_method, options={"power": 1.5}, cbs=cbs)
    with pytest.raises(UserError, match="options"):
        cbs = Checkpoint(tmp_path, resume=True)
        make().retrain_classifier(4, method=loss_method, options={"power": 2.5}, cbs=cbs)


def test_a_head_with_its_callback(head_method, tmp_path):
    learn = make()
    learn.retrain_classifier(method=head_method, options={"limit": 0.5}, select="last")
    head = learn.model.head
    assert isinstance(head, GainLinear) and head.gain <= 0.5
    assert learn.stages[-1]["trained"] == "GainLinear" and learn.assumed_prior == "uniform"
    torch.testing.assert_close(learn.head_norms(), head.fold().weight.detach().norm(dim=1))
    assert isinstance(head_from_state(head.state_dict()), GainLinear)
    check_save_and_load(learn, tmp_path)
    check_resume(tmp_path / "c", retrain(head_method))
    learn.retrain_classifier(1)
    assert type(learn.model.head) is nn.Linear, "without its callback the head is folded"


def test_a_correction_with_a_strength_to_choose(post_method, tmp_path):
    learn, other = make(), make()
    learn.fit_stage1(2, 0.05)
    other.model.load_state_dict(learn.model.state_dict())
    chosen = learn.correct_classifier(post_method)
    assert chosen["chosen_on"] == "validation" and len(chosen["curve"]) == 21
    assert learn.stages[-1]["value"] == chosen["value"]
    # The prior of stage 1 is that of the training images.
    other.correct_classifier("logit_adjustment")
    torch.testing.assert_close(learn.model.head.bias, other.model.head.bias)
    check_save_and_load(learn, tmp_path)
    few = make_lt_learner()
    assert few.retrain_classifier(method=post_method)["epoch"] == [0]
    assert few.stages[-1]["value"] == 1.0, "the published value"


def test_a_stage_1_with_an_option(stage1_method, tmp_path):
    learn, other = make(), make()
    learn.fit_stage1(1, 0.05, method=stage1_method)
    other.fit_stage1(1, 0.05, method=stage1_method, options={"strength": 0.5})
    assert not torch.equal(learn.model.head.weight, other.model.head.weight)
    assert learn.stage1_method == stage1_method and learn.stages[-1]["method"] == stage1_method
    assert "Noise" in learn.stages[-1]["callbacks"] and learn.assumed_prior == "train"
    by_hand = make()
    by_hand.fit_stage1(1, 0.05, cbs=Noise(0.1))
    assert torch.equal(by_hand.model.head.weight, learn.model.head.weight)
    assert by_hand.stage1_method == stage1_method and "method" not in by_hand.stages[-1]
    check_resume(tmp_path, fit_stage1(stage1_method, strength=0.5))


def test_a_method_for_a_stage_1_from_outside(stage1_method):
    row = replace(LOSS, after=stage1_method)
    with registered_method("power", row):
        assert "power" in find_methods(None, stage1_method)
        assert "power" not in find_methods(None, "ce")


def test_a_comparison_has_all_of_them(loss_method, head_method, post_method):
    learn = make()
    learn.fit_stage1(1, 0.05)
    names = [loss_method, head_method, post_method, "ce"]
    comparison = learn.compare_classifiers(names)
    assert list(comparison.methods) == names
    assert all(label in str(comparison) for label in ("power", "gain", "shift"))


# ------------------------------------------------ the registry


def test_a_taken_name_is_refused_unless_it_is_replaced():
    with pytest.raises(UserError, match="'crt'.*replace=True"):
        register_method("crt", LOSS)
    with registered_method("crt", LOSS, replace=True):
        assert find_method("crt") is LOSS
    assert find_method("crt").label == "cRT"
    with registered_method("power", LOSS):
        assert list(METHODS)[-1] == "power" and len(METHODS) == len(list(METHODS))
        with registered_method("power", HEAD, replace=True):
            assert find_method("power") is HEAD
        assert find_method("power") is LOSS
    assert "power" not in METHODS


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("power", "LOSS", r"power.*'LOSS'"),
        ("Power", LOSS, r"name.*'Power'"),
        ("a,b", LOSS, r"name.*'a,b'"),
        ("power", replace(LOSS, label="CE"), r"ce.*'CE'.*power"),
        ("power", replace(LOSS, post="crt"), r"post.*'crt'"),
        ("power", replace(LOSS, after="none"), r"after.*'none'"),
    ],
)
def test_what_cannot_be_registered(name, row, message):
    with pytest.raises(UserError, match=message):
        register_method(name, row)
    assert name not in METHODS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "stage 3"}, "kind.*'stage 3'"),
        ({"prior": "flat"}, "prior.*'flat'"),
        ({"sampler": "fair"}, "sampler.*'fair'"),
        ({"label": ""}, "label.*''"),
        ({"values": {"views": 2}}, "values.*'views'"),
        ({"loss_options": {"a-b": 1.0}}, "option.*'a-b'"),
        ({"loss_options": {"power": None}}, "power.*None"),
        ({"loss_options": {"lr": 1.0}}, "option.*'lr'.*'stage 2'"),
        ({"callback_options": {"power": 3.0}}, "power.*2.0.*3.0"),
        ({"apply": apply_shift}, "apply.*'stage 2'"),
        ({"kind": "stage 1"}, "values.*'stage 1'"),
        ({"kind": "post hoc"}, "apply"),
    ],
)
def test_rows_that_are_not_allowed(changes, message):
    with pytest.raises(UserError, match=message):
        replace(LOSS, **changes)


def test_options_do_not_have_the_name_of_a_recipe_key():
    assert set(RESERVED_OPTIONS["stage 1"]) == set(Stage1Section.model_fields)
    assert set(RESERVED_OPTIONS["stage 2"]) == set(MethodSection.model_fields)
    with pytest.raises(UserError, match="option.*'decay'.*'stage 1'"):
        replace(STAGE1, callback_options={"decay": 0.1})
    assert replace(LOSS, loss_options={"decay": 0.1}).options == {"decay": 0.1}


def test_a_replaced_row_comes_back():
    with registered_method("crt", LOSS, replace=True):
        with registered_method("crt", HEAD, replace=True):
            assert find_method("crt") is HEAD
        assert find_method("crt") is LOSS
    assert find_method("crt").label == "cRT"


def test_built_in_methods_cannot_be_removed():
    with pytest.raises(UserError, match="crt"):
        unregister_method("crt")
    with pytest.raises(UserError, match="'power'"):
        unregister_method("power")


def test_only_heads_from_outside_can_be_registered():
    for kind in (nn.Linear, "head", dict):
        with pytest.raises(UserError, match="type"):
            register_head(kind, lambda keys: False, lambda state: None)


# ------------------------------------------------ installed packages


def packages(monkeypatch, **values):
    """A registry that has not been looked at, and these entry points."""
    entries = [EntryPoint(name, value, "ltlearn.methods") for name, value in values.items()]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: entries)
    fresh = registry_module.MethodRegistry()
    monkeypatch.setattr(registry_module, "METHODS", fresh)
    return fresh


def test_methods_of_installed_packages(monkeypatch):
    own = stage1_methods()
    methods = packages(monkeypatch, power=f"{__name__}:LOSS", noise=f"{__name__}:STAGE1")
    assert list(methods)[-2:] == ["power", "noise"] and methods["power"] is LOSS
    assert stage1_methods() == (*own, "noise") and own[0] == "ce"


def test_rows_of_a_package_name_each_other_in_any_order(monkeypatch, caplog):
    """Packages list their entry points in the order of the alphabet."""
    methods = packages(
        monkeypatch, a=f"{__name__}:FOLLOWED", noise=f"{__name__}:STAGE1", shift=f"{__name__}:POST"
    )
    assert list(methods)[-3:] == ["noise", "shift", "a"]
    assert not caplog.records


def test_a_broken_package_gives_one_warning(monkeypatch, caplog):
    methods = packages(
        monkeypatch, broken="no_such_package:METHOD", crt=f"{__name__}:LOSS",
        wrong=f"{__name__}:SOURCE", power=f"{__name__}:LOSS",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "ltlearn"):
        assert list(methods)[-1] == "power" and methods["crt"].label == "cRT"
        assert "broken" not in methods and "wrong" not in methods
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 3
    assert "broken" in messages[0] and "no_such_package" in messages[0]


def test_samn_head_gives_way_to_a_registered_head(head_method):
    learn = make()
    learn.retrain_classifier(1, cbs=SAMN())
    learn.retrain_classifier(method=head_method)
    assert isinstance(learn.model.head, GainLinear)
