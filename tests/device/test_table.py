"""On a device, a training step mixes no devices and waits for nothing."""

import pytest

from tests.callbacks.helpers import model_of
from tests.device.cases import EVENTS, POST_HOC, STAGE1, STAGE2, count_steps, make_learner
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


@pytest.mark.parametrize("name", POST_HOC)
def test_post_hoc(sim, name):
    learn = make_learner()
    learn.correct_classifier(name)
    assert learn.predict_logits("test")[0].isfinite().all()
