import copy
from functools import partial

import pytest
import torch
from fastai.callback.core import (
    Callback,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelValidException,
)
from fastai.callback.training import GradientAccumulation
from torch import nn

from ltlearn import SAMN, MaxNorm, UserError, WeightAverage
from tests.callbacks.helpers import assert_monotone, make_learner, make_lt_learner
from tests.training.helpers import check_resumed, stage1, stage2


class Weights(Callback):
    """Keep the weights after each step, and those that each validation and each epoch sees."""

    order = 80  # between `Trajectory` and the average

    def before_fit(self):
        self.steps, self.valid, self.begun = [], [], []

    def after_step(self):
        self.steps.append(state(self.learn.model))

    def after_validate(self):
        self.valid.append(state(self.learn.model))

    def before_train(self):
        self.begun.append(state(self.learn.model))


def state(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def average(steps, decay, warmup):
    """The recurrence, in float64; the average begins with the weights after the first step."""
    mean = None
    for k, step in enumerate(steps):
        d = min(decay, 1 - (1 + k) ** (-2 / 3)) if warmup else decay
        if mean is None:
            mean = {key: v.double() for key, v in step.items()}
        for key, v in step.items():
            if not v.is_floating_point():
                mean[key] = v.double()
            elif k:
                mean[key] = d * mean[key] + (1 - d) * v.double()
    return mean


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.0])
def test_validation_and_the_end_see_the_average(decay, warmup):
    learn = make_lt_learner()
    weights, cb = Weights(), WeightAverage(decay, warmup)
    learn.fit_stage1(3, 0.05, cbs=[weights, cb])
    n = len(learn.dls.train)
    assert cb.steps_ == len(weights.steps) == 3 * n
    for epoch in range(3):
        expected = average(weights.steps[: (epoch + 1) * n], decay, warmup)
        for key, value in weights.valid[epoch].items():
            assert torch.allclose(value.double(), expected[key], atol=1e-5), key
    # Statistics of batch normalisation are averaged, counts are copied.
    assert int(weights.valid[0]["backbone.bn1.num_batches_tracked"]) == n
    assert same(state(learn.model), weights.valid[-1])
    for epoch in (1, 2):
        assert same(weights.begun[epoch], weights.steps[epoch * n - 1]), "training goes on below"


def test_training_is_that_of_a_fit_without():
    plain, other = make_lt_learner(), make_lt_learner()
    one, two = Weights(), Weights()
    plain.fit_stage1(2, 0.05, cbs=one)
    other.fit_stage1(2, 0.05, cbs=[two, WeightAverage()])
    assert all(same(a, b) for a, b in zip(one.steps, two.steps, strict=True))
    assert plain.trajectory["loss"] == other.trajectory["loss"]


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_kept_weights_of_an_epoch_are_the_average(select):
    learn = make_lt_learner()
    weights = Weights()
    learn.fit_stage1(4, 0.1, select=select, cbs=[weights, WeightAverage(0.8)])
    chosen = learn.trajectory["chosen"]
    assert same(state(learn.model), weights.valid[chosen - 1])
    expected = learn.trajectory["balanced"][chosen - 1]
    assert learn.shot_report("valid").balanced == pytest.approx(expected)
    norms = learn.trajectory["norms"][chosen - 1]
    assert learn.head_norms().tolist() == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_norms_stay_monotone_and_below_a_threshold(stage):
    learn = make_lt_learner()

    class Look(Callback):
        order = 80

        def after_validate(self):
            assert_monotone(self.learn.model.head)

    stage(learn, [SAMN(), WeightAverage(0.7), Look()])
    assert_monotone(learn.model.head)
    learn = make_lt_learner()
    stage(learn, [MaxNorm(0.3, when="step"), WeightAverage(0.7)], select="last")
    assert (learn.head_norms() <= 0.3 + 1e-5).all()


def test_only_real_steps_count():
    class Skip(Callback):
        run_valid = False

        def before_step(self):
            if self.learn.iter % 2:
                raise CancelStepException

    learn, cb = make_lt_learner(), WeightAverage()
    learn.fit(1, 0.05, cbs=[cb, Skip()])
    assert len(learn.dls.train) == 7 and cb.steps_ == 4
    learn.fit(1, 0.05, cbs=[cb, GradientAccumulation(16)])
    assert cb.steps_ == 3
    fresh = state(learn.model)
    learn.fit(0, 0.05, cbs=cb)
    assert cb.steps_ == 0 and same(fresh, state(learn.model))


