import math

import pytest
from fastai.callback.core import Callback

from ltlearn import UserError
from ltlearn.callbacks.schedule import EpochCosine, LoaderEpoch
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
    learn.fit(5, [0.1, 0.4], cbs=[EpochCosine(), rates])
    expected = [0.5 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]
    got = steps_of_epochs(rates, 5)
    assert [g[0] for g in got] == pytest.approx([0.1 * e for e in expected])
    assert [g[1] for g in got] == pytest.approx([0.4 * e for e in expected])
    assert [h["lr"] for h in learn.opt.hypers] == [0.1, 0.4]


def test_warm_up():
    learn = make_learner()
    rates = Rates()
    learn.fit(4, 0.1, cbs=[EpochCosine(warmup_epochs=2), rates])
    late = [0.05 * (1 + math.cos(math.pi * t / 4)) for t in (2, 3)]
    assert [g[0] for g in steps_of_epochs(rates, 4)] == pytest.approx([0.05, 0.1, *late])
    with pytest.raises(
        UserError, match="warmup_epochs must be a whole number of at least 0, got -1"
    ):
        EpochCosine(-1)


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
    cosine = EpochCosine()

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
