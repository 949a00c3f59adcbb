import copy
import math
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropy
from PIL import Image
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional as F

from ltlearn import (
    GLMC,
    SAMN,
    BatchCutMix,
    BatchMixUp,
    DeferredReweighting,
    LTDataLoaders,
    SAMNLinear,
    UserError,
)
from ltlearn.callbacks.glmc import _InversePowerSampler, _PairLoader
from ltlearn.losses import BalancedSoftmaxLoss, CrossEntropy
from ltlearn.losses.glmc import cut_box, inverse_power
from tests.callbacks.helpers import (
    COUNTS,
    OPTIMIZERS,
    make_dls,
    make_images,
    make_learner,
    make_lt_learner,
)

LAYERS = ("balanced_", "projection_", "predictor_")


def weights_of(learn, cb):
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    for name in LAYERS:
        state |= {f"{name}.{k}": v.clone() for k, v in getattr(cb, name).state_dict().items()}
    return state


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(autouse=True)
def _own_generators():
    """Give Python's generator, which fastai's loaders draw from, back to the tests that follow."""
    state = random.getstate()
    yield
    random.setstate(state)


# ------------------------------------------------ a step against a plain transcription


def plain_soft_cross_entropy(logits, targets):
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_probs = row - row.exp().sum().log()
        total = total - (target * log_probs).sum()
    return total / len(logits)


def plain_loss(model, layers, x, y, other_y, draw, counts, settings, epoch, epochs):
    """The loss of a batch, as the method's description says it, loop by loop."""
    share, (row, col) = draw
    _, reweight, contrast = settings
    x1, x2, o1, o2 = x.clone().chunk(4)
    classes = len(counts)
    raw = [n**-reweight for n in counts]
    omega = [classes * r / sum(raw) for r in raw]
    height, width = x.shape[-2:]
    x_g, x_l = torch.empty_like(x1), x2.clone()
    for i in range(len(y)):
        x_g[i] = share * x1[i] + (1 - share) * o1[i]
        half_h = math.ceil(height * math.sqrt(1 - share)) // 2
        half_w = math.ceil(width * math.sqrt(1 - share)) // 2
        for h in range(height):
            for w in range(width):
                if row - half_h <= h < row + half_h and col - half_w <= w < col + half_w:
                    x_l[i, :, h, w] = o2[i, :, h, w]
    soft, heavy = torch.zeros(len(y), classes), torch.zeros(len(y), classes)
    for i, (a, b) in enumerate(zip(y.tolist(), other_y.tolist(), strict=True)):
        soft[i, a] += share
        soft[i, b] += 1 - share
        heavy[i, a] += share * omega[a]
        heavy[i, b] += (1 - share) * omega[b]
    f_g, f_l = model.backbone(x_g), model.backbone(x_l)
    balanced, projection, predictor = layers
    l_bal = sum(plain_soft_cross_entropy(balanced(f), soft) for f in (f_g, f_l))
    l_reb = sum(plain_soft_cross_entropy(model.head(f), heavy) for f in (f_g, f_l))
    h_g, h_l = projection(f_g), projection(f_l)
    u_g, u_l = predictor(h_g), predictor(h_l)
    l_con = 0.0
    for u, h in ((u_g, h_l.detach()), (u_l, h_g.detach())):
        cosines = (u * h).sum(1) / (u.norm(dim=1) * h.norm(dim=1))
        l_con = l_con - cosines.mean()
    alpha = 1 - (epoch / epochs) ** 2
    return alpha * l_bal + (1 - alpha) * l_reb + contrast * l_con, (l_bal, l_reb, l_con)