@pytest.mark.parametrize(
    ("how", "at", "averaged"),
    [
        (CancelFitException, "after_step", True),
        (CancelFitException, "before_batch", True),  # in validation
        (CancelEpochException, "before_batch", True),
        (CancelValidException, "before_batch", True),
        (KeyboardInterrupt, "after_step", False),
        (KeyboardInterrupt, "before_batch", False),
        (ArithmeticError("no"), "before_batch", False),
    ],
)
def test_how_a_fit_ends(how, at, averaged):
    class Leave(Callback):
        order = 95

        def _leave(self, event):
            training = event == "after_step"
            if event == at and self.learn.epoch == 1 and self.learn.training is training:
                raise how

        def before_batch(self):
            self._leave("before_batch")

        def after_step(self):
            self._leave("after_step")

    learn = make_lt_learner()
    weights = Weights()
    try:
        learn.fit(2, 0.05, cbs=[weights, WeightAverage(0.9, warmup=False), Leave()])
    except (KeyboardInterrupt, ArithmeticError):
        assert not averaged
    last, mean = weights.steps[-1], average(weights.steps, 0.9, False)
    now = state(learn.model)
    assert same(now, last) is not averaged
    if averaged:
        assert all(torch.allclose(v.double(), mean[k], atol=1e-5) for k, v in now.items())


def test_a_validation_in_the_middle_of_an_epoch_sees_the_average():
    class Look(Callback):
        order = 90

        def before_fit(self):
            if not self.learn.lock.locked():
                self.unharmed = []

        def after_epoch(self):
            if not self.learn.lock.locked():
                before = state(self.learn.model)
                self.learn.validate()
                self.unharmed.append(same(before, state(self.learn.model)))

    class Seen(Callback):
        order = 80
        valid = ()

        def after_validate(self):
            self.valid = (*self.valid, state(self.learn.model))

    learn, look, seen = make_lt_learner(), Look(), Seen()
    learn.fit(2, 0.05, cbs=[WeightAverage(0.9), look, seen])
    assert look.unharmed == [True, True] and len(seen.valid) == 4
    assert same(*seen.valid[:2]) and same(*seen.valid[2:])
    assert same(seen.valid[-1], state(learn.model))


@pytest.mark.parametrize(
    "train",
    [stage1, partial(stage1, select="best"), partial(stage1, schedule="multistep", milestones=[2]),
     stage2, partial(stage2, views=0)],
    ids=["stage 1", "best", "multistep", "stage 2", "images"],
)  # fmt: skip
def test_a_checkpoint_goes_on_bit_for_bit(train, tmp_path):
    check_resumed(train, tmp_path / "c", cbs=lambda: [WeightAverage(0.9)])


def test_a_checkpoint_with_samn_and_accumulation(tmp_path):
    make = lambda: [SAMN(), WeightAverage(0.9), GradientAccumulation(20)]  # noqa: E731
    check_resumed(stage1, tmp_path / "c", cbs=make, at=2)


def test_the_average_of_another_model_is_refused():
    learn, cb = make_learner(), WeightAverage()

    class Look(Callback):
        order = 86

        def before_fit(self):
            kept = cb.state_dict()
            other = copy.deepcopy(kept)
            other["average"]["0.weight"] = torch.zeros(2)
            with pytest.raises(ValueError, match="another model"):
                cb.load_state_dict(other)
            # What was returned does not change with the average.
            cb.load_state_dict({**kept, "average": {k: v + 1 for k, v in kept["average"].items()}})
            assert torch.equal(kept["average"]["0.weight"], self.learn.model[0].weight)
            cb.load_state_dict(kept)

    learn.fit(1, 0.1, cbs=[cb, Look()])
    assert isinstance(learn.model, nn.Sequential)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1}, "decay must be .*, got 1"),
        ({"decay": -0.1}, "decay must be"),
        ({"decay": "0.9"}, "decay must be"),
        ({"warmup": 1}, "warmup must be True or False, got 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        WeightAverage(**options)
