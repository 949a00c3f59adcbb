"""The draws of an epoch, made at once, are those of a pass over the loader."""

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch.utils.data import SubsetRandomSampler

from ltlearn import GLMC, BatchCutMix, BatchMixUp
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.samplers import SAMPLERS
from ltlearn.errors import UserError
from ltlearn.training.features import Features
from tests.callbacks.helpers import make_dls, make_lt_learner

EPOCHS = 3


def from_draws(dl, draws):
    """Yield the raw batches that draws describe: images and targets of each step, flat."""
    for step, n in enumerate(draws.sizes):
        index = draws.index[step, :, :n].flatten()
        yield dl.dataset.take(index, tuple(table[step, :, :n].flatten() for table in draws.views))


def assert_same(dl, epoch):
    draws = dl.draws(epoch, EPOCHS)
    dl.set_epoch(epoch, EPOCHS)
    wanted = list(dl.create_batches(dl.get_idxs()))
    made = list(from_draws(dl, draws))
    assert len(made) == len(wanted) == len(dl)
    for (x, y), (x_wanted, y_wanted, *_) in zip(made, wanted, strict=True):
        assert torch.equal(x, x_wanted) and torch.equal(y[: len(y_wanted)], y_wanted)
    return draws


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bs", [8, 11, 56, 100])  # 11 leaves a last batch of one image
def test_draws_are_those_of_a_pass(sampler, bs):
    dl = make_dls(bs=bs).train
    dl.set_sampler(sampler)
    for epoch in (2, 0):
        draws = assert_same(dl, epoch)
        assert sum(draws.sizes) == (55 if bs == 11 else 56)
        assert draws.index.shape == (len(dl), 1, min(bs, 56)) and len(draws.views) == 3
        assert draws.share is None and draws.box is None


@pytest.mark.parametrize("transform", ["crop", "none"])
def test_draws_of_other_transforms(transform):
    dl = make_dls(transform=transform).train
    draws = assert_same(dl, 1)
    assert len(draws.views) == (0 if transform == "none" else 3)


def test_draws_leave_the_loader_as_it_is():
    dl = make_dls().train
    dl.set_sampler("progressive")
    dl.set_epoch(1, 5)
    before = vars(dl.sampler) | {"loader": dl.epoch}
    state = torch.random.get_rng_state()
    dl.draws(3, 7)
    assert vars(dl.sampler) | {"loader": dl.epoch} == before and dl.sampler.epochs == 5
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_of_evaluation_are_in_order():
    dl = make_dls().valid
    draws = dl.draws(0)
    assert draws.index.flatten().tolist() == list(range(12)) and draws.views == ()


def test_draws_of_a_torch_sampler():
    dl = make_dls().train
    generator = torch.Generator().manual_seed(5)
    dl.set_sampler(SubsetRandomSampler(range(20), generator))
    draws = dl.draws(0)
    generator.manual_seed(5)
    wanted = list(dl.create_batches(dl.get_idxs()))
    for (x, y), (x_wanted, y_wanted) in zip(from_draws(dl, draws), wanted, strict=True):
        assert torch.equal(x, x_wanted) and torch.equal(y, y_wanted)


def test_draws_of_a_pass_that_resumes():
    dl = make_dls().train
    dl.set_epoch(2)
    rest = dl.get_idxs()[24:]
    later = dl.new(get_idxs=lambda: rest)
    whole, part = dl.draws(2), later.draws(2)
    assert part.sizes == whole.sizes[3:]
    assert torch.equal(part.index, whole.index[3:])
    for one, all_of in zip(part.views, whole.views, strict=True):
        assert torch.equal(one, all_of[3:])


def test_draws_of_features():
    generator = np.random.default_rng(0)
    views = [generator.normal(size=(20, 4)).astype(np.float32) for _ in range(3)]
    data = Features(views, torch.arange(20) % 3)
    dl = LTDataLoader(data, bs=8, training=True, seed=4)
    draws = dl.draws(1)
    dl.set_epoch(1)
    stacked = torch.from_numpy(np.stack(views))
    for step, (x, y) in enumerate(dl.feature_batches()):
        n = draws.sizes[step]
        index, view = draws.index[step, 0, :n], draws.views[0][step, 0, :n]
        assert torch.equal(stacked[view, index], x) and torch.equal(data.targets[index], y)


def test_images_that_are_read_one_by_one_have_no_draws():
    dl = make_dls(transform=lambda image: image).train
    with pytest.raises(UserError, match="ImageFiles"):
        dl.draws(0)


class _Mixes(Callback):
    """Keep the images of each step of training after the mix."""

    order = -3

    def __init__(self):
        self.steps = []

    def before_batch(self):
        if self.learn.training:
            mixed = self.learn.xb[0].detach().clone()
            self.steps.append((self.learn.epoch, self.learn.iter, mixed))


def test_draws_of_glmc():
    learn = make_lt_learner(make_dls(bs=16, seed=2))
    loaders, mixes, dl = [], _Mixes(), learn.dls.train

    class Keep(Callback):
        def before_train(self):
            loaders.append(self.learn.dl)

    learn.fit_stage1(2, cbs=[GLMC(resample=0.5), mixes, Keep()])
    pairs = loaders[0]
    seen = {(epoch, i): mixed for epoch, i, mixed in mixes.steps}
    for epoch in range(2):
        draws = assert_same(pairs, epoch)
        assert draws.index.shape == (4, 4, 16) and draws.sizes == (16, 16, 16, 8)
        assert torch.equal(draws.index[:, 0], draws.index[:, 1])
        assert torch.equal(draws.index[:, 2], draws.index[:, 3])
        assert torch.equal(draws.index[:, 0], dl.draws(epoch).index[:, 0])
        for step, (x, _) in enumerate(from_draws(pairs, draws)):
            (x,) = learn.dls.normalize.encodes((x,))
            first, _, other, _ = x.chunk(4)
            share = draws.share[step].item()
            mixed = other + (first - other) * share
            torch.testing.assert_close(seen[epoch, step], mixed, rtol=0, atol=1e-5)
        top, bottom, left, right = draws.box.T
        assert (0 <= top).all() and (top <= bottom).all() and (bottom <= 8).all()
        assert (0 <= left).all() and (left <= right).all() and (right <= 8).all()


@pytest.mark.parametrize("kind", [BatchMixUp, BatchCutMix])
def test_draws_of_a_mix(kind):
    learn = make_lt_learner(make_dls(seed=2))
    cb, mixes, dl = kind(1.0), _Mixes(), learn.dls.train
    learn.fit_stage1(2, cbs=[cb, mixes])
    assert len(mixes.steps) == 14
    for epoch in range(2):
        draws = dl.draws(epoch)
        for step, (x, _) in enumerate(from_draws(dl, draws)):
            (x,) = learn.dls.normalize.encodes((x,))
            drawn = cb.draw(dl.seed, epoch, step, len(x), (8, 8))
            mixed = x + (1 - drawn.share) * (x[drawn.partner] - x)
            if drawn.box is not None:
                rows, columns = drawn.box
                mixed = x.clone()
                mixed[..., rows, columns] = x[drawn.partner][..., rows, columns]
                area = (rows.stop - rows.start) * (columns.stop - columns.start)
                assert drawn.share == 1 - area / 64
            seen = next(mix for e, i, mix in mixes.steps if (e, i) == (epoch, step))
            torch.testing.assert_close(seen, mixed, rtol=0, atol=1e-5)
