import json
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn
from torch.utils.data import RandomSampler

from ltlearn import (
    GLMC,
    SAMN,
    BatchCutMix,
    BatchMixUp,
    Checkpoint,
    DeferredReweighting,
    LearnableWeightScaling,
    MaxNorm,
    UserError,
)
from ltlearn.methods import METHODS, stage1_methods
from ltlearn.training.finite import FiniteLoss
from ltlearn.training.loop import oom_to_user_error, sgd
from ltlearn.utils.run_folder import Run
from tests.callbacks.helpers import make_dls, make_learner, make_lt_learner, model_of
from tests.training.helpers import (
    EPOCHS,
    Kill,
    Killed,
    check_resumed,
    learner,
    stage1,
    stage2,
)


class Noise(Callback):
    """Draw from every generator in each step, and depend on all draws before."""

    def __init__(self):
        self.memory = torch.zeros(2)

    def before_batch(self):
        if self.learn.training:
            draws = [random.random() + np.random.rand(), torch.rand(()).item()]
            self.memory = self.memory * 0.5 + torch.tensor(draws)
            self.learn.xb = (self.learn.xb[0] + self.memory.sum() * 1e-2,)

    def state_dict(self):
        return {"memory": self.memory, "note": [1, None, "a", {"b": float("nan")}]}

    def load_state_dict(self, state):
        assert state["note"][:3] == [1, None, "a"] and np.isnan(state["note"][3]["b"])
        self.memory = state["memory"]


STAGE1 = {
    "plain": {},
    "best": {"select": "best"},
    "warm-up": {"warmup_epochs": 4, "sampler": "class_balanced"},
    "progressive": {"sampler": "progressive", "schedule": "constant", "flip": True},
    "two rates": {"lr": slice(0.01, 0.05), "opt_func": sgd(0.8, nesterov=True)},
    "Adam": {"opt_func": Adam},
    "fastai SGD": {"opt_func": partial(SGD, mom=0.9)},
    "torch AdamW": {"opt_func": partial(OptimWrapper, opt=torch.optim.AdamW)},
}


@pytest.mark.parametrize("name", STAGE1)
def test_stage_1_goes_on_bit_for_bit(name, tmp_path):
    kwargs = {"lr": 0.05, **STAGE1[name]}
    check_resumed(lambda learn, cbs: learn.fit_stage1(EPOCHS, cbs=cbs, **kwargs), tmp_path / "c")


@pytest.mark.parametrize("channels_last", [True, False])
def test_stage_1_in_bfloat16(tmp_path, channels_last):
    make = partial(learner, precision="bf16", channels_last=channels_last)
    check_resumed(stage1, tmp_path / "c", make)


CALLBACKS = [
    GLMC, DeferredReweighting, MaxNorm, SAMN, Noise, BatchMixUp, BatchCutMix, MixUp, CutMix,
]  # fmt: skip


@pytest.mark.parametrize("callback", CALLBACKS)
def test_stage_1_with_callbacks(callback, tmp_path):
    check_resumed(stage1, tmp_path / "c", cbs=lambda: [callback()])


@pytest.mark.parametrize("name", [n for n in stage1_methods() if METHODS[n].loss is not None])
def test_methods_of_stage_1_with_a_loss(name, tmp_path):
    def train(learn, cbs):
        learn.fit_stage1(EPOCHS, 0.05, method=name, cbs=cbs)

    # Rows that need a timm model as backbone have no dropout around it.
    in_timm = name in ("adaptformer", "lora", "full", "last_block")
    plain = partial(make_lt_learner, **model_of(name))
    make = (lambda: plain(make_dls([20, 6, 4]))) if in_timm else learner
    # Deferred re-weighting begins at epoch 4 of 5, after the fit has gone on.
    check_resumed(train, tmp_path / "c", make)
    other = make()
    options = {key: value * 0.5 for key, value in METHODS[name].options.items()}
    checkpoint = Checkpoint(tmp_path / "c", min_seconds=0)
    with pytest.raises(Killed):
        train(make(), [Kill(), checkpoint])
    if options:
        with pytest.raises(UserError, match="loss|callbacks"):
            other.fit_stage1(EPOCHS, 0.05, method=name, options=options, resume=tmp_path / "c")


