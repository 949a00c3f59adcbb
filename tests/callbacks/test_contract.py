"""However a fit ends, a callback restores the Learner."""

import importlib
import inspect
import pkgutil
import tempfile

import pytest
import torch
from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
)
from torch import nn

import ltlearn.callbacks
import ltlearn.training
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.training.fit_callback import mixes_images
from ltlearn.training.history import Trajectory
from tests.callbacks.helpers import make_dls, make_lt_learner, make_vit_learner


def find_callbacks():
    callbacks = {}
    for package in (ltlearn.callbacks, ltlearn.training):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, value in vars(module).items():
                own = inspect.isclass(value) and issubclass(value, Callback)
                if own and value.__module__ == module.__name__ and not name.startswith("_"):
                    callbacks[name] = value
    # A base, and a callback that an LTLearner adds by itself with precision="fp16".
    return {k: v for k, v in callbacks.items() if k not in ("FitCallback", "LossScaling")}


COUNTS = [15, 6, 3]  # three batches an epoch
CALLBACKS = find_callbacks()
EXITS = {
    "finished": None,
    "batch": CancelBatchException,
    "epoch": CancelEpochException,
    "train": CancelTrainException,
    "valid": CancelValidException,
    "fit": CancelFitException,
    "exception": ArithmeticError("the user's"),
    "interrupt": KeyboardInterrupt,
}


# A callback that undoes nothing after a fit leaves alike at each exit.
CASES = [
    (name, how)
    for name, kind in CALLBACKS.items()
    for how in (EXITS if hasattr(kind, "close") else ["interrupt"])
]


class Leave(Callback):
    """Count the steps and leave in the second epoch, in its second batch."""

    order = 100

    def __init__(self, how):
        self.how, self.steps, self.left = how, 0, False

    def after_step(self):
        self.steps += 1

    def before_batch(self):
        in_valid = self.how is CancelValidException
        here = self.learn.epoch == 1 and self.learn.iter == (0 if in_valid else 1)
        if self.how is not None and here and not self.left and self.learn.training is not in_valid:
            self.left = True
            raise self.how


def make(name, learn, tmp_path):
    if name == "Trajectory":
        return Trajectory(torch.tensor(COUNTS), predict=lambda: learn.predict_logits(cached=False))
    if name == "Checkpoint":
        return Checkpoint(tempfile.mkdtemp(dir=tmp_path), min_seconds=0)
    if name == "EpochSchedule":
        return CALLBACKS[name]("multistep", 1, (1, 2))
    return CALLBACKS[name]()


def make_learner(name, dls=None):
    needs_blocks = name in ("AdaptFormer", "LoRA", "GradCheckpointing")
    return (make_vit_learner if needs_blocks else make_lt_learner)(dls)


def prepare(name, learn):
    """Change the modules of the model before a fit, for a callback that does."""
    if getattr(CALLBACKS[name], "changes_model", False):
        CALLBACKS[name]().install(learn)
    return learn


def state_of(learn):
    train = learn.dls.train
    return {
        "rates": [h["lr"] for h in learn.opt.hypers],
        "decay": [h["wd"] for h in learn.opt.hypers],
        "groups": len(learn.opt.param_lists),
        "frozen": learn.opt.frozen_idx,
        "loss": (learn.loss_func, learn.loss_func.weights),
        "optimiser": learn.opt_func,
        "sampler": (train.sampler, train.sampler_name, train.seed, train.bs),
        "callbacks": list(learn.cbs),
        "dls": learn.dls,
        "grad": [p.requires_grad for p in learn.model.backbone.parameters()],
        "modules": [n for n, _ in learn.model.backbone.named_modules()],
        "log": (learn.logger, learn.create_mbar),
    }


def test_the_callbacks_are_found():
    public = {getattr(ltlearn.callbacks, name) for name in ltlearn.callbacks.__all__}
    assert public <= set(CALLBACKS.values())
    assert {"EpochSchedule", "LoaderEpoch", "FlipAverage", "Trajectory"} <= set(CALLBACKS)


class First(Callback):
    """Keep the images of a batch before any other callback."""

    order = -100

    def before_batch(self):
        self.images = self.learn.xb[0].clone()


class Last(Callback):
    """Note whether other callbacks have changed the images or the class weights."""

    order = 100

    def __init__(self, first):
        self.first, self.mixed, self.weighted = first, False, False

    def before_batch(self):
        if self.learn.training:
            self.mixed |= not torch.equal(self.learn.xb[0], self.first.images)

    def after_loss(self):
        self.weighted |= self.learn.loss_func.weights is not None


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_changes_images_or_class_weights_declares_it(name, tmp_path):
    learn = prepare(name, make_learner(name))
    cb, first = make(name, learn, tmp_path), First()
    last = Last(first)
    learn.fit(5, 0.05, cbs=[first, cb, last])
    assert last.mixed <= mixes_images(cb) and last.weighted <= getattr(cb, "weights_loss", False)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_learner_is_left_as_it_was_found(name, how, tmp_path):
    learn = prepare(name, make_learner(name, make_dls(COUNTS)))
    if getattr(CALLBACKS[name], "trained_part", "") == "adapters":
        make(name, learn, tmp_path).install(learn)  # they stay, as a head does
    learn.create_opt()
    learn.opt.set_hyper("lr", 0.05)
    learn.opt.set_hyper("wd", 0.01)
    before = state_of(learn)
    leave = Leave(EXITS[how])
    cb = make(name, learn, tmp_path)
    try:
        learn.fit(3, 0.05, wd=0.01, cbs=[cb, leave])
    except (ArithmeticError, KeyboardInterrupt):
        assert how in ("exception", "interrupt")
    n = len(learn.dls.train)
    assert leave.left == (how != "finished")
    least = {"finished": 3 * n, "batch": 3 * n - 1, "epoch": 2 * n, "train": 2 * n, "valid": 3 * n}
    assert leave.steps >= least.get(how, n + 1), "training did not really run"

    assert state_of(learn) == before
    # The head of a callback stays after the fit; all other callbacks keep the linear layer.
    assert type(learn.model.head) is getattr(CALLBACKS[name], "head_type", nn.Linear)
    assert cb.learn is None and cb.name not in vars(learn)
    assert all(p.grad is None for p in learn.model.parameters())
    assert not torch.is_autocast_enabled("cpu")

    # Training still works, with the callback and without.
    for cbs in ([], [make(name, learn, tmp_path)]):
        weights = {k: v.clone() for k, v in learn.model.head.state_dict().items()}
        again = Leave(None)
        learn.fit(1, 0.05, cbs=[*cbs, again])
        assert again.steps == n
        after = learn.model.head.state_dict()
        assert any(not torch.equal(after[k], v) for k, v in weights.items())
        assert all(v.isfinite().all() for v in after.values())
