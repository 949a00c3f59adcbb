"""Trainings whose steps are taken together end as they do alone."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from fastai.callback.core import Callback

from ltlearn import SAMN
from ltlearn.methods import METHODS, registered_method
from ltlearn.training.head_learner import HeadLearner
from ltlearn.training.stacked import StackedEpoch
from ltlearn.training.together import retrain_together
from tests.callbacks.helpers import make_dls, make_lt_learner

STAGE2 = [
    name
    for name, m in METHODS.items()
    if m.kind == "stage 2" and m.after is None and m.values.get("epochs") != 0
]
# 58 images in batches of 8: the last batch is smaller.
COUNTS = [40, 12, 6]


@pytest.fixture
def learn():
    return make_lt_learner(make_dls(COUNTS, bs=8))


@pytest.fixture
def groups(monkeypatch):
    """The numbers of trainings that take their steps together, epoch by epoch."""
    seen = []
    run = StackedEpoch.run
    monkeypatch.setattr(
        StackedEpoch, "run", lambda self: (seen.append(len(self._fits)), run(self))[1]
    )
    return seen


def assert_equal(member, alone, tolerance=1e-5):
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(
            member.model.state_dict()[key], value, rtol=tolerance, atol=tolerance
        )
    together, expected = member.trajectory.to_dict(), alone.trajectory.to_dict()
    for key in ("epoch", "all", "balanced", "many", "medium", "few", "chosen", "select_on"):
        assert together[key] == expected[key], key
    assert together["loss"][1:] == pytest.approx(expected["loss"][1:], rel=1e-4)
    assert len(member.stages) == len(alone.stages)
    for one, other in zip(member.stages, alone.stages, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_every_method_and_seed_ends_as_it_does_alone(learn, groups):
    # 24 steps; a second seed of some methods has 16.
    requests = {
        (name, seed): {"method": name, "seed": seed, "epochs": 3 - seed, "bs": 8, "view_seed": 0}
        for names, seed in ((STAGE2, 0), (["lws", "max_norm", "samn"], 1))
        for name in names
    }
    found = retrain_together(learn, requests)
    assert found.keys() == requests.keys()
    # Those of one epoch less take part as long as they train.
    assert groups == [len(STAGE2) + 3] * 2 + [len(STAGE2)]
    assert learn.stages == [] and type(learn.model.head) is torch.nn.Linear
    for name, request in requests.items():
        learn.retrain_classifier(**request)
        assert_equal(found[name], learn)


@pytest.mark.parametrize(
    "options",
    [
        {"views": 2},
        {"select": "best", "wd": 0.1},
        {"schedule": "constant", "sampler": "progressive"},
    ],
    ids=str,
)
def test_options(learn, groups, options):
    requests = {
        name: {"method": name, "epochs": 3, "bs": 8, **options}
        for name in ("samn", "mislas", "ldam_drw")
    }
    found = retrain_together(learn, requests)
    assert groups == [3] * 3
    for name, request in requests.items():
        learn.retrain_classifier(**request)
        assert_equal(found[name], learn)


def test_trainings_of_another_batch_size_form_a_group_of_their_own(learn, groups, caplog):
    caplog.set_level(logging.INFO, "ltlearn")
    requests = {
        (bs, seed): {"method": "crt", "epochs": 1, "bs": bs, "seed": seed}
        for bs in (8, 16)
        for seed in (0, 1)
    }
    requests[32, 0] = {"method": "crt", "epochs": 1, "bs": 32}
    # Features of other views would be others, so all have those of one seed.
    requests = {name: {**request, "view_seed": 0} for name, request in requests.items()}
    found = retrain_together(learn, requests)
    assert groups == [2, 2] and (32, 0) not in found and len(found) == 4
    assert "alone: (32, 0) (no other" in caplog.text


class Listen(Callback):
    def after_epoch(self):
        """Do nothing."""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cbs": Listen()}, "callbacks"),
        ({"views": 0}, "images"),
        ({"epochs": 0}, "no epoch"),
        ({"on_nan": "skip"}, "skips"),
        ({"method": "tau_norm", "epochs": None, "bs": None}, "trains nothing"),
        ({"lr": -1.0}, "lr.*-1"),
    ],
)
def test_what_is_trained_alone(learn, groups, options, reason, caplog):
    caplog.set_level(logging.INFO, "ltlearn")
    usual = {"method": "samn", "epochs": 1, "bs": 8, "view_seed": 0}
    requests = {"a": usual, "b": {**usual, **options}, "c": {**usual, "seed": 1}}
    assert retrain_together(learn, requests).keys() == {"a", "c"}
    assert groups == [2]
    assert any(re.search(rf"alone: b \(.*{reason}", message) for message in caplog.messages)


def test_a_head_that_no_stack_takes_is_trained_alone(learn, groups, caplog):
    caplog.set_level(logging.INFO, "ltlearn")
    usual = {"method": "samn", "epochs": 1, "bs": 8}
    row = replace(METHODS["samn"], label="own", callbacks=lambda: [SAMN(project="forward")])
    with registered_method("forward", row):
        requests = {"a": usual, "b": {**usual, "method": "forward"}, "c": usual}
        assert retrain_together(learn, requests).keys() == {"a", "c"}
    assert groups == [2]
    assert "trained alone: b (a SAMNLinear" in caplog.text


def test_a_learner_with_a_callback_trains_all_alone(learn, groups):
    learn.add_cb(Listen())
    usual = {"method": "samn", "epochs": 1, "bs": 8}
    assert retrain_together(learn, {"a": usual, "b": usual}) == {} and groups == []


def test_a_training_that_diverges_leaves_all_to_be_trained_alone(learn, caplog):
    usual = {"method": "crt", "epochs": 1, "bs": 8}
    requests = {"good": usual, "bad": {**usual, "lr": 1e38}}
    caplog.set_level(logging.INFO, "ltlearn")
    assert retrain_together(learn, requests) == {}
    assert "diverged" in caplog.text


@pytest.mark.parametrize("event", ["begin_epoch", "begin_validation", "report_steps"])
def test_an_interruption_ends_all_fits(learn, monkeypatch, event):
    fits, original = [], getattr(HeadLearner, event)

    def interrupt(self, *args):
        fits.append(self)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(HeadLearner, event, interrupt)
    usual = {"method": "samn", "epochs": 2, "bs": 8, "view_seed": 0}
    head = learn.model.head
    with pytest.raises(KeyboardInterrupt):
        retrain_together(learn, {seed: {**usual, "seed": seed} for seed in (0, 1)})
    assert learn.model.head is head and learn.stages == []
    own = [type(cb).__name__ for cb in learn.cbs]
    assert all([type(cb).__name__ for cb in fit.cbs] == own for fit in fits)
    assert learn.retrain_classifier(1, method="samn", bs=8).epoch == [0, 1]