class Step(Callback):
    """Keep what a step begins with and what it comes to."""

    def __init__(self, cb, epoch, batch):
        self.cb, self.at = cb, (epoch, batch)

    order = -5  # before GLMC

    def _here(self):
        return self.learn.training and (self.learn.epoch, self.learn.iter) == self.at

    def _sums(self, images):
        """The sums of the terms over the images of the epoch so far."""
        return images * torch.tensor([*self.cb.terms_.values()] or [0.0] * 3)

    def before_batch(self):
        if self._here():
            (x,), (y, other_y) = self.learn.xb, self.learn.yb
            self.batch = x.clone(), y.clone(), other_y.clone()
            self.copied = copy.deepcopy(self.learn.model)
            self.layers = copy.deepcopy([getattr(self.cb, name) for name in LAYERS])
            self.before = self._sums(self.learn.iter * len(y))

    def before_step(self):
        if self._here():
            self.value = self.learn.loss.detach().clone()
            n = len(self.batch[1])
            self.terms = (self._sums((self.learn.iter + 1) * n) - self.before) / n
            parts = [self.learn.model, *(getattr(self.cb, name) for name in LAYERS)]
            self.grads = [p.grad.clone() for part in parts for p in part.parameters()]


# k, rho, gamma
SETTINGS = [(0.0, 1.2, 1.0), (0.2, 1.0, 6.0)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 6), (2, 3)])
def test_a_step_equals_the_papers_equations(settings, epoch, batch, monkeypatch):
    dls = make_dls([33, 12, 4], bs=8)  # the last batch, of one image, is dropped
    assert len(dls.train) == 6
    batch = min(batch, 5)
    learn, cb = make_lt_learner(dls), GLMC(*settings)
    step, draws = Step(cb, epoch, batch), []

    def record(height, width, share, centre):
        draws.append((share, centre))
        return cut_box(height, width, share, centre)

    monkeypatch.setattr("ltlearn.callbacks.glmc.cut_box", record)
    learn.fit_stage1(3, 0.05, cbs=[cb, step])
    share, centre = draws[6 * epoch + batch]

    x, y, other_y = step.batch
    assert len(x) == 32 and 0 < share < 1
    step.copied.train()
    loss, terms = plain_loss(
        step.copied, step.layers, x, y, other_y, (share, centre), [33, 12, 4], settings, epoch, 3
    )
    assert step.value.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    for ours, plain in zip(step.terms.tolist(), terms, strict=True):
        assert ours == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)
    loss.backward()
    parameters = [p for part in [step.copied, *step.layers] for p in part.parameters()]
    for ours, plain in zip(step.grads, parameters, strict=True):
        torch.testing.assert_close(ours, plain.grad, rtol=1e-3, atol=1e-5)
    head = [p.grad for p in step.copied.head.parameters()]
    assert all((g == 0).all() == (epoch == 0) for g in head)
    # BN has seen the mixes one after the other, not as one batch.
    assert step.copied.backbone.bn1.num_batches_tracked - 2 == 2 * (6 * epoch + batch)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (7, 12)])
def test_the_box(height, width):
    rng = np.random.default_rng(0)
    for share in [0.0, 1.0, 0.9999, *rng.random(50)]:
        centre = rng.integers(height), rng.integers(width)
        rows, cols = cut_box(height, width, share, centre)
        for part, size, c in ((rows, height, centre[0]), (cols, width, centre[1])):
            side = math.ceil(size * math.sqrt(1 - share))
            inside = [i for i in range(size) if c - side // 2 <= i < c + side // 2]
            assert list(range(size))[part] == inside


def test_the_draws_are_uniform(monkeypatch):
    import ltlearn.callbacks.glmc as module

    monkeypatch.setattr(module, "cut_box", lambda height, width, share, centre: centre)
    draws = [module.draw_mix(0, epoch, i, 5, 9) for epoch in range(20) for i in range(100)]
    shares = np.array([share for share, _ in draws])
    assert len(set(shares)) == 2000 and shares.min() >= 0 and shares.max() < 1
    assert chisquare(np.histogram(shares, 10, (0, 1))[0]).pvalue > 1e-3
    centres = np.array([centre for _, centre in draws])
    for side, size in enumerate((5, 9)):
        assert chisquare(np.bincount(centres[:, side], minlength=size)).pvalue > 1e-3


# ------------------------------------------------ class weights and samplers


def test_the_class_weights():
    counts = torch.tensor([500, 100, 7, 1])
    for power in (0.0, 0.5, 1.0, 1.2, 400.0):
        shares = inverse_power(counts, power)
        assert shares.sum() == pytest.approx(1) and shares.isfinite().all()
        if power < 100:
            raw = np.array([n**-power for n in counts.tolist()])
            assert shares.numpy() == pytest.approx(raw / raw.sum())
    empty = inverse_power(torch.tensor([4, 0, 2]), 1.0)
    assert empty.tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert inverse_power(torch.tensor([4, 0, 2]), 0.0).tolist() == [0.5, 0, 0.5]
    learn, cb = make_lt_learner(), GLMC(reweight=1.2)
    learn.fit_stage1(1, 0.01, cbs=cb)
    raw = np.array([n**-1.2 for n in COUNTS])
    assert cb.weights_.tolist() == pytest.approx(3 * raw / raw.sum(), rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.2, 1.0, 2.0])
