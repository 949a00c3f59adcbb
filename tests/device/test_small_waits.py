"""What a fit on a device sets up: fused SGD, tuned convolutions, batches that keep it busy."""

import pytest
import torch
from fastai.callback.core import Callback

from ltlearn.data.datasets import NormalizeUint8
from ltlearn.training.loop import fused_update_of, sgd
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.device.simcuda import STATE, SimCuda


@pytest.fixture
def sim():
    with SimCuda() as state:
        yield state


def test_new_statistics_stay_on_the_device(sim):
    normalize = NormalizeUint8((0.5,) * 3, (0.2,) * 3)
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    normalize.mean, normalize.std = normalize.mean.cuda(), normalize.std.cuda()
    normalize.set((0.25,) * 3, (0.5,) * 3)
    assert normalize.mean.is_cuda and normalize.std.is_cuda
    x = x.cuda()
    sim.reset()
    (made,) = normalize.encodes((x,))
    assert not sim.syncs and made.cpu()[0, 0, 0, 0] == -0.5
    assert normalize.stats == ([0.25] * 3, [0.5] * 3)


def test_sgd_is_fused_on_a_device(sim):
    params = [torch.nn.Parameter(torch.ones(3).cuda()) for _ in range(2)]
    opt = sgd(momentum=0.9)([params])
    assert opt.opt.param_groups[0]["fused"] and fused_update_of(opt) is None
    opt.set_hypers(lr=0.5)
    for p in params[:1]:  # the second one is frozen until the next step
        p.grad = torch.ones(3).cuda()
    opt.step()
    for p in params:
        p.grad = torch.ones(3).cuda()
    sim.reset()
    opt.step()
    assert sim.launches["_fused_sgd_"] == 1 and not sim.syncs
    # 1 - 0.5 - 0.5 * (0.9 + 1) and 1 - 0.5
    assert [p.detach().cpu()[0].item() for p in params] == pytest.approx([-0.45, 0.5])


class _Benchmark(Callback):
    """Keep cuDNN's setting in each epoch, and the waits of the validation."""

    def __init__(self):
        self.seen, self.waits = [], []

    def before_train(self):
        self.seen.append(torch.backends.cudnn.benchmark)

    def before_validate(self):
        STATE.reset()

    def after_validate(self):
        self.waits.append({key: n for key, n in STATE.syncs.items() if "accumulate" in key[1]})


@pytest.mark.parametrize(("exact", "tuned"), [(False, True), (True, False)])
def test_convolutions_are_tuned_in_a_fit(sim, exact, tuned, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", exact)
    learn, cb = make_lt_learner(make_dls(device="cuda")), _Benchmark()
    learn.fit_stage1(1, cbs=cb)
    assert cb.seen == [tuned] and not torch.backends.cudnn.benchmark
    assert cb.waits == [{}], "the mean of the validation loss waits for each batch"
    wanted = torch.nn.functional.cross_entropy(*learn.predict_logits("valid")).item()
    assert learn.recorder.loss.value.item() == pytest.approx(wanted, rel=1e-5)


def test_convolutions_are_not_tuned_on_a_cpu():
    learn, cb = make_lt_learner(), _Benchmark()
    learn.fit_stage1(1, cbs=cb)
    assert cb.seen == [False]


@pytest.mark.parametrize(("side", "bs"), [(8, 1024), (32, 1024), (48, 455), (96, 256)])
def test_evaluation_batches_are_larger_on_a_device(sim, side, bs):
    dls = make_dls((3, 2, 2), side, device="cuda")
    assert dls.train.bs == 8 and dls.valid.bs == bs
    assert make_dls((3, 2, 2), side).valid.bs == 256
