import logging
import math

import numpy as np
import pytest
from fastai.callback.core import Callback

from ltlearn import UserError
from ltlearn.training.schedule import EpochSchedule, LoaderEpoch
from tests.callbacks.helpers import OPTIMIZERS, make_learner, make_lt_learner, two_groups


class Rates(Callback):
    """Note the learning rates that each step is taken with, from the optimiser that takes it."""

    order = 90

    def before_fit(self):
        self.seen = []

    def before_step(self):
        groups = getattr(self.learn.opt, "opt", self.learn.opt).param_groups
        self.seen.append(tuple(g["lr"] for g in groups))


def steps_of_epochs(rates, epochs):
    n = len(rates.seen) // epochs
    assert n > 0
    for e in range(epochs):
        assert len(set(rates.seen[e * n : (e + 1) * n])) == 1, "it is set once an epoch"
    return rates.seen[::n]


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_the_cosine_reaches_the_optimiser(opt):
    """With torch's optimisers it once changed a copy, and the rate stayed where it was."""
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    rates = Rates()
    learn.fit(5, [0.1, 0.4], cbs=[EpochSchedule("cosine"), rates])
    expected = [0.5 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    got = steps_of_epochs(rates, 5)
    assert [g[0] for g in got] == pytest.approx([0.1 * e for e in expected])
    assert [g[1] for g in got] == pytest.approx([0.4 * e for e in expected])
    assert [h["lr"] for h in learn.opt.hypers] == [0.1, 0.4]


def test_warm_up():
    learn = make_learner()
    rates = Rates()
    learn.fit(4, 0.1, cbs=[EpochSchedule("cosine", warmup_epochs=2), rates])
    late = [0.05 * (1 + math.cos(math.pi * t / 4)) for t in (2, 3)]
    assert [g[0] for g in steps_of_epochs(rates, 4)] == pytest.approx([0.05, 0.1, *late])
    with pytest.raises(UserError, match="warmup_epochs must be .* at least 0, got -1"):
        EpochSchedule("cosine", -1)


def test_the_rate_of_glmc_lags_by_an_epoch():
    total, schedule = 135, EpochSchedule("lagged_cosine", 10)
    rates_by_epoch = [0.1 * schedule.factor(t, total) for t in range(total)]
    # Epoch 0 at the full rate, then the warm-up, a step beyond it, and the cosine.
    assert rates_by_epoch[:13] == pytest.approx([0.1, *(0.01 * k for k in range(1, 12)),
                                        0.05 * (1 + math.cos(math.pi * 2 / 126))])  # fmt: skip
    assert rates_by_epoch[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * (133 - 9) / 126)))
    learn, kept = make_learner(), Rates()
    learn.fit(4, 0.1, cbs=[EpochSchedule("lagged_cosine", 2), kept])
    got = [row[0] for row in steps_of_epochs(kept, 4)]
    assert got == pytest.approx([0.1, 0.05, 0.1, 0.15])
    with pytest.raises(UserError, match="warmup_epochs must be .* at least 1, got 0"):
        EpochSchedule("lagged_cosine", 0)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_steps_and_warm_up_reach_the_optimiser(opt):
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    rates = Rates()
    schedule = EpochSchedule("multistep", 3, (1, 4, 5), 0.5)
    learn.fit(6, [0.1, 0.4], cbs=[schedule, rates])
    factors = [1 / 3, 2 / 3, 1, 0.5, 0.25, 0.125]
    got = steps_of_epochs(rates, 6)
    assert [g[0] for g in got] == pytest.approx([0.1 * f for f in factors])
    assert [g[1] for g in got] == pytest.approx([0.4 * f for f in factors])
    assert [h["lr"] for h in learn.opt.hypers] == [0.1, 0.4]
    learn.fit(3, 0.1, cbs=[EpochSchedule("constant", 2), rates])
    assert [g[0] for g in steps_of_epochs(rates, 3)] == pytest.approx([0.05, 0.1, 0.1])


def test_steps_agree_with_torch():
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(opt, [2, 3, 7], 0.3)
    ours = EpochSchedule("multistep", 0, (2, 3, 7), 0.3)
    for t in range(9):
        assert ours.factor(t, 9) == pytest.approx(opt.param_groups[0]["lr"])
        opt.step()
        theirs.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": ()}, r"milestones must be .*, got \(\)"),
        ({"milestones": (3, 2)}, r"milestones must be .*, got \(3, 2\)"),
        ({"milestones": (2, 2)}, r"milestones must be .*, got \(2, 2\)"),
        ({"milestones": (0, 2)}, "milestones must be"),
        ({"milestones": (1.5,)}, "milestones must be"),
        ({"milestones": (True,)}, "milestones must be"),
        ({"milestones": 3}, "milestones must be .*, got 3"),
        ({"milestones": "12"}, "milestones must be"),
        ({"decay": 0}, "decay must be .*, got 0"),
        ({"decay": 1.1}, "decay must be"),
        ({"decay": math.nan}, "decay must be"),
        ({"decay": True}, "decay must be"),
        ({"warmup_epochs": -1}, "warmup_epochs must be .*, got -1"),
        ({"milestones": None}, r"milestones must be .*\(160, 180\), got None"),
        ({"schedule": "cosine"}, "milestones must be None with schedule='cosine', got"),
        ({"schedule": "constant"}, "milestones must be None with schedule='constant', got"),
        ({"schedule": "linear"}, "schedule must be one of .*, got 'linear'"),
    ],
)
def test_options_out_of_range(options, message):
    learn = make_lt_learner()
    before = learn.model.head.weight.detach().clone()
    with pytest.raises(UserError, match=message) as caught:
        learn.fit_stage1(1, 0.1, **{"schedule": "multistep", "milestones": (2, 3), **options})
    assert "\n" not in str(caught.value)
    assert (learn.model.head.weight == before).all()


