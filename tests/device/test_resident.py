"""The resident loop on the pretended device: it trains what events train, and never waits."""

import logging
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from ltlearn.callbacks import GLMC, CosineHead, DeferredReweighting, LastBlock, WeightAverage
from ltlearn.losses import LDAMLoss
from ltlearn.training.resident_graph import StepGraphs
from tests.callbacks.helpers import Second, make_dls, make_lt_learner, model_of
from tests.device.cases import EVENTS, STAGE1, count_steps, make_learner
from tests.device.simcuda import SimCuda

COUNTS = [20, 8, 3]  # batches of 8, 8, 8 and 7
# Each has parts of a step that the others do not have.
QUICK = {"glmc", "cutmix", "sharpness-aware", "LDAM-DRW", "SAMN", "MixUp, averaged"}
CAPTURED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in STAGE1
    if name not in EVENTS
]


@pytest.fixture
def sim():
    with SimCuda() as state:
        yield state


def train(learn, epochs=2, **options):
    learn.fit_stage1(epochs, options.pop("lr", 0.05), **options)
    return {k: v.cpu() for k, v in learn.model.state_dict().items()}


def assert_close(one, two):
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=2e-6, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_steps_train_what_events_train(name):
    with SimCuda():
        learn = make_learner({"counts": COUNTS}, "auto", **model_of(name))
        captured = train(learn, **STAGE1[name]())
        assert learn.loop_ran == ("resident" if name == "on_nan=skip" else "captured")
        figures = dict(learn.trajectory)
    learn = make_lt_learner(make_dls(COUNTS), **model_of(name))
    assert_close(train(learn, **STAGE1[name]()), captured)
    assert figures["loss"] == pytest.approx(learn.trajectory["loss"], rel=1e-5)
    assert figures["balanced"] == learn.trajectory["balanced"]


@pytest.mark.parametrize("name", ["ce", "glmc", "mixup", "sharpness-aware", "weight average"])
@pytest.mark.parametrize("capture", [False, True], ids=["launched", "captured"])
def test_a_step_waits_for_nothing(sim, name, capture):
    learn = make_learner(resident="auto")
    learn.capture_steps = capture
    counts = count_steps(1, learn, STAGE1[name]())
    assert learn.loop_ran == ("captured" if capture else "resident")
    assert counts.steps == 7 and counts.waits == {}
    assert counts.launches == {"graph": 1} if capture else counts.launches.total() > 50


def captures(monkeypatch):
    """Count the captures from now on."""
    made = []
    own = StepGraphs._captured
    monkeypatch.setattr(
        StepGraphs, "_captured", lambda self, *args: (made.append(args[0]), own(self, *args))[1]
    )
    return made


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [8, 7]),
        # The weights of the loss begin in the second epoch.
        ({"loss": LDAMLoss, "cbs": lambda: [CosineHead(), DeferredReweighting(1)]}, [8, 7] * 2),
        ({"cbs": lambda: [LastBlock(), WeightAverage()]}, [8, 7]),
    ],
)
def test_a_step_is_captured_anew_only_if_something_fixed_changes(sim, options, sizes, monkeypatch):
    made = captures(monkeypatch)
    train(make_learner({"counts": COUNTS}, "auto"), 3, **{k: make() for k, make in options.items()})
    assert made == sizes


class Scaled(nn.CrossEntropyLoss):
    scale = 1.0

    def forward(self, logits, target):
        return self.scale * super().forward(logits, target)


def other_number(learn):
    learn.loss_func.scale = 0.25


def test_a_graph_does_not_outlive_the_numbers_it_reads(monkeypatch):
    trained = []
    for device in ("cuda", "cpu"):
        with SimCuda() if device == "cuda" else nullcontext():
            made = captures(monkeypatch)
            learn = make_lt_learner(make_dls(COUNTS, device=device))
            trained.append(train(learn, 3, loss=Scaled(), cbs=Second(other_number)))
        assert made == ([8, 7] * 2 if device == "cuda" else [])
    assert_close(*trained)


@pytest.mark.parametrize("plain", [True, False])
def test_the_mixes_of_glmc_share_a_pass_where_batch_normalisation_allows_it(sim, plain):
    learn = make_learner({"counts": COUNTS}, "auto")
    if not plain:
        learn.model.backbone.bn1.__class__ = type("Own", (nn.BatchNorm2d,), {})
    passes = []
    learn.model.backbone.conv1.forward = partial(_noted, passes, learn.model.backbone.conv1)
    train(learn, 1, cbs=GLMC())
    assert learn.loop_ran == "captured"
    assert set(passes) >= ({16, 14} if plain else {8, 7}) and (16 in passes) == plain
    assert learn.model.backbone.bn1.num_batches_tracked.item() == 8


def _noted(sizes, conv, x):
    if torch.is_grad_enabled():
        sizes.append(len(x))
    return nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


class ReadsItsInput(nn.Module):
    def forward(self, x):
        return x * 1.0 if x.sum().item() < 1e9 else x


def with_hook(backbone):
    backbone.register_forward_hook(lambda *args: None)
    return backbone


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda backbone: nn.Sequential(backbone, ReadsItsInput()), "_local_scalar_dense"),
        (lambda backbone: nn.Sequential(backbone, nn.Dropout(0.3)), "draws random numbers"),
        (with_hook, "hooks"),
    ],
)
def test_a_step_that_cannot_be_captured_is_launched(change, reason, caplog):
    trained = []
    for device in ("cuda", "cpu"):
        with SimCuda() if device == "cuda" else nullcontext():
            learn = make_lt_learner(make_dls(COUNTS, device=device))
            learn.model.backbone = change(learn.model.backbone)
            torch.manual_seed(2)
            with caplog.at_level(logging.INFO, "ltlearn"):
                trained.append(train(learn, cbs=GLMC() if reason == "hooks" else None))
        assert learn.loop_ran == {"cuda": "resident", "cpu": "events"}[device]
    assert_close(*trained)
    reported = [r.getMessage() for r in caplog.records if "cannot be captured" in r.getMessage()]
    assert len(reported) == 1 and reason in reported[0]


def test_images_that_do_not_fit_the_device_need_events(sim, monkeypatch, caplog):
    monkeypatch.setenv("LTLEARN_DEVICE_MEGABYTES", "0")
    learn = make_learner({"counts": COUNTS}, "auto")
    with caplog.at_level(logging.INFO, "ltlearn"):
        train(learn, 1)
    assert learn.loop_ran == "events"
    assert any("not on cuda" in r.getMessage() for r in caplog.records)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", sorted({"ce", "mixup", "weight average", *QUICK}))
def test_captured_steps_train_what_events_train_on_cuda(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    trained = []
    for resident, capture in (("never", False), ("always", False), ("always", True)):
        learn = make_learner({"counts": COUNTS}, resident)
        learn.capture_steps = capture
        trained.append(train(learn, **STAGE1[name]()))
        assert learn.loop_ran == (
            "captured" if capture else "resident" if trained[1:] else "events"
        )
    for other in trained[1:]:
        for key, value in trained[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)