def test_a_sampler_of_torch_with_a_generator(tmp_path):
    def train(learn, cbs):
        generator = torch.Generator().manual_seed(5)
        data = range(len(learn.dls.train.dataset))
        stage1(learn, cbs, sampler=RandomSampler(data, generator=generator))

    check_resumed(train, tmp_path / "c")


STAGE2 = {
    "features": {},
    "views": {"views": 2, "sampler": "class_balanced"},
    "last": {"select": "last", "reset": True},
    "images": {"views": 0, "flip": True},
    "batch normalisation": {"views": 0, "bn": "train"},
    "method": {"method": "ldam_drw"},
}


@pytest.mark.parametrize("callback", [None, SAMN, LearnableWeightScaling])
@pytest.mark.parametrize("name", ["features", "images", "batch normalisation"])
def test_stage_2_goes_on_bit_for_bit(name, callback, tmp_path):
    train = partial(stage2, **STAGE2[name])
    check_resumed(train, tmp_path / "c", cbs=lambda: [] if callback is None else [callback()])


@pytest.mark.parametrize("name", ["views", "last", "method"])
def test_stage_2_in_other_ways(name, tmp_path):
    check_resumed(partial(stage2, **STAGE2[name]), tmp_path / "c")


@pytest.mark.parametrize("options", [{"every": 2}, {"keep_all": True}])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_options_and_other_epochs(options, at, tmp_path):
    if options == {"every": 2} and at == 1:
        pytest.skip("there is no checkpoint yet")
    check_resumed(partial(stage1, select="best"), tmp_path / "c", at=at, **options)


# ------------------------------------------------ what is kept


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_last_two_are_kept_and_none_of_the_last_epoch(tmp_path):
    learn = learner()
    checkpoint = Checkpoint(tmp_path, min_seconds=0)
    stage1(learn, [checkpoint])
    assert checkpoint.epochs() == [3, 4]
    assert names(tmp_path) == [
        "epoch-00003.json", "epoch-00003.safetensors",
        "epoch-00004.json", "epoch-00004.safetensors",
    ]  # fmt: skip
    assert "Checkpoint" not in learn.stages[-1]["callbacks"]


def test_keep_all_keeps_all(tmp_path):
    checkpoint = Checkpoint(tmp_path, keep_all=True)
    stage1(learner(), [checkpoint])
    assert checkpoint.epochs() == [1, 2, 3, 4, 5]
    learn = learner()
    stage1(learn, [Checkpoint(tmp_path, resume=True, keep_all=True)])
    assert learn.trajectory["epoch"] == [1, 2, 3, 4, 5]


def test_short_epochs_go_without(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", min_seconds=1000)
    stage1(learner(), [checkpoint])
    assert checkpoint.epochs() == [] and checkpoint.last_ is None
    assert not (tmp_path / "c").exists()


def test_clear_leaves_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint = Checkpoint(tmp_path, min_seconds=0)
    stage1(learner(), [checkpoint])
    checkpoint.clear()
    assert names(tmp_path) == ["notes.txt"]


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / ".tmp-12-0123abcd").write_text("half")
    (tmp_path / "epoch-00009.safetensors").write_text("no note")
    stage1(learner(), [Checkpoint(tmp_path, resume=True, min_seconds=1000)])
    assert names(tmp_path) == []