def test_the_sampler_of_the_second_batch(power):
    counts = np.array([300, 0, 90, 10])
    targets = np.repeat(np.arange(4), counts)
    sampler = _InversePowerSampler(targets, 0, power)
    raw = np.array([counts[t] ** -power for t in targets])
    assert sampler.probabilities == pytest.approx(raw / raw.sum())
    of_class = [c * float(c) ** -power if c else 0.0 for c in counts]
    expected = np.array(of_class) / sum(of_class)
    assert sampler.class_probabilities() == pytest.approx(expected)
    drawn = np.concatenate([list(sampler) for _ in range(50)])
    assert len(drawn) == 50 * len(targets)
    seen = np.bincount(targets[drawn], minlength=4)
    assert seen[1] == 0
    kept = [0, 2, 3]
    assert chisquare(seen[kept], expected[kept] * len(drawn)).pvalue > 1e-3
    # With replacement, and within a class each image alike.
    assert len(set(drawn[: len(targets)])) < len(targets)
    tail = np.bincount(drawn[targets[drawn] == 3] - 390, minlength=10)
    assert chisquare(tail).pvalue > 1e-3
    # Its own draw in each epoch, the same for the same epoch.
    sampler.set_epoch(3)
    again = _InversePowerSampler(targets, 0, power)
    again.set_epoch(3)
    assert list(sampler) == list(again) != list(sampler)


# ------------------------------------------------ the loader of both batches


def numbered_dls(n=21, bs=8, transform="crop_flip", **kwargs):
    """Images that say which they are: all pixels of image i are 10 * (i + 1)."""
    values = 10 * np.arange(1, n + 1, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (n, 8, 8, 3)).copy()
    targets = np.arange(n) % 3
    valid = images[:6], targets[:6]
    stats = ([0.0] * 3, [1 / 255] * 3)
    return LTDataLoaders.from_arrays(
        images, targets, valid=valid, bs=bs, device="cpu", stats=stats, transform=transform,
        **kwargs,
    )  # fmt: skip


def pairs_of(dls, power=0.0, seed=5):
    pairs = dls.train.new(cls=_PairLoader, sampler=dls.train.sampler)
    return pairs.use(_InversePowerSampler(dls.train.dataset.targets, seed, power))


def pixel_names(x):
    return (x.flatten(1).amax(1) / 10).round().long() - 1


def test_the_pairs_of_an_epoch():
    dls = numbered_dls()
    pairs = pairs_of(dls)
    targets = torch.as_tensor(dls.train.dataset.targets)
    pairs.set_epoch(2)
    first, second, sizes = [], [], []
    for x, y, other_y in pairs:
        n = len(y)
        sizes.append(n)
        assert x.shape == (4 * n, 3, 8, 8) and x.is_contiguous(memory_format=torch.channels_last)
        views = [pixel_names(part) for part in x.chunk(4)]
        assert torch.equal(views[0], views[1]) and torch.equal(views[2], views[3])
        assert torch.equal(targets[views[0]], y) and torch.equal(targets[views[2]], other_y)
        # Each view is drawn for itself: the border of the crop lies elsewhere.
        assert not torch.equal(x[:n], x[n : 2 * n]) and not torch.equal(
            x[2 * n : 3 * n], x[3 * n :]
        )
        first += views[0].tolist()
        second += views[2].tolist()
    assert sizes == [8, 8, 5] and len(pairs) == 3
    dls.train.sampler.set_epoch(2)
    assert first == list(dls.train.sampler) and sorted(first) == list(range(21))
    pairs.other.set_epoch(2)
    assert second == list(pairs.other)


