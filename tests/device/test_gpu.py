"""Training, checkpoints, comparison and exports on a device: a CUDA device, and the pretended one.

The tests marked `gpu` need a CUDA device. All others run twice, on the pretended device and, where
there is one, on CUDA.
"""

import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from fastai.callback.core import Callback

from ltlearn import GLMC, SAMN, Checkpoint
from ltlearn.experiments.predictor import Predictor
from ltlearn.training.together import retrain_together
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.device.simcuda import SimCuda

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
only_cuda = [pytest.mark.gpu, CUDA]
STAGE1 = {"ce": lambda: [], "glmc": lambda: [GLMC(resample=0.5)], "samn": lambda: [SAMN()]}
each = pytest.mark.parametrize("name", STAGE1)
both = pytest.mark.parametrize("name", ["ce", "glmc"])


KINDS = ["pretended", pytest.param("cuda", marks=only_cuda)]


@contextmanager
def on_device(kind):
    """Use a device of a kind, with convolutions in full float32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with SimCuda() if kind == "pretended" else nullcontext():
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(params=KINDS)
def device(request):
    with on_device(request.param):
        yield request.param


class Stop(Callback):
    """End a fit where an epoch begins. It handles no event of a step, so that any loop trains."""

    order = -300

    def __init__(self, epoch):
        self.at = epoch

    def before_train(self):
        if self.learn.epoch == self.at:
            raise ArithmeticError("the user's")


def learner_on(device="cuda", **kwargs):
    return make_lt_learner(make_dls(device=device), **kwargs)


def on_cpu(learn):
    return {key: value.cpu() for key, value in learn.model.state_dict().items()}


def assert_near(here, there, tolerance):
    assert here.keys() == there.keys()
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=tolerance, atol=tolerance, msg=key)


def assert_equals_the_cpu(kind, train):
    here = learner_on("cpu")
    train(here)
    with on_device(kind):
        there = learner_on()
        train(there)
        assert all(p.is_cuda for p in there.model.parameters())
        assert_near(on_cpu(here), on_cpu(there), 1e-5 if kind == "pretended" else 1e-3)
    assert there.trajectory.loss[1:] == pytest.approx(here.trajectory.loss[1:], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@each
def test_stage_1_equals_that_of_the_cpu(kind, name):
    assert_equals_the_cpu(kind, lambda learn: learn.fit_stage1(2, 0.01, cbs=STAGE1[name]()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["crt", "samn", "mislas", "ldam_drw"])
def test_stage_2_equals_that_of_the_cpu(kind, method):
    assert_equals_the_cpu(kind, lambda learn: learn.retrain_classifier(2, bs=8, method=method))


def test_trainings_together_equal_those_alone(device):
    learn = learner_on()
    requests = {
        (name, seed): {"method": name, "seed": seed, "view_seed": 0, "epochs": 2, "bs": 8}
        for name in ("crt", "samn", "ldam_drw")
        for seed in (0, 1)
    }
    found = retrain_together(learn, requests)
    assert found.keys() == requests.keys()
    for name in [("crt", 1), ("samn", 0), ("ldam_drw", 1)]:
        learn.retrain_classifier(**requests[name])
        assert_near(on_cpu(learn), on_cpu(found[name]), 1e-5 if device == "pretended" else 1e-3)


@both
def test_a_resumed_training_goes_on_where_it_stopped(device, name, tmp_path):
    def train(*cbs):
        learn = learner_on()
        learn.fit_stage1(3, 0.01, cbs=[*STAGE1[name](), *cbs])
        return learn

    whole = train(Stop(None))
    with pytest.raises(ArithmeticError):
        train(Stop(2), Checkpoint(tmp_path / "run", min_seconds=0))
    resumed = train(Stop(None), Checkpoint(tmp_path / "run", resume=True, min_seconds=0))
    assert resumed.first_epoch == 2
    assert resumed.trajectory.loss[1:] == pytest.approx(whole.trajectory.loss[1:], abs=1e-3)
    assert_near(on_cpu(whole), on_cpu(resumed), 0 if device == "pretended" else 1e-3)


def test_a_comparison_and_predictions(device):
    learn = learner_on()
    learn.fit_stage1(1, 0.01)
    methods = "samn,tau_norm,ncm"
    compared = learn.compare_classifiers(methods, arguments={"samn": {"epochs": 1}})
    assert len(compared.rows) >= 3
    logits, targets = learn.predict_logits("test")
    assert logits.device.type == "cpu" and logits.isfinite().all() and len(targets) == len(logits)
    learn.dls.to("cpu")
    learn.model.cpu()
    again, _ = learn.predict_logits("test", cached=False)
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=only_cuda)])
@both
def test_half_precision_learns(device, precision, name):
    learn = learner_on(precision=precision)
    learn.fit_stage1(4, 0.05, cbs=STAGE1[name]())
    losses = learn.trajectory.loss[1:]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


@pytest.mark.gpu
@CUDA
def test_exports_of_a_model_on_a_gpu_predict_on_a_cpu(tmp_path):
    learn = learner_on()
    learn.fit_stage1(1, 0.01)
    wanted, _ = learn.predict_logits("test", cached=False)
    assert learn.export_timm(tmp_path / "timm").difference < 1e-4
    assert learn.export_torchscript(tmp_path / "model.pt").difference < 1e-4
    learn.save("saved", with_opt=True)
    other = learner_on("cpu", seed=1).load(tmp_path / learn.path / "models/saved")
    found, _ = other.predict_logits("test", cached=False)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    logits = [Predictor(tmp_path / "timm", device=d).logits(images).cpu() for d in ("cpu", "cuda")]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@CUDA
@each
def test_a_step_on_a_gpu_waits_for_nothing_but_its_batch(name):
    """CUDA itself reports its waits, by the line of the program."""
    import warnings

    class Watch(Callback):
        order = 200

        def before_train(self):
            if self.learn.epoch == 1:
                torch.cuda.set_sync_debug_mode("warn")

    class Rest(Callback):
        order = -200

        def after_train(self):
            torch.cuda.set_sync_debug_mode("default")

    learn = learner_on()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        learn.fit_stage1(2, 0.01, cbs=[*STAGE1[name](), Watch(), Rest()])
    where = [w.filename for w in seen if "synchroniz" in str(w.message).lower()]
    others = [file for file in where if not file.endswith("fastai/torch_core.py")]
    assert len(others) < 7, where  # once a step would be seven times
