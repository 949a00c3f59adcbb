"""On a device, a training step mixes no devices and waits for nothing."""

import pytest

from ltlearn import UserError
from ltlearn.training.head_learner import HeadLearner
from tests.callbacks.helpers import model_of
from tests.device.cases import (
    EVENTS,
    POST_HOC,
    STAGE1,
    STAGE2,
    count_steps,
    count_together,
    make_learner,
)
from tests.device.simcuda import SimCuda

# These read the loss of each step on the host, as documented.
READS = {"on_nan=skip": 1, "SAMN, skip": 1}


@pytest.fixture
def sim():
    with SimCuda() as state:
        yield state


def assert_waits_for_nothing(name, counts):
    assert counts.steps == 7 and counts.launches, "nothing was counted"
    others = counts.others
    assert sum(others.values()) == READS.get(name, 0), others
    assert counts.for_batch == 0, counts.waits


@pytest.mark.parametrize(
    ("name", "loop"),
    [(name, "events") for name in STAGE1] + [(n, "resident") for n in STAGE1 if n not in EVENTS],
)
def test_stage_1(sim, name, loop):
    learn = make_learner(**model_of(name))
    learn.resident, learn.capture_steps = "never" if loop == "events" else "auto", False
    counts = count_steps(1, learn, STAGE1[name]())
    assert learn.loop_ran == loop
    assert_waits_for_nothing(name, counts)
    assert all(p.is_cuda for p in learn.model.parameters())


@pytest.mark.parametrize("name", STAGE2)
def test_stage_2(sim, name):
    options = STAGE2[name]()
    learn = make_learner()
    counts = count_steps(2, learn, options)
    assert_waits_for_nothing(name, counts)
    assert learn.predict_logits("test")[0].isfinite().all()


def test_the_launches_of_trainings_together_do_not_grow_with_the_seeds(sim):
    names = ["lws", "ldam_drw", "max_norm", "samn"]
    once, twice = (count_together(make_learner(), names, seeds) for seeds in (1, 2))
    for counts in (once, twice):
        assert_waits_for_nothing("together", counts)
    # Further seeds start no kernel. Each of the four alone starts 29 to 64.
    assert twice.launches == once.launches
    assert once.launches.total() < 150


def test_a_head_alone_sends_no_events_of_a_step(sim, monkeypatch):
    sent = []
    send = HeadLearner.__call__
    monkeypatch.setattr(HeadLearner, "__call__", lambda *args: (sent.append(args[1]), send(*args)))
    make_learner().retrain_classifier(1, method="samn", bs=8)
    assert "after_train" in sent and "after_step" not in sent


def test_a_loss_that_is_not_finite_is_reported_with_its_step(sim):
    calls = []

    def third(logits, target):
        calls.append(1)
        return logits.sum() * (float("nan") if len(calls) == 3 else 0.0)

    with pytest.raises(UserError, match="epoch 1 of stage 2: the loss of step 3 with"):
        make_learner().retrain_classifier(epochs=1, bs=8, loss=third)


@pytest.mark.parametrize("name", POST_HOC)
def test_post_hoc(sim, name):
    learn = make_learner()
    learn.correct_classifier(name)
    assert learn.predict_logits("test")[0].isfinite().all()