def test_seconds_add_up(tmp_path):
    with pytest.raises(Killed):
        stage1(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    note = tmp_path / "epoch-00003.json"
    before = json.loads(note.read_text())["seconds"]
    learn = learner()
    stage1(learn, [Checkpoint(tmp_path, resume=True), Kill(-1)])
    assert before > 0 and learn.stages[-1]["seconds"] >= round(before, 2)
    assert (np.diff(learn.trajectory["seconds"]) > 0).all()


def test_another_number_of_threads_is_reported(tmp_path, monkeypatch, caplog):
    with pytest.raises(Killed):
        stage1(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    threads = torch.get_num_threads()
    note = tmp_path / "epoch-00003.json"
    assert json.loads(note.read_text())["threads"] == threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    stage1(learner(), [Checkpoint(tmp_path, resume=True, min_seconds=0), Kill(-1)])
    assert f"threads of torch was {threads} before, and is {threads + 3} now" in caplog.text


def test_a_checkpoint_without_threads_is_taken(tmp_path, caplog):
    """Earlier versions did not record them."""
    with pytest.raises(Killed):
        stage1(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    run, name = Run(tmp_path), "epoch-00003.json"
    note = run.read_json(name, sealed=True)
    del note["threads"]
    run.write_json(name, note, sealed=True)
    checkpoint = Checkpoint(tmp_path, resume=True, min_seconds=0)
    learn = learner()
    stage1(learn, [checkpoint, Kill(-1)])
    assert learn.first_epoch == 3 and "threads" not in caplog.text


def test_two_fits_do_not_share_a_folder(tmp_path):
    stage1(learner(), [Checkpoint(tmp_path, keep_all=True)])
    before = names(tmp_path)
    refused = []

    def other():
        try:
            stage1(learner(), [Checkpoint(tmp_path, resume=True, keep_all=True)])
        except UserError as error:
            refused.append(str(error))

    with Run(tmp_path).lock():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"{tmp_path} is in use by process" in refused[0]
    assert names(tmp_path) == before


# ------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"wd": 0.1}, "weight_decay 0.0005,.* 0.1;"),
        ({"sampler": "progressive"}, "sampler instance,.* progressive;"),
        ({"loss": nn.functional.cross_entropy}, "made with loss CrossEntropy"),
        ({"select": "best"}, "made with select last"),
        ({"cbs": MaxNorm(0.3)}, "made with callbacks"),
        ({"opt_func": sgd(0.5)}, "made with optimizer _SGD"),
        ({"epochs": 6}, "epochs 5,.* 6;"),
        ({"lr": 0.1}, "lr 0.05,.* 0.1;"),
    ],
)
def test_other_values_are_refused(kwargs, message, tmp_path):
    with pytest.raises(Killed):
        stage1(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    before = names(tmp_path)
    cbs = [Checkpoint(tmp_path, resume=True), Kill(-1), *[kwargs.get("cbs")][: "cbs" in kwargs]]
    learn = learner()
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        learn.fit_stage1(**{"epochs": EPOCHS, "lr": 0.05, **kwargs, "cbs": cbs})
    assert "\n" not in str(caught.value) and "another folder" in str(caught.value)
    assert names(tmp_path) == before
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())


def test_other_images_precision_model_and_stage_are_refused(tmp_path):
    with pytest.raises(Killed):
        stage1(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    for make, train, message in (
        (lambda: make_lt_learner(make_dls([40, 12, 5])), stage1, "made with images train"),
        (lambda: learner("bf16"), stage1, "precision fp32,.* bf16;"),
        (lambda: learner(width=8), stage1, "made with model"),
        (learner, stage2, "stage stage 1,.* stage 2;"),
    ):
        with pytest.raises(UserError, match=message):
            train(make(), [Checkpoint(tmp_path, resume=True), Kill(-1)])


def test_stage_2_refuses_another_stage_1(tmp_path):
    with pytest.raises(Killed):
        stage2(learner(), [Checkpoint(tmp_path, min_seconds=0), Kill()])
    with pytest.raises(UserError, match="made with weights it begins with"):
        stage2(learner(seed=9), [Checkpoint(tmp_path, resume=True), Kill(-1)])


def test_a_folder_in_use_is_refused_without_resume(tmp_path):
    stage1(learner(), [Checkpoint(tmp_path, min_seconds=0)])
    with pytest.raises(UserError, match="resume=True"):
        stage1(learner(), [Checkpoint(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every must be"), ({"min_seconds": -1}, "min_seconds must be")],
)
def test_options_are_checked(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Checkpoint(tmp_path, **options)


def test_a_plain_learner_is_refused(tmp_path):
    with pytest.raises(UserError, match="Checkpoint needs an LTLearner"):
        make_learner().fit(1, 0.1, cbs=Checkpoint(tmp_path))


def test_a_state_that_is_no_tensor_or_json_is_reported(tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"a": object()}

        def load_state_dict(self, state):
            pass

    with pytest.raises(TypeError, match="callbacks/odd/a must be made of tensors"):
        stage1(learner(), [Odd(), Checkpoint(tmp_path, min_seconds=0)])


# ------------------------------------------------ a loss that is not finite


class Spoil:
    """A loss that is not a number in some of its calls."""

    def __init__(self, *bad):
        self.bad, self.calls = bad, 0

    def __call__(self, pred, target):
        loss = nn.functional.cross_entropy(pred, target)
        self.calls += torch.is_grad_enabled()
        bad = torch.is_grad_enabled() and self.calls - 1 in self.bad
        return loss * float("nan") if bad else loss


def test_nan_stops_at_the_step_and_names_it(tmp_path):
    learn = make_lt_learner()
    n = len(learn.dls.train)
    steps = []

    class Count(Callback):
        def after_step(self):
            steps.append(self.learn.iter)

    with pytest.raises(UserError) as caught:
        learn.fit_stage1(
            3, 0.05, loss=Spoil(n + 2), cbs=[Checkpoint(tmp_path, min_seconds=0), Count()]
        )
    assert len(steps) == n + 2
    learn.dls.train.sampler.set_epoch(1)
    images = list(learn.dls.train.sampler)[16:19]
    message = str(caught.value)
    assert "in epoch 2 of stage 1: the loss of step 3 with training images number" in message
    assert f"{', '.join(map(str, images))} ..." in message
    assert f"the last good checkpoint is {tmp_path}/epoch-00001.safetensors" in message
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


def test_files_are_named(tmp_path):
    from PIL import Image

    from ltlearn import LTDataLoaders

    for c, count in enumerate((12, 6)):
        (tmp_path / f"c{c}").mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8), (c * 99, i, 0)).save(tmp_path / f"c{c}" / f"{i}.png")
    dls = LTDataLoaders.from_folder(
        tmp_path, size=8, in_memory=False, num_workers=0, bs=4, device="cpu"
    )
    with pytest.raises(UserError, match=rf"with images {tmp_path}/c\d/\d+.png, {tmp_path}/"):
        make_lt_learner(dls).fit_stage1(1, 0.05, loss=Spoil(1))


def test_skip_leaves_the_step_out(caplog):
    learn = make_lt_learner()
    n = len(learn.dls.train)
    weights = []

    class Watch(Callback):
        order = -30

        def before_batch(self):
            if self.learn.training:
                state = self.learn.model.state_dict()
                weights.append({k: v.clone() for k, v in state.items()})

    learn.fit_stage1(2, 0.05, loss=Spoil(2, n + 1, n + 3), on_nan="skip", cbs=Watch())
    for bad in (2, n + 1):
        # Weights, counts and statistics alike.
        assert all(torch.equal(v, weights[bad + 1][k]) for k, v in weights[bad].items())
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    assert "epoch 1 of stage 1: 1 of 7 steps were skipped" in caplog.text
    assert "epoch 2 of stage 1: 2 of 7 steps were skipped" in caplog.text
    assert np.isfinite(learn.trajectory["loss"]).all()


def test_on_nan_is_checked():
    with pytest.raises(UserError, match="on_nan must be .*, got 'go'"):
        make_lt_learner().fit_stage1(1, on_nan="go")
    with pytest.raises(UserError, match="look_every must be"):
        FiniteLoss(look_every=0)


@pytest.mark.parametrize(("look_every", "steps"), [(4, 3), (50, 7)])
def test_a_device_is_looked_at_now_and_then(look_every, steps, monkeypatch):
    """With the flag that is kept on a device."""
    monkeypatch.setattr("ltlearn.training.finite._waits", lambda loss: True)
    learn = make_lt_learner()
    count = Count()
    with pytest.raises(UserError, match="the loss of step 2 "):
        learn.fit(1, 0.05, cbs=[FiniteLoss(look_every=look_every), Nan(), count])
    assert count.steps == steps


class Nan(Callback):
    order = 59

    def after_loss(self):
        if self.learn.training and self.learn.iter == 1:
            self.learn.loss_grad = self.learn.loss_grad * float("nan")


class Count(Callback):
    steps = 0

    def after_step(self):
        self.steps += 1


def test_memory_that_runs_out_is_one_sentence():
    learn = make_lt_learner()

    def loss(pred, target):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match="batch size of 8: try bs=4, .*stage1.batch_size=4"):
        learn.fit_stage1(1, 0.05, loss=loss)
    with pytest.raises(UserError, match="this machine .* smaller images"), oom_to_user_error(1):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.raises(UserError, match="has died .*num_workers"), oom_to_user_error(1):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="another"), oom_to_user_error(1):
        raise RuntimeError("another")
