"""Stage 1 without events: the resident loop trains what the loop with events trains."""

import copy
import gc
import logging
import pickle
import random
import weakref

import pytest
import torch
from fastai.callback.core import Callback
from fasttransform import Transform
from torch import nn
from torch.utils.data import Sampler

from ltlearn import (
    GLMC,
    SAMN,
    BatchMixUp,
    Checkpoint,
    SharpnessAware,
    UserError,
    WeightAverage,
)
from ltlearn.data.loader import LTDataLoader
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.resident import ResidentLoop
from ltlearn.training.resident_form import ResidentForm
from tests.callbacks.helpers import Second, make_dls, make_lt_learner, model_of
from tests.device.cases import EVENTS, STAGE1

COUNTS = [20, 8, 3]  # batches of 8, 8, 8 and 7


def make(resident="always", counts=COUNTS, **kwargs):
    learn = make_lt_learner(make_dls(counts), **kwargs)
    learn.resident = resident
    return learn


def train(resident, options, epochs=2, **kwargs):
    learn = make(resident, **kwargs)
    given = {"lr": 0.05, **options}
    learn.fit_stage1(epochs, given.pop("lr"), **given)
    return learn


def assert_close(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=2e-6, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_same_figures(one, two):
    for key, values in one.trajectory.items():
        if key == "norms":
            torch.testing.assert_close(torch.tensor(values), torch.tensor(two.trajectory[key]))
        elif key == "loss":
            assert two.trajectory[key] == pytest.approx(values, rel=1e-5)
        elif key != "seconds":
            assert two.trajectory[key] == values
    assert two.recorder.lrs == one.recorder.lrs
    losses = [float(v) for v in one.recorder.losses]
    assert [float(v) for v in two.recorder.losses] == pytest.approx(losses, rel=1e-5)
    for row, other in zip(one.recorder.values, two.recorder.values, strict=True):
        assert list(other) == pytest.approx(list(row), rel=1e-5, nan_ok=True)
    assert two.pct_train == pytest.approx(one.pct_train)
    assert two.train_iter == one.train_iter
    assert two.dls.train.epoch == one.dls.train.epoch


# A probe fits the head alone, on features: no loop of the image learner runs.
@pytest.mark.parametrize("name", [name for name in STAGE1 if name != "probe"])
def test_both_loops_train_the_same_weights(name):
    events = train("never", STAGE1[name](), **model_of(name))
    resident = train("always", STAGE1[name](), **model_of(name))
    assert events.loop_ran == "events"
    assert resident.loop_ran == ("events" if name in EVENTS else "resident")
    assert_close(events.model.state_dict(), resident.model.state_dict())
    assert_same_figures(events, resident)
    assert events.stages[0].get("loop") is None
    assert resident.stages[0].get("loop") == (None if name in EVENTS else "resident")


def test_stage_2_on_images_trains_the_same_weights():
    trained = []
    for resident in ("never", "always"):
        learn = make(resident)
        learn.retrain_classifier(2, 0.05, bn="train", cbs=SAMN())
        trained.append(learn)
    assert trained[1].stages[0].loop == "resident"
    assert_close(*(learn.model.state_dict() for learn in trained))


@pytest.mark.parametrize("cb", [None, SharpnessAware], ids=["plain", "SAM"])
def test_a_model_that_draws_sees_the_same_numbers(cb):
    trained, draws = [], []
    for resident in ("never", "always"):
        learn = make(resident)
        learn.model.backbone = nn.Sequential(learn.model.backbone, nn.Dropout(0.3))
        torch.manual_seed(1)
        learn.dls.train.rng = random.Random(1)
        learn.fit_stage1(2, 0.05, cbs=cb and cb())
        trained.append(learn.model.state_dict())
        draws.append((torch.rand(3).tolist(), learn.dls.train.rng.random()))
    assert_close(*trained)
    assert draws[0] == draws[1]


def bad_from(step):
    """A loss that is not a number at one call."""
    calls = []

    def loss(logits, target):
        calls.append(1)
        value = nn.functional.cross_entropy(logits, target)
        return value * float("nan") if len(calls) == step else value

    return loss


def test_a_skipped_step_changes_nothing_and_is_not_averaged():
    trained = []
    for resident in ("never", "always"):
        average = WeightAverage(0.5)
        learn = make(resident)
        learn.fit_stage1(2, 0.05, loss=bad_from(3), on_nan="skip", cbs=average)
        trained.append(learn)
        assert average.steps_ == 7
    assert trained[1].loop_ran == "resident"
    assert_close(*(learn.model.state_dict() for learn in trained))
    assert trained[0].trajectory["loss"] == pytest.approx(trained[1].trajectory["loss"])


def test_a_loss_that_is_not_finite_is_reported_with_its_step():
    learn = make()
    with pytest.raises(UserError, match="epoch 1 of stage 1: the loss of step 3 with"):
        learn.fit_stage1(1, 0.05, loss=bad_from(3))
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


class Killed(Exception):
    pass


class Kill(Callback):
    """End a fit after an epoch, or not."""

    order = 100

    def __init__(self, at=-1):
        self.at = at

    def after_epoch(self):
        if self.learn.epoch == self.at:
            raise Killed("here")


@pytest.mark.parametrize("first", ["never", "always"])
@pytest.mark.parametrize("cb", [GLMC, WeightAverage])
def test_each_loop_resumes_from_the_checkpoint_of_the_other(first, cb, tmp_path):
    whole = make("never")
    whole.fit_stage1(3, 0.05, cbs=cb())
    stopped = make(first)
    with pytest.raises(Killed):
        stopped.fit_stage1(3, 0.05, cbs=[cb(), Checkpoint(tmp_path, min_seconds=0), Kill(1)])
    resumed = make({"never": "always", "always": "never"}[first])
    resumed.fit_stage1(3, 0.05, cbs=[cb(), Checkpoint(tmp_path, resume=True), Kill()])
    assert_close(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.trajectory["loss"] == pytest.approx(whole.trajectory["loss"], rel=1e-5)
    assert len(resumed.trajectory["epoch"]) == 3


class Interrupt(FitCallback):
    """Interrupt a fit after some steps."""

    uses_weights_alone = True

    def __init__(self, steps):
        self.left = steps

    def after_step(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_epoch_is_counted_and_leaves_the_learner_as_found():
    learn = make()
    with pytest.raises(KeyboardInterrupt):
        learn.fit_stage1(2, 0.05, cbs=[GLMC(), Interrupt(6)])
    assert learn.train_iter == 5 and len(learn.recorder.losses) == 5
    assert all(p.grad is None for p in learn.model.parameters())
    norm = learn.model.backbone.bn1
    assert norm.num_batches_tracked == 12  # two passes in each step, the last one included
    copy.deepcopy(learn.model)
    learn.fit_stage1(1, 0.05)
    assert learn.loop_ran == "resident"


def test_a_step_leaves_no_cycle_of_its_tensors():
    steps, own = [], ResidentLoop._load

    def load(self, size, **purpose):
        step = own(self, size, **purpose)
        steps.append(weakref.ref(step))
        return step

    learn = make()
    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ResidentLoop, "_load", load)
            learn.fit_stage1(1, 0.05)
    finally:
        gc.enable()
    assert len(steps) == 4 and all(step() is None for step in steps)


# ------------------------------------------------ changes between two epochs


COPIES = []


def pickled(learn):
    COPIES.append(pickle.dumps(learn))


def test_a_copy_made_during_a_fit_has_no_loop_of_it():
    COPIES.clear()
    make().fit(2, 0.05, cbs=Second(pickled))
    twin = pickle.loads(COPIES[0])
    assert vars(twin)["_resident_loop"] is None
    twin.resident = "always"
    twin.fit(1, 0.05)
    assert twin.loop_ran == "resident"


class Doubled(Transform):
    order = 100

    def encodes(self, batch: tuple):
        return 2 * batch[0], *batch[1:]


class Counting(Sampler):
    """Begin each pass at another image."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([(7 * self.passes + i) % 31 for i in range(20)])

    def __len__(self):
        return 20


def switch_mixing(learn):
    mix = next(cb for cb in learn.cbs if isinstance(cb, BatchMixUp))
    mix.run = not mix.run


def other_data(learn):
    learn.dls = make_dls([9, 8, 7], bs=16)


def doubled_images(learn):
    learn.dls.train.after_batch.add(Doubled())


@pytest.mark.parametrize(
    ("change", "last"),
    [(switch_mixing, "resident"), (other_data, "resident"), (doubled_images, "events")],
)
def test_a_callback_may_change_the_training_between_two_epochs(change, last):
    trained = []
    for resident in ("never", "always"):
        learn = make(resident)
        learn.fit(3, 0.05, cbs=[BatchMixUp(1.0), Second(change)])
        assert learn.loop_ran == ("events" if resident == "never" else last)
        trained.append(learn)
    assert_close(*(learn.model.state_dict() for learn in trained))


def test_a_sampler_that_counts_its_passes():
    trained = []
    for resident in ("never", "always"):
        learn = make(resident)
        learn.dls.train.set_sampler(Counting())
        learn.fit(3, 0.05)
        trained.append(learn)
        assert learn.dls.train.sampler.passes == 3
    assert_close(*(learn.model.state_dict() for learn in trained))


# ------------------------------------------------ callbacks of others


class HandlesABatch(Callback):
    def after_batch(self):
        self.called = True


class HalvesTheLoss(FitCallback):
    """Halve the loss, in both loops."""

    def after_loss(self):
        self.learn.loss_grad = self.learn.loss_grad / 2
        self.learn.loss = self.learn.loss_grad.clone()

    def resident_form(self):
        return Halved()


class Halved(ResidentForm):
    def after_loss(self, step):
        step.loss = step.loss / 2


class WithAnEventOfItsOwn(BatchMixUp):
    def after_batch(self):
        self.called = True


class ForValidationAlone(Callback):
    run_train = False

    def after_batch(self):
        self.called = True


@pytest.mark.parametrize("make_cb", [HandlesABatch, WithAnEventOfItsOwn])
def test_a_callback_without_a_form_gets_its_events(make_cb, caplog):
    cb, learn = make_cb(), make()
    with caplog.at_level(logging.INFO, "ltlearn"):
        learn.fit_stage1(2, 0.05, cbs=cb)
    assert cb.called and learn.loop_ran == "events"
    reasons = [r.getMessage() for r in caplog.records if make_cb.__name__ in r.getMessage()]
    assert len([r for r in reasons if "no resident form" in r]) == 1, "once in a fit"


def test_a_form_of_a_users_callback_takes_part():
    trained = [train(how, {"cbs": HalvesTheLoss()}) for how in ("never", "always")]
    assert trained[1].loop_ran == "resident"
    assert_close(*(learn.model.state_dict() for learn in trained))
    assert_same_figures(*trained)
    assert trained[0].trajectory["loss"][0] < 0.8 * train("never", {}).trajectory["loss"][0]


def test_a_callback_for_validation_alone_needs_no_form():
    learn = train("always", {"cbs": ForValidationAlone()})
    assert learn.loop_ran == "resident"


class OwnLoader(LTDataLoader):
    pass


def test_other_data_needs_events(caplog):
    learn = make()
    learn.dls.train.__class__ = OwnLoader
    with caplog.at_level(logging.INFO, "ltlearn"):
        learn.fit_stage1(1, 0.05)
    assert learn.loop_ran == "events" and "OwnLoader" in caplog.text


def test_the_switch():
    for resident, ran in (("auto", "events"), ("never", "events"), ("always", "resident")):
        assert train(resident, {"cbs": BatchMixUp()}, epochs=1).loop_ran == ran
    learn = make("sometimes")
    with pytest.raises(UserError, match="resident.*'sometimes'"):
        learn.fit_stage1(1, 0.05)