def test_a_second_sampler_that_is_shorter_begins_again():
    dls = numbered_dls()
    pairs = pairs_of(dls)
    pairs.other = _InversePowerSampler(np.arange(5) % 3, 0, 0.0)
    numbers = pairs.get_idxs()
    other = [b for _, _, b in numbers]
    assert len(numbers) == 21 and other[:5] == other[5:10] == other[15:20] and other[20] == other[0]


def test_a_last_batch_of_one_image_is_dropped():
    dls = numbered_dls(17)
    assert [len(y) for _, y, _ in pairs_of(dls)] == [8, 8]
    assert len(pairs_of(dls)) == 2


def test_no_augmentation_gives_equal_views():
    for x, _, _ in pairs_of(numbered_dls(transform="none")):
        x1, x2, o1, o2 = x.chunk(4)
        assert torch.equal(x1, x2) and torch.equal(o1, o2)


@pytest.fixture
def folder(tmp_path):
    images, targets = make_images([14, 6, 4], 16)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        path = tmp_path / "photos" / f"class{target}"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{i}.png")
    return tmp_path / "photos"


def from_folder(path, **kwargs):
    kwargs = {"size": 16, "in_memory": False, "bs": 6, "valid_pct": 0.2, **kwargs}
    return LTDataLoaders.from_folder(path, device="cpu", transform="crop_flip", **kwargs)