def test_stage_2_has_no_milestones():
    with pytest.raises(UserError, match="schedule must be .*, got 'multistep'"):
        make_lt_learner().retrain_classifier(1, schedule="multistep")


def test_a_milestone_that_is_never_reached_is_warned_of(caplog):
    learn = make_lt_learner()
    rates = Rates()
    with caplog.at_level(logging.WARNING, "ltlearn"):
        learn.fit_stage1(2, 0.1, schedule="multistep", milestones=np.array([1, 2, 9]), cbs=rates)
    assert [g[-1] for g in steps_of_epochs(rates, 2)] == pytest.approx([0.1, 0.01])
    assert "milestones 2, 9 " in caplog.text and "2 epochs" in caplog.text
    assert learn.stages[-1]["milestones"] == (1, 2, 9) and learn.stages[-1]["decay"] == 0.1
    caplog.clear()
    learn.fit_stage1(0, 0.1, schedule="multistep", milestones=[1])
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"schedule": "cosine"}, [0.5, 1, 0.5, 0.1464]),
        ({"schedule": "constant"}, [0.5, 1, 1, 1]),
        ({"schedule": "multistep", "milestones": [3], "decay": 0.2}, [0.5, 1, 1, 0.2]),
    ],
)
def test_stage_1_warms_up_with_every_schedule(options, factors):
    learn = make_lt_learner()
    rates = Rates()
    learn.fit_stage1(4, 0.1, warmup_epochs=2, cbs=rates, **options)
    got = [g[-1] for g in steps_of_epochs(rates, 4)]
    assert got == pytest.approx([0.1 * f for f in factors], rel=1e-3)


def test_a_validation_in_the_middle_of_a_fit_changes_no_rate():
    """It once put the rates back to those of the epoch, and then lost them."""
    learn, seen = make_learner(), []

    class Look(Callback):
        def before_step(self):
            seen.append(self.learn.opt.hypers[0]["lr"])

        def after_epoch(self):
            if not self.learn.lock.locked():
                self.learn.validate()

    learn.fit(4, 0.1, cbs=[EpochSchedule("multistep", 0, (1, 3), 0.5), Look()])
    n = len(seen) // 4
    assert seen[::n] == pytest.approx([0.1, 0.05, 0.05, 0.025])
    assert learn.opt.hypers[0]["lr"] == 0.1


@pytest.mark.parametrize("stage", ["fit_stage1", "retrain_classifier"])
def test_stages_follow_the_schedule(stage):
    learn = make_lt_learner()
    for schedule, factors in (("cosine", [1, 0.75, 0.25]), ("constant", [1, 1, 1])):
        rates = Rates()
        getattr(learn, stage)(3, 0.1, schedule=schedule, cbs=rates)
        got = [g[-1] for g in steps_of_epochs(rates, 3)]
        assert got == pytest.approx([0.1 * f for f in factors])


def test_close_restores_the_rates_of_an_interrupted_fit():
    learn = make_learner(splitter=two_groups)
    cosine = EpochSchedule("cosine")

    class Stop(Callback):
        def before_batch(self):
            if self.learn.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit(4, [0.1, 0.2], cbs=[cosine, Stop()])
    assert learn.opt.hypers[0]["lr"] != 0.1
    cosine.close()
    cosine.close()
    assert [h["lr"] for h in learn.opt.hypers] == [0.1, 0.2]


def test_a_fit_after_an_interrupted_one_begins_with_its_own_rates():
    """A Learner of fastai does not close its callbacks when a fit is interrupted."""
    learn, rates = make_learner(), Rates()
    cosine = EpochSchedule("cosine")

    class Stop(Callback):
        def before_batch(self):
            if self.learn.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 0.1, cbs=[cosine, Stop()])
    for left in learn.cbs[-2:]:
        learn.remove_cb(left)
    learn.fit(2, 0.3, cbs=[cosine, rates])
    assert [g[0] for g in steps_of_epochs(rates, 2)] == pytest.approx([0.3, 0.15])
    assert learn.opt.hypers[0]["lr"] == 0.3


def test_loader_epoch_repeats_and_changes_the_order():
    learn = make_lt_learner()

    class Order(Callback):
        run_valid = False

        def before_fit(self):
            self.seen = []

        def before_batch(self):
            self.seen.append(self.learn.yb[0].tolist())

    order = Order()
    learn.fit(2, 0.0, cbs=[order, LoaderEpoch()])
    first = list(order.seen)
    n = len(first) // 2
    assert first[:n] != first[n:]
    learn.fit(2, 0.0, cbs=[order, LoaderEpoch()])
    assert order.seen == first
