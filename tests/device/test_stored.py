"""Where images and features lie decides the waits of a step, and no result."""

import gc
import logging
import pickle

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image

from ltlearn import GLMC, SAMN, BatchMixUp, LTDataLoaders
from ltlearn.data import device as device_module
from ltlearn.data.loader import LTDataLoader
from ltlearn.training.features import Features
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner
from tests.device.cases import count_steps
from tests.device.simcuda import Sim, SimCuda

CUDA = torch.device("cuda", 0)
CASES = {"CE": lambda: None, "GLMC": lambda: GLMC(resample=0.5), "MixUp": BatchMixUp}


def on_a_gpu(test):
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="needs a CUDA device")(test))


@pytest.fixture
def sim():
    with SimCuda() as state:
        yield state


@pytest.fixture(params=["stored", "copied"])
def place(request, monkeypatch):
    """Whether data are stored on the device, or each batch is copied to it."""
    monkeypatch.setenv("LTLEARN_DEVICE_MEGABYTES", "0" if request.param == "copied" else "1")
    return request.param


class KeepBatches(Callback):
    """Keep the images of each batch as the model gets them."""

    order = 50

    def __init__(self):
        self.seen = []

    def before_batch(self):
        self.seen += [x.detach().cpu().clone() for x in (*self.learn.xb, *self.learn.yb)]


def fit(device, cbs):
    learn, keep = make_lt_learner(make_dls(device=device, bs=16)), KeepBatches()
    learn.fit_stage1(2, 0.01, cbs=[keep, *([cbs] if cbs else [])])
    weights = [p.detach().cpu() for p in learn.model.parameters()]
    return keep.seen, weights, learn


@pytest.mark.parametrize("name", CASES)
def test_weights_do_not_depend_on_where_images_lie(place, name):
    seen_there, weights_there, _ = fit("cpu", CASES[name]())
    with SimCuda():
        seen, weights, learn = fit("cuda", CASES[name]())
        assert isinstance(learn.dls.train.stored().targets, Sim) == (place == "stored")
    assert len(seen) == len(seen_there)
    for one, other in zip(seen, seen_there, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(weights, weights_there, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing(sim, place, name):
    learn = make_lt_learner(make_dls(device="cuda"))
    learn.resident = "never"
    counts = count_steps(1, learn, {"cbs": CASES[name]()})
    assert counts.steps == 7 and counts.launches and not counts.waits
    copied = sum(n for where, n in counts.copies.items() if "asynchronous" in where)
    assert copied == (0 if place == "stored" else 3 if name == "GLMC" else 2)


def test_stage_2_waits_for_nothing(sim, place):
    learn = make_lt_learner(make_dls(device="cuda"))
    counts = count_steps(2, learn, {"cbs": SAMN(), "views": 2})
    assert counts.steps == 7 and counts.launches and not counts.waits


def test_views_of_features(sim, place):
    generator = np.random.default_rng(0)
    views = [generator.normal(size=(20, 4)).astype(np.float16) for _ in range(3)]
    views[1].setflags(write=False)  # as of a file
    batches = []
    for device in ("cuda", "cpu"):
        data = Features(views, torch.arange(20) % 3)
        dl = LTDataLoader(data, bs=8, training=True, seed=4, device=torch.device(device))
        assert (dl.stored() is data) == (device == "cpu" or place == "copied")
        dl.set_epoch(1)
        batches.append([[t.cpu() for t in batch] for batch in dl])
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert one[0].dtype == torch.float32


def test_too_many_bytes_stay_in_memory_with_one_line(sim, monkeypatch, caplog):
    monkeypatch.setenv("LTLEARN_DEVICE_MEGABYTES", "1")
    images, targets = make_images([1100, 90, 50], side=16)  # 1.3 MB
    dls = make_dls(device="cuda", side=16)
    big = LTDataLoaders.from_arrays(images, targets, device="cuda", valid_pct=0.1)
    with caplog.at_level(logging.INFO, "ltlearn"):
        for _ in range(2):
            assert big.train.stored() is big.train.dataset
        x, y = big.train.one_batch()
        assert x.is_cuda and y.is_cuda and dls.train.stored() is not dls.train.dataset
    (line,) = [r.getMessage() for r in caplog.records if "device_megabytes" in r.getMessage()]
    assert "the images take 2 MB" in line and "leaves 1 MB of cuda:0" in line


def test_memory_that_is_short_all_the_same(sim, monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_module, "DeviceCopy", fail)
    dls = make_dls(device="cuda")
    with caplog.at_level(logging.INFO, "ltlearn"):
        assert dls.train.stored() is dls.train.dataset
    assert "the images do not fit on cuda:0" in caplog.text


def test_sets_of_one_array_share_a_copy(sim, tmp_path):
    for i, image in enumerate(make_images([20, 12, 4])[0]):
        (tmp_path / str(i % 3)).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / str(i % 3) / f"{i}.png")
    dls = LTDataLoaders.from_folder(tmp_path, device="cuda", valid_pct=0.25)
    gc.collect()
    before = len(device_module._LIVE)
    for dl in (dls.train, dls.valid):
        wanted = dl.dataset.get_batch(range(len(dl.dataset)))[0]
        made = dl.stored().take(torch.arange(len(dl.dataset)).cuda(), ())[0]
        assert torch.equal(made.cpu(), wanted)
    assert len(device_module._LIVE) == before + 1
    del dls, dl
    gc.collect()
    assert len(device_module._LIVE) == before


def test_copies_are_not_pickled(sim):
    dls = make_dls(device="cuda")
    size = len(pickle.dumps(dls.train.dataset))
    assert dls.train.stored().targets.is_cuda
    content = pickle.dumps(dls.train.dataset)
    assert len(content) == size and len(pickle.loads(content)) == 56


def test_a_pass_that_resumes(sim, place):
    dl = make_dls(device="cuda").train
    dl.set_epoch(2)
    whole = [x.cpu() for x, _ in dl]
    dl.set_epoch(2)
    rest = dl.get_idxs()[24:]
    later = dl.new(get_idxs=lambda: rest)
    later.set_epoch(2)
    part = [x.cpu() for x, _ in later]
    assert len(part) == 4 and all(map(torch.equal, part, whole[3:]))


def image_files(folder, **options):
    """Loaders of images in files, on the CPU and on the device."""
    for i, image in enumerate(make_images([8, 6, 4])[0]):
        (folder / str(i % 3)).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / str(i % 3) / f"{i}.png")
    options = {"in_memory": False, "size": 8, "bs": 4, **options}
    return (LTDataLoaders.from_folder(folder, device=d, **options).train for d in ("cpu", "cuda"))


