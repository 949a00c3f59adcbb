"""The linear probe: a stage 1 that trains the classifier alone, on cached features."""

import logging
import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from ltlearn import Checkpoint, UserError
from ltlearn.data.feature_rows import Features
from ltlearn.methods import METHODS, Method, registered_method
from ltlearn.training.scaled_features import Scaling
from tests.callbacks.helpers import COUNTS, make_dls, make_lt_learner
from tests.device.simcuda import SimCuda
from tests.training.helpers import Kill, Killed, check_resumed


def copied(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


class Rescaled(nn.Module):
    """A backbone whose features are a hundred times as large, and far from 0."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return 100 * self.backbone(x) + 50


class Longer(nn.Module):
    """A backbone whose features are longer by a factor."""

    def __init__(self, backbone, factor):
        super().__init__()
        self.backbone, self.factor = backbone, factor

    def forward(self, x):
        return self.factor * self.backbone(x)


class CountPasses:
    """Count the images that pass through a backbone."""

    def __init__(self, backbone):
        self.images = 0
        backbone.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.images += len(output)


def test_the_backbone_stays_and_stage_2_reads_the_same_features():
    learn = make_lt_learner()
    before, passes = copied(learn.model.backbone), CountPasses(learn.model.backbone)
    trajectory = learn.fit_stage1(method="probe")
    n_train, n_valid, n_test = sum(COUNTS), 12, 9
    assert passes.images == n_train + n_valid
    assert same(copied(learn.model.backbone), before)
    assert len(trajectory["epoch"]) == 20 and trajectory["balanced"][-1] > 0.8
    (stage,) = learn.stages
    assert (stage["stage"], stage["trained"], stage["method"]) == ("stage 1", "head", "probe")
    assert (stage["bn"], stage["on"], stage["epochs"]) == ("frozen", "features, 1 view", 20)
    assert stage["lr"] == METHODS["probe"].values["lr"] / 8  # batches of 8 images
    assert trajectory["norms"][-1] == pytest.approx(learn.head_norms().tolist(), rel=1e-5)
    learn.retrain_classifier(2, method="crt")
    assert passes.images == n_train + n_valid
    learn.compare_classifiers(["probe", "crt", "samn", "tau_norm", "ncm"])
    assert passes.images == n_train + n_valid + n_test
    assert learn.stage1_method == "probe"


@pytest.mark.parametrize(
    "method", ["crt", "samn", "samn_from_stage1", "lws", "ldam_drw", "max_norm"]
)
def test_stage_2_does_not_depend_on_the_length_of_the_features(method):
    outcomes = []
    for factor in (1.0, 100.0):
        learn = make_lt_learner()
        learn.model.backbone = Longer(learn.model.backbone, factor)
        learn.fit_stage1(method="probe")
        learn.retrain_classifier(4, method=method)
        outcomes.append(learn.predict_logits()[0])
        # The recorded norms are those of the head that the learner keeps.
        kept = torch.tensor(learn.trajectory["norms"][-1])
        assert torch.allclose(kept, learn.head_norms(), rtol=1e-4)
    small, large = outcomes
    assert small.std() > 0.05  # it has learnt something
    assert torch.allclose(small, large, rtol=1e-2, atol=1e-2)


class OwnHead(nn.Linear):
    """A head of a user's: logits are twice those of a linear layer."""

    def forward(self, x):
        return 2 * super().forward(x)

    def fold(self):
        linear = nn.Linear(self.in_features, self.out_features)
        linear.load_state_dict({k: 2 * v for k, v in self.state_dict().items()})
        return linear


class TakesOwnHead(Callback):
    def before_fit(self):
        before = self.learn.model.head
        self.learn.model.head = OwnHead(before.in_features, before.out_features)
        self.learn.model.head.load_state_dict(before.state_dict())
        self.learn.create_opt()


class DeclaresOwnHead(TakesOwnHead):
    head_type = OwnHead


@pytest.mark.parametrize(("kind", "left"), [(TakesOwnHead, nn.Linear), (DeclaresOwnHead, OwnHead)])
def test_a_head_of_the_users_keeps_what_it_has_learnt(kind, left):
    outcomes = []
    for factor in (1.0, 100.0):
        learn = make_lt_learner()
        learn.model.backbone = Longer(learn.model.backbone, factor)
        learn.fit_stage1(method="probe")
        trajectory = learn.retrain_classifier(2, lr=1e-6, cbs=kind())
        assert type(learn.model.head) is left
        logits, targets = learn.predict_logits()
        # The learner predicts as the head did when the fit measured it last.
        right = (logits.argmax(1) == targets).float()
        balanced = torch.stack([right[targets == c].mean() for c in targets.unique()]).mean()
        assert trajectory["balanced"][-1] == pytest.approx(float(balanced))
        outcomes.append(logits)
    # A head of an unknown type reads the features as they are, so their length matters.
    assert torch.allclose(*outcomes, rtol=1e-2, atol=1e-2) == (left is nn.Linear)


def test_features_are_as_they_are_after_a_trained_backbone(monkeypatch):
    learn = make_lt_learner()
    learn.fit_stage1(1)
    monkeypatch.setattr(Scaling, "to_length", None)  # a call would fail
    learn.retrain_classifier(1, method="crt")


def test_other_views_and_another_seed_of_the_augmentation():
    learn = make_lt_learner()
    passes = CountPasses(learn.model.backbone)
    learn.fit_stage1(1, method="probe", views=2, view_seed=3)
    assert learn.stages[-1]["on"] == "features, 2 views"
    n = passes.images
    learn.retrain_classifier(1, method="crt", views=2, view_seed=3)
    assert passes.images == n == 2 * sum(COUNTS) + 12


@pytest.mark.parametrize("width", [1, 40])
def test_scaled_features_and_the_layer_that_needs_no_scaling(width):
    generator = np.random.default_rng(0)
    views = [(50 + 30 * generator.normal(size=(60, width))).astype(np.float32) for _ in range(2)]
    features = Features(views, torch.arange(60) % 3)
    scaling = Scaling.of(features)
    index = np.arange(60)
    both = []
    for view in views:
        x, y = scaling.apply(Features([view], features.targets)).get_batch(index)
        assert torch.equal(y, features.targets)
        both.append(x)
    all_rows = torch.cat(both).double()
    assert all_rows.mean(0).abs().max() < 1e-5
    assert all_rows.square().sum(1).mean() == pytest.approx(1, abs=1e-5)
    head = nn.Linear(width, 3)
    with torch.no_grad():
        plain = scaling.unscaled(head)(torch.from_numpy(views[1]))
        torch.testing.assert_close(plain, head(both[1]), rtol=1e-4, atol=1e-4)


def test_features_that_are_all_equal_are_not_scaled():
    features = Features([np.full((4, 3), 2, np.float32)], torch.tensor([0, 0, 1, 1]))
    scaling = Scaling.of(features)
    assert scaling.factor == 1 and not scaling.apply(features).get_batch([0, 3])[0].any()


def test_the_defaults_fit_features_of_any_size():
    logits = []
    for wrap in (lambda b: b, Rescaled):
        learn = make_lt_learner()
        learn.model.backbone = wrap(learn.model.backbone)
        learn.fit_stage1(method="probe")
        logits.append(learn.predict_logits("test")[0])
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("counts", [COUNTS, [30, 6]])
def test_a_start_is_better_than_none(counts):
    found = {}
    for start in ("none", "class_means", "logistic"):
        learn = make_lt_learner(make_dls(counts))
        options = {"start": start}
        trajectory = learn.fit_stage1(1, 1e-9, method="probe", options=options)
        found[start] = trajectory["loss"][0]
        assert learn.shot_report().balanced > 0.5
    assert found["none"] == pytest.approx(math.log(len(counts)), rel=1e-3)
    assert max(found["class_means"], found["logistic"]) < 0.8 * found["none"]


@pytest.mark.parametrize("start", ["class_means", "logistic"])
def test_a_start_with_a_class_without_images(start):
    learn = make_lt_learner(make_dls([30, 0, 6]))
    learn.fit_stage1(1, 1e-9, method="probe", options={"start": start})
    predicted = learn.predict_logits("test")[0].argmax(1)
    assert 1 not in predicted.tolist() and len(predicted.unique()) == 2


@pytest.mark.parametrize("start", ["none", "logistic"])
def test_a_probe_that_is_killed_resumes(tmp_path, start):
    def train(learn, cbs):
        learn.fit_stage1(5, method="probe", options={"start": start}, cbs=cbs)

    check_resumed(train, tmp_path / "c")


def test_a_checkpoint_of_another_start_is_refused(tmp_path):
    stopped = [Kill(1), Checkpoint(tmp_path / "c", min_seconds=0)]
    with pytest.raises(Killed):
        make_lt_learner().fit_stage1(2, method="probe", cbs=stopped)
    with pytest.raises(UserError, match="start"):
        make_lt_learner().fit_stage1(
            2, method="probe", options={"start": "class_means"}, resume=tmp_path / "c"
        )


@pytest.mark.parametrize("start", ["none", "class_means", "logistic"])
def test_a_device_trains_the_same_probe(start):
    def trained(**kwargs):
        learn = make_lt_learner(make_dls(**kwargs))
        learn.fit_stage1(2, method="probe", options={"start": start})
        return learn.model.head.weight.detach().cpu()

    with SimCuda():
        on_device = trained(device="cuda")
    torch.testing.assert_close(on_device, trained(), rtol=1e-3, atol=1e-3)


def test_what_a_probe_refuses():
    learn = make_lt_learner()
    for given, words in (
        ({"options": {"start": "end"}}, "start must be one of none, .*'end'"),
        ({"options": {"tau": 1}}, "'tau'.*start"),
        ({"flip": True}, "flip .*probe"),
        ({"compile": True}, "compile .*probe"),
        ({"warmup_epochs": 1}, "warmup_epochs .*probe"),
        ({"views": 0}, "views .*1.* 0"),
        ({"epochs": 0}, "epochs .*1.* 0"),
        ({"lr": [0.1, 0.2]}, "lr "),
        ({"schedule": "multistep"}, "schedule .*multistep"),
    ):
        with pytest.raises(UserError, match=words):
            learn.fit_stage1(**{"method": "probe", **given})
    with pytest.raises(UserError, match="views .*probe.*'ce'"):
        learn.fit_stage1(1, method="ce", views=1)
    with pytest.raises(UserError, match="epochs .*None"):
        learn.fit_stage1()
    with pytest.raises(UserError, match="probe .*stage 1"):
        learn.retrain_classifier(method="probe")


def test_a_probe_that_diverges_leaves_the_learner_as_it_was():
    learn = make_lt_learner()
    before = copied(learn.model)
    with pytest.raises(UserError, match="stage 1.*learning rate"):
        learn.fit_stage1(3, 1e30, method="probe")
    assert same(copied(learn.model), before) and not learn.stages


def test_a_row_of_ones_own_that_trains_the_head():
    values = {"epochs": 3, "lr": 2.0, "wd": 0.0}
    row = {"prior": "uniform", "trains": "head", "values": values}
    row["loss"] = METHODS["balanced_softmax"].loss
    with registered_method("mine", Method("mine", "stage 1", "me", **row)):
        learn = make_lt_learner()
        learn.fit_stage1(method="mine")
        assert learn.stages[-1]["loss"] == "BalancedSoftmaxLoss"
        assert learn.assumed_prior == "uniform"
    for wrong, words in (
        ({"values": {"epochs": 3}}, "values.*lr"),
        ({"trains": "tail"}, "trains .*'tail'"),
        ({"trains": "all"}, "values .*stage 1"),
        ({"trains": "all", "values": {}, "choices": {"a": ("b",)}}, "choices"),
    ):
        with pytest.raises(UserError, match=words):
            Method("mine", "stage 1", "me", **{**row, **wrong})
    with pytest.raises(UserError, match="trains .*stage 2"):
        Method("mine", "stage 2", "me", trains="head")


# ------------------------------------------------ stage 2 that begins from a probe


def test_a_method_that_needs_a_trained_classifier_begins_from_a_probe(caplog):
    learn = make_lt_learner()
    before = copied(learn.model.backbone)
    with caplog.at_level(logging.INFO, "ltlearn"):
        learn.retrain_classifier(2, method="samn", reset=True)
    assert "samn begins with a trained classifier" in caplog.text
    assert [s["method"] for s in learn.stages] == ["probe", "samn"]
    assert same(copied(learn.model.backbone), before)
    spelled = make_lt_learner()
    spelled.fit_stage1(method="probe")
    spelled.retrain_classifier(2, method="samn")
    assert same(copied(learn.model), copied(spelled.model))
    learn.retrain_classifier(method="tau_norm", reset=True)
    assert [s["method"] for s in learn.stages] == ["probe", "tau_norm"]
    learn.use("stage1")
    assert not learn.stages


def test_a_method_with_a_new_classifier_needs_no_probe(caplog):
    learn = make_lt_learner()
    with caplog.at_level(logging.INFO, "ltlearn"):
        learn.retrain_classifier(1, method="crt", reset=True)
    assert [s["method"] for s in learn.stages] == ["crt"] and "probe" not in caplog.text
    with pytest.raises(UserError, match="ncm .*reset"):
        learn.retrain_classifier(method="ncm", reset=True)
    with pytest.raises(UserError, match="lr"):
        learn.retrain_classifier(1, -1, method="samn", reset=True)
