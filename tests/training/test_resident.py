"""Stage 1 without events: the resident loop trains what the loop with events trains."""

import pytest
import torch

from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.device.cases import STAGE1

# These need the events of a step.
EVENTS = {"accumulated", "clipped", "fastai's Adam"}
COUNTS = [20, 8, 3]  # batches of 8, 8, 8 and 7


def train(resident, options, epochs=2, **kwargs):
    learn = make_lt_learner(make_dls(COUNTS), **kwargs)
    learn.resident = resident
    given = {"lr": 0.05, **options}
    learn.fit_stage1(epochs, given.pop("lr"), **given)
    return learn


def assert_close(one, two, **tolerance):
    tolerance = {"rtol": 2e-6, "atol": 2e-6, **tolerance}
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], **tolerance, msg=lambda m, k=key: f"{k}: {m}")


def assert_same_figures(one, two):
    for key, values in one.trajectory.items():
        if key == "norms":
            torch.testing.assert_close(torch.tensor(values), torch.tensor(two.trajectory[key]))
        elif key == "loss":
            assert two.trajectory[key] == pytest.approx(values, rel=1e-5)
        elif key != "seconds":
            assert two.trajectory[key] == values
    assert two.recorder.lrs == one.recorder.lrs
    assert [float(v) for v in two.recorder.losses] == pytest.approx(
        [float(v) for v in one.recorder.losses], rel=1e-5
    )
    assert len(two.recorder.values) == len(one.recorder.values)
    for row, other in zip(one.recorder.values, two.recorder.values, strict=True):
        assert list(other) == pytest.approx(list(row), rel=1e-5, nan_ok=True)
    assert two.pct_train == pytest.approx(one.pct_train)
    assert two.train_iter == one.train_iter
    assert two.dls.train.epoch == one.dls.train.epoch


@pytest.mark.parametrize("name", STAGE1)
def test_both_loops_train_the_same_weights(name):
    events = train("never", STAGE1[name]())
    resident = train("always", STAGE1[name]())
    assert events.loop_ran == "events"
    assert resident.loop_ran == ("events" if name in EVENTS else "resident")
    assert_close(events.model.state_dict(), resident.model.state_dict())
    assert_same_figures(events, resident)