def assert_equal_batches(batches, wanted):
    for batch, own in zip(batches, wanted, strict=True):
        assert all(t.is_cuda for t in batch)
        assert all(torch.equal(t.cpu(), w) for t, w in zip(batch, own, strict=True))


def test_images_of_files_are_copied_without_a_wait(sim, tmp_path):
    here, there = image_files(tmp_path)
    sim.reset()
    batches = list(there)
    assert not sim.syncs and sim.async_h2d.total() == 2 * len(there)
    assert_equal_batches(batches, here)


@on_a_gpu
def test_images_of_worker_processes_on_a_gpu(tmp_path):
    here, there = image_files(tmp_path, num_workers=1)
    assert_equal_batches(there, here)


@on_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_images_on_a_gpu_are_those_of_a_cpu(place, name):
    seen, _, learn = fit("cuda", CASES[name]())
    assert learn.dls.train.stored().targets.is_cuda == (place == "stored")
    for one, other in zip(seen, fit("cpu", CASES[name]())[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class _Strict(Callback):
    """Let PyTorch raise where the host waits for the device, from the second epoch on."""

    order = 200  # after what an epoch does once

    def before_train(self):
        torch.cuda.set_sync_debug_mode("error" if self.learn.epoch else "default")


class _Lenient(Callback):
    order = -200

    def after_train(self):
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_steps_on_a_gpu_wait_for_nothing(place):
    """Training comes after an extraction, which runs in inference mode and copies the images."""
    learn = make_lt_learner(make_dls(device="cuda"))
    learn.retrain_classifier(1)
    try:
        learn.fit_stage1(2, 0.01, cbs=[_Strict(), _Lenient(), GLMC()])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_copy_beside_worker_processes(sim):
    dl = make_dls(device="cuda").train.new(num_workers=1)
    assert dl.stored() is dl.dataset


def test_moved_loaders_follow(sim):
    dls = make_dls()
    assert dls.train.stored() is dls.train.dataset
    dls.to(CUDA)
    x, y = dls.train.one_batch()
    assert x.is_cuda and y.is_cuda and dls.train.stored() is not dls.train.dataset
    dls.to(torch.device("cpu"))
    x, y = dls.train.one_batch()
    assert x.is_cpu and dls.train.stored() is dls.train.dataset
