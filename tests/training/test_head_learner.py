"""Stage 2 on cached features: the loop without events equals fastai's."""

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from ltlearn import SAMN, UserError
from ltlearn.heads import gradient
from ltlearn.heads.gradient import CompiledSAMNGradient
from ltlearn.methods import METHODS
from ltlearn.training.head_learner import HeadLearner
from tests.callbacks.helpers import COUNTS, make_dls, make_lt_learner

STAGE2 = [
    name
    for name, m in METHODS.items()
    if m.kind == "stage 2" and m.after is None and m.values.get("epochs") != 0
]


class Listen(Callback):
    """Count the steps; with it, a training sends the events of each step."""

    def __init__(self):
        self.steps = 0

    def after_batch(self):
        self.steps += self.training


class KeepLosses(Callback):
    """Keep what the recorder of the training has."""

    order = 90

    def after_train(self):
        self.kept = [float(v) for v in self.recorder.losses], list(self.recorder.lrs)
        self.at = self.learn.train_iter, self.learn.pct_train


def trained(monkeypatch, cbs, **kwargs):
    """Retrain twice over the same features; return the learner and the runs without events."""
    silent = []
    run = HeadLearner._run_steps
    monkeypatch.setattr(HeadLearner, "_run_steps", lambda self: (silent.append(1), run(self)))
    learn = make_lt_learner(make_dls([40, 12, 6], bs=8))
    learn.retrain_classifier(epochs=3, bs=8, cbs=cbs, **kwargs)
    return learn, len(silent)


@pytest.mark.parametrize("name", STAGE2)
def test_both_loops_train_the_same_weights(name, monkeypatch):
    kept = KeepLosses(), KeepLosses()
    fast, silent = trained(monkeypatch, kept[0], method=name, views=2)
    listen = Listen()
    slow, none = trained(monkeypatch, [kept[1], listen], method=name, views=2)
    assert (silent, none, listen.steps) == (3, 0, 24)
    for key, value in slow.model.state_dict().items():
        torch.testing.assert_close(fast.model.state_dict()[key], value, rtol=2e-5, atol=2e-6)
    assert fast.trajectory["loss"][1:] == pytest.approx(slow.trajectory["loss"][1:], rel=1e-5)
    assert fast.trajectory["all"] == slow.trajectory["all"]
    assert kept[0].kept[0] == pytest.approx(kept[1].kept[0], rel=1e-5)
    assert kept[0].kept[1] == kept[1].kept[1]
    assert kept[0].at == pytest.approx(kept[1].at)


@pytest.mark.parametrize(
    "kwargs",
    [{"opt_func": Adam}, {"wd": 0.1}, {"sampler": "class_balanced"}, {"schedule": "constant"}],
)
def test_options_train_the_same_weights(kwargs, monkeypatch):
    fast, silent = trained(monkeypatch, SAMN(), **kwargs)
    slow, _ = trained(monkeypatch, [SAMN(), Listen()], **kwargs)
    assert silent == 3
    for key, value in slow.model.state_dict().items():
        torch.testing.assert_close(fast.model.state_dict()[key], value, rtol=2e-5, atol=2e-6)


def test_a_long_fit_takes_compiled_steps_that_train_the_same_weights(monkeypatch):
    slow, _ = trained(monkeypatch, SAMN())
    made = []
    reserve = CompiledSAMNGradient._reserve
    monkeypatch.setattr(
        CompiledSAMNGradient, "_reserve", lambda *args: (made.append(1), reserve(*args))
    )
    monkeypatch.setattr(gradient, "KERNEL_STEPS", 24 + 1)  # a fit has 3 epochs of 8 steps
    same, _ = trained(monkeypatch, SAMN())
    assert not made
    monkeypatch.setattr(gradient, "KERNEL_STEPS", 24)
    fast, silent = trained(monkeypatch, SAMN())
    assert (len(made), silent) == (3, 3)
    assert fast.trajectory["loss"][1:] == pytest.approx(slow.trajectory["loss"][1:], rel=1e-5)
    for key, value in slow.model.state_dict().items():
        assert torch.equal(same.model.state_dict()[key], value)
        torch.testing.assert_close(fast.model.state_dict()[key], value, rtol=2e-5, atol=2e-6)


def test_a_subclass_with_events_of_its_own_gets_them(monkeypatch):
    class Watched(SAMN):
        seen = 0

        def after_loss(self):
            self.seen += 1

    watched = Watched()
    _, silent = trained(monkeypatch, watched)
    assert silent == 0
    assert watched.seen > 0


def test_a_callback_of_fastai_can_declare_that_it_uses_weights_alone():
    class Watched(Callback):
        uses_weights_alone = True

        def __init__(self):
            self.seen = []

        def after_step(self):
            self.seen.append(self.learn.model.head.raw_norm_weight.tolist())

    watched, learn = Watched(), make_lt_learner()
    learn.retrain_classifier(epochs=1, lr=0.1, bs=8, cbs=[SAMN(), watched])
    assert len(watched.seen) == sum(COUNTS) // 8 and watched.seen[0] != watched.seen[-1]
    assert watched.seen[-1] == learn.model.head.raw_norm_weight.tolist()


def test_a_loss_that_is_not_finite_is_reported_with_its_step(monkeypatch):
    calls = []

    def third(logits, target):
        calls.append(1)
        return logits.sum() * (float("nan") if len(calls) == 3 else 0.0)

    learn = make_lt_learner(make_dls([40, 12, 6], bs=8))
    before = {k: v.clone() for k, v in learn.model.head.state_dict().items()}
    with pytest.raises(UserError, match="epoch 1 of stage 2: the loss of step 3 with"):
        learn.retrain_classifier(epochs=1, bs=8, loss=third)
    for key, value in learn.model.head.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_an_interrupted_fit_leaves_vectors_with_memory_of_their_own(error):
    def interrupted(logits, target):
        values.append([p.detach().clone() for p in samn.installed.parameters()])
        if len(values) == 4:
            raise error
        return torch.nn.functional.cross_entropy(logits, target)

    values, samn, learn = [], SAMN(), make_lt_learner()
    with pytest.raises(error):
        learn.retrain_classifier(epochs=2, lr=0.1, bs=8, loss=interrupted, cbs=samn)
    left = list(learn.model.head.parameters())
    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in left)
    assert all(map(torch.equal, left, values[3]))
    assert not any(map(torch.equal, values[2], values[3]))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numpy_does_not_warn_of_norms_that_overflow(monkeypatch):
    _, silent = trained(monkeypatch, SAMN(), lr=1e30)
    assert silent == 3