def test_images_on_disk_are_read_once_for_both_views(folder, monkeypatch):
    from ltlearn.data import items

    dls = from_folder(folder)
    pairs = pairs_of(dls)
    reads = []
    read = items.read_image
    monkeypatch.setattr(items, "read_image", lambda *a: reads.append(a[0]) or read(*a))
    pairs.set_epoch(1)
    found = list(pairs)
    assert len(reads) == 2 * 18, "one of 19 is dropped"
    for x, y, other_y in found:
        n = len(y)
        assert x.shape == (4 * n, 3, 16, 16) and len(other_y) == n
        assert not torch.equal(x[:n], x[n : 2 * n]) and not torch.equal(
            x[2 * n : 3 * n], x[3 * n :]
        )
    # Targets belong to the images, in each view.
    pairs.augment = False
    pairs.set_epoch(1)
    numbers = pairs.get_idxs()
    pairs.set_epoch(1)
    place = 0
    for x, y, other_y in pairs:
        for k, part in enumerate(x.chunk(4)):
            for j, image in enumerate(part):
                plain, target = dls.train.dataset[numbers[place + j][1 + k // 2]]
                plain = dls.normalize.encodes((plain[None],))[0][0]
                torch.testing.assert_close(image, plain)
                assert (y, other_y)[k // 2][j] == target
        place += len(y)


def test_workers_change_nothing(folder):
    results = []
    for workers in (0, 2):
        learn, cb = make_lt_learner(from_folder(folder, num_workers=workers)), GLMC(0.5)
        learn.fit_stage1(2, 0.05, cbs=cb)
        results.append(weights_of(learn, cb))
    assert same(*results)


# ------------------------------------------------ a fit


def test_the_same_seed_gives_the_same_weights():
    results, states = [], []
    for seed, chaos in ((0, 1), (0, 2), (3, 1)):
        learn, cb = make_lt_learner(make_dls(seed=seed)), GLMC(0.2)
        np.random.seed(chaos)
        random.seed(chaos)
        torch.manual_seed(chaos)
        learn.fit_stage1(2, 0.05, wd=5e-3, cbs=cb)
        results.append(weights_of(learn, cb))
        states.append(torch.get_rng_state())
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_the_global_generators_are_used_as_without_it():
    def after(cbs):
        learn = make_lt_learner()
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        learn.fit_stage1(2, 0.05, cbs=cbs)
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    assert after([]) == after([GLMC()])


def test_an_epoch_can_be_made_again():
    """Draws depend on epoch and position, not on what was drawn before."""
    kept = {}

    class Keep(Callback):
        def __init__(self, name):
            self.to, self.skip = kept.setdefault(name, []), name == "resumed"

        def before_batch(self):
            if self.learn.training and self.learn.epoch == 1:
                self.to.append(self.learn.xb[0].clone())

    for name, start in (("whole", 0), ("resumed", 1)):
        learn = make_lt_learner()
        learn.fit(2, 0.01, cbs=[GLMC(), Keep(name)], start_epoch=start)
    assert len(kept["whole"]) == 7
    assert all(map(torch.equal, kept["whole"], kept["resumed"]))


def test_the_record_holds_the_loss_and_the_terms_its_parts():
    learn, cb = make_lt_learner(), GLMC(contrast=4.0)
    seen = []

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                seen.append((self.learn.epoch, self.learn.loss.item(), len(self.learn.yb[0])))

    assert cb.terms_ == {}
    trajectory = learn.fit_stage1(2, 0.05, cbs=[cb, Look()])
    for epoch in range(2):
        losses = [(loss, n) for e, loss, n in seen if e == epoch]
        mean = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
        assert trajectory["loss"][epoch] == pytest.approx(mean, rel=1e-5)
    terms = cb.terms_
    alpha = 1 - (1 / 2) ** 2
    total = alpha * terms["balanced"] + (1 - alpha) * terms["rebalanced"]
    total += 4 * terms["consistency"]
    assert total.item() == pytest.approx(trajectory["loss"][1], rel=1e-5)
    assert -2 <= terms["consistency"] <= 2


def test_validation_uses_the_rebalanced_head():
    learn, cb = make_lt_learner(), GLMC()
    trajectory = learn.fit_stage1(3, 0.05, cbs=cb)
    logits, targets = learn.predict_logits("valid", cached=False)
    assert trajectory["all"][-1] == pytest.approx((logits.argmax(1) == targets).float().mean())
    assert type(learn.model.head) is nn.Linear
    x = next(iter(learn.dls.valid))[0]
    learn.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(learn.model.head(learn.model.backbone(x)), learn.model(x))
        assert not torch.equal(cb.balanced_(learn.model.backbone(x)), learn.model(x))


def test_it_learns():
    learn = make_lt_learner(make_dls([40, 20, 8]))
    trajectory = learn.fit_stage1(8, 0.05, wd=5e-4, cbs=GLMC(0.2, 1.0, 1.0))
    assert trajectory["loss"][-1] < trajectory["loss"][0] and trajectory["balanced"][-1] > 0.6


def test_samn_follows(tmp_path):
    learn = make_lt_learner()
    learn.path = tmp_path
    learn.fit_stage1(2, 0.05, wd=5e-3, cbs=GLMC())
    backbone = copy.deepcopy(learn.model.backbone.state_dict())
    learn.save("stage1", with_opt=False)
    learn.retrain_classifier(2, cbs=SAMN(), lr=5e-5)
    assert type(learn.model.head) is SAMNLinear
    assert same(backbone, learn.model.backbone.state_dict())
    other = make_lt_learner(seed=4)
    other.path = tmp_path
    other.load("stage1", with_opt=False)
    assert type(other.model.head) is nn.Linear
    assert same(backbone, other.model.backbone.state_dict())
    assert [k for k in other.model.state_dict() if not k.startswith("backbone")] == [
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert [s["callbacks"][-1] for s in learn.stages] == ["GLMC", "SAMN"]


def test_an_optimiser_saved_after_a_fit_loads_into_a_plain_learner(tmp_path):
    learn = make_lt_learner()
    learn.path = tmp_path
    learn.fit(1, 0.05, cbs=GLMC())
    learn.save("all")
    other = make_lt_learner()
    other.path = tmp_path
    other.create_opt()
    other.load("all")
    other.fit(1, 0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_layers_are_trained_in_the_group_of_the_head(name):
    learn = make_lt_learner()
    learn.opt_func, learn.wd_bn_bias = OPTIMIZERS[name], False
    cb = GLMC()
    found = {}

    class Look(Callback):
        order = 60

        def before_train(self):
            opt = self.learn.opt
            ours = [p for layer in LAYERS for p in getattr(cb, layer).parameters()]
            head = {id(p) for p in [*self.learn.model.head.parameters(), *ours]}
            assert {id(p) for p in opt.param_lists[-1]} == head
            assert len(opt.param_lists) == 2 and len(opt.param_lists[-1]) == len(head) == 8
            notes = [opt.state[p].get("do_wd", True) for p in ours]
            assert notes == [True, False] * 3, "biases follow those of the head"
            found["before"] = [p.detach().clone() for p in ours]
            found["ours"] = ours

    learn.fit(1, [0.0, 0.05], wd=0.1, cbs=[cb, Look()])
    pairs = zip(found["before"], found["ours"], strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)
    # The same optimiser again, with the momentum that it has now; then without GLMC.
    learn.fit(1, 0.05, cbs=[cb, Look()])
    assert sum(len(group) for group in learn.opt.param_lists) == len(list(learn.model.parameters()))
    assert not {id(p) for p in learn.opt.state} & {id(p) for p in found["ours"]}
    learn.fit(1, 0.05)
    assert all(p.grad is None for p in found["ours"])


def test_the_projection():
    for wide, projection, expected in ((4, None, 128), (256, None, 256), (4, 7, 7)):
        learn = make_lt_learner(make_dls([4, 2, 2], bs=4), width=wide)
        cb = GLMC(projection=projection)
        cb.balanced_, cb.projection_, cb.predictor_ = cb._make_layers(learn.model.head, 0)
        width = 4 * wide
        assert cb.balanced_.weight.shape == (3, width) and cb.balanced_.bias is not None
        assert cb.projection_.weight.shape == (expected, width)
        assert cb.predictor_.weight.shape == (expected, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_runs_the_network_in_bf16_and_the_losses_in_fp32(channels_last, monkeypatch):
    import ltlearn.callbacks.glmc as module

    learn, cb = make_lt_learner(precision="bf16", channels_last=channels_last), GLMC()
    seen, given = set(), []
    learn.model.backbone.layer2[0].conv1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    terms = module.glmc_terms

    def spy(*args):
        found = terms(*args)
        given.append({t.dtype for t in found})
        return found

    monkeypatch.setattr(module, "glmc_terms", spy)
    trajectory = learn.fit_stage1(2, 1e-9, cbs=cb)
    assert seen == {torch.bfloat16} and all(kinds == {torch.float32} for kinds in given) and given
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert np.isfinite(trajectory["loss"]).all()
    plain = make_lt_learner(precision="fp32", channels_last=channels_last)
    again = plain.fit_stage1(2, 1e-9, cbs=GLMC())
    assert trajectory["loss"] == pytest.approx(again["loss"], rel=0.01)


def test_a_frozen_backbone_stays():
    learn, cb = make_lt_learner(), GLMC()
    learn.fit(1, 0.05, wd=0.1)
    learn.freeze()
    before = {k: v.clone() for k, v in learn.model.named_parameters()}
    learn.fit(2, 0.05, wd=0.1, cbs=cb)
    for k, v in learn.model.named_parameters():
        assert torch.equal(v, before[k]) == k.startswith("backbone"), k
    assert all(getattr(cb, name).weight.requires_grad for name in LAYERS)
    learn.model.requires_grad_(True)
    learn.model.head.requires_grad_(False)
    head = learn.model.head.weight.clone()
    learn.opt = None
    learn.fit(1, 0.05, wd=0.1, cbs=GLMC())
    assert torch.equal(learn.model.head.weight, head)


def test_gradient_accumulation():
    steps = []

    class Steps(Callback):
        order = 60

        def after_step(self):
            steps.append(self.learn.iter)

    one, two = make_lt_learner(), make_lt_learner()
    plain = one.fit_stage1(1, 1e-9, cbs=GLMC())
    accumulated = two.fit_stage1(1, 1e-9, cbs=[GLMC(), GradientAccumulation(16), Steps()])
    assert steps == [1, 3, 5]
    assert accumulated["loss"] == pytest.approx(plain["loss"], rel=1e-4)


@pytest.mark.parametrize("counts", [[20, 8], [20, 8, 1], [12, 0, 4]])
def test_few_classes_and_few_images(counts):
    dls = make_dls(counts) if 0 not in counts else _with_empty_class(counts)
    learn, cb = make_lt_learner(dls), GLMC(0.5, 1.2, 2.0)
    trajectory = learn.fit_stage1(2, 0.05, cbs=cb)
    assert np.isfinite(trajectory["loss"]).all()
    assert all(v.isfinite().all() for v in weights_of(learn, cb).values())
    assert cb.weights_.isfinite().all() and ((cb.weights_ == 0) == (dls.class_counts == 0)).all()
    assert cb.weights_[dls.class_counts > 0].mean() == pytest.approx(1, rel=1e-6)


def _with_empty_class(counts):
    images, targets = make_images([max(n, 1) for n in counts])
    keep = np.array([counts[t] > 0 for t in targets])
    valid = make_images([3] * len(counts), seed=1)
    return LTDataLoaders.from_arrays(
        images[keep], targets[keep], valid=valid, bs=8, device="cpu", classes=list("abc")
    )


def test_no_step_waits_for_a_device(monkeypatch):
    learn, cb = make_lt_learner(), GLMC()
    learn.fit_stage1(1, 0.05, cbs=cb)
    inside = []
    after_loss = cb.after_loss

    def guarded():
        inside.append(True)
        try:
            after_loss()
        finally:
            inside.pop()

    monkeypatch.setattr(cb, "after_loss", guarded)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        found = getattr(torch.Tensor, name)

        def refuse(self, *args, found=found, name=name, **kwargs):
            assert not inside, f"{name} in a step"
            return found(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, refuse)
    learn.fit_stage1(1, 0.05, cbs=cb)
    assert not inside


def test_it_stays_out_of_validation():
    learn = make_lt_learner(cbs=GLMC())
    learn.fit_stage1(1, 0.05)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.validate()
    logits, targets = learn.get_preds(act=lambda x: x)
    torch.testing.assert_close(logits, learn.predict_logits("valid", cached=False)[0])
    assert all(map(torch.equal, before, learn.model.parameters()))
    learn.fit_stage1(1, 0.05)


# ------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"resample": -0.1}, "resample must be .*, got -0.1"),
        ({"reweight": math.nan}, "reweight must be .*, got nan"),
        ({"contrast": "1"}, "contrast must be .*, got '1'"),
        ({"projection": 0}, "projection must be .*, got 0"),
    ],
)
def test_an_option_that_is_not_allowed(kwargs, message):
    with pytest.raises(UserError, match=message):
        GLMC(**kwargs)


def test_a_loss_of_the_users():
    for loss in (
        BalancedSoftmaxLoss(),
        LabelSmoothingCrossEntropy(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ):
        with pytest.raises(UserError, match=f"would ignore {type(loss).__name__}"):
            make_lt_learner().fit_stage1(1, 0.05, loss=loss, cbs=GLMC())
    for loss in (CrossEntropy(), F.cross_entropy, nn.CrossEntropyLoss(), CrossEntropyLossFlat()):
        make_lt_learner().fit_stage1(1, 0.05, loss=loss, cbs=GLMC())


@pytest.mark.parametrize("cb", [MixUp, CutMix, BatchMixUp, BatchCutMix, DeferredReweighting])
def test_callbacks_that_do_the_same(cb):
    with pytest.raises(UserError, match=f"GLMC.*{cb.__name__}|{cb.__name__}.*GLMC"):
        make_lt_learner().fit_stage1(1, 0.05, cbs=[cb(), GLMC()])


def test_learners_that_it_cannot_train():
    message = "fit_stage1 of an LTLearner"
    with pytest.raises(UserError, match=message):
        make_lt_learner().retrain_classifier(1, cbs=GLMC())
    learn = make_learner()
    with pytest.raises(UserError, match=message):
        learn.fit(1, cbs=GLMC())
    learn.fit(1)
