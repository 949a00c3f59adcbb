import copy
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.core import TensorImage
from PIL import Image
from scipy.stats import beta, chisquare, kstest
from torch import nn
from torch.nn import functional as F

import ltlearn.losses
from ltlearn import (
    GLMC,
    SAMN,
    BatchCutMix,
    BatchMixUp,
    DeferredReweighting,
    FiniteLoss,
    LTDataLoaders,
    SAMNLinear,
    UserError,
)
from ltlearn.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CountedLoss,
    CrossEntropy,
    LDAMLoss,
)
from ltlearn.training.checkpoint import Checkpoint
from tests.callbacks.helpers import (
    COUNTS,
    Points,
    make_dls,
    make_images,
    make_learner,
    make_lt_learner,
)

OURS = (BatchMixUp, BatchCutMix)
THEIRS = (MixUp, CutMix)
EVENTS = ("before_batch", "after_pred")
LOSSES = [CrossEntropy] + [
    found
    for name in ltlearn.losses.__all__
    if isinstance(found := getattr(ltlearn.losses, name), type)
    and issubclass(found, CountedLoss)
    and found is not CountedLoss
]


@pytest.fixture(autouse=True)
def _own_generators():
    """Give Python's generator, which fastai's loaders draw from, back to the tests that follow."""
    state = random.getstate()
    yield
    random.setstate(state)


def state(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Keep(Callback):
    """Keep what a callback that mixes makes of each batch."""

    order = -3  # next after it

    def __init__(self, cb):
        self.cb, self.seen = cb, []

    def before_batch(self):
        if self.learn.training:
            (x,), (y,) = self.learn.xb, self.learn.yb
            at = self.learn.epoch, self.learn.iter
            share, partner = self.cb.share_, self.cb.partner_.clone()
            self.seen.append((at, share, partner, x.clone(), y.clone()))


# ------------------------------------------------ a step against a plain loop


class Step(Callback):
    """Keep what a step begins with and what it comes to."""

    order = -5  # before the callback that mixes

    def __init__(self, at):
        self.at = at

    def _here(self):
        return self.learn.training and (self.learn.epoch, self.learn.iter) == self.at

    def before_batch(self):
        if self._here():
            self.given = self.learn.xb[0]
            self.images = self.given.clone()
            self.copied = copy.deepcopy(self.learn.model)

    def before_step(self):
        if self._here():
            assert torch.equal(self.given, self.images), "the batch of the loader was written to"
            self.value = self.learn.loss.detach().clone()
            assert torch.equal(self.value, self.learn.loss_grad)
            self.grads = [p.grad.clone() for p in self.learn.model.parameters()]


def plain_mix(kind, x, share, partner, centre):
    """The mixed images and the share of the first, pixel by pixel."""
    mixed = x.clone()
    if kind is BatchMixUp:
        for i, j in enumerate(partner):
            mixed[i] = share * x[i] + (1 - share) * x[j]
        return mixed, share
    height, width = x.shape[-2:]
    halves = [math.ceil(size * math.sqrt(1 - share)) // 2 for size in (height, width)]
    taken = 0
    for h in range(height):
        for w in range(width):
            row = centre[0] - halves[0] <= h < centre[0] + halves[0]
            if row and centre[1] - halves[1] <= w < centre[1] + halves[1]:
                taken += 1
                for i, j in enumerate(partner):
                    mixed[i, :, h, w] = x[j, :, h, w]
    return mixed, 1 - taken / (height * width)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("at", [(0, 0), (1, 6)])
@pytest.mark.parametrize("kind", OURS)
def test_a_step_equals_the_papers_equations(kind, at, reduction, monkeypatch):
    counts, weights = [33, 12, 8], [0.2, 1.0, 1.8]
    learn, cb = make_lt_learner(make_dls(counts, seed=4)), kind(alpha=0.7)
    loss_func = LDAMLoss(counts, weights=weights, reduction=reduction)
    draws, step, keep = [], Step(at), Keep(cb)
    complete = kind._complete

    def spy(self, drawn, rng, height, width):
        # The same numbers again, from a copy of the generator.
        twin = copy.deepcopy(rng)
        draws.append((drawn.share, twin.integers((height, width))))
        return complete(self, drawn, rng, height, width)

    monkeypatch.setattr(kind, "_complete", spy)
    learn.fit_stage1(2, 1e-3, loss=loss_func, cbs=[cb, step, keep])
    found = next(seen for seen in keep.seen if seen[0] == at)
    drawn, centre = draws[keep.seen.index(found)]
    _, share, partner, mixed, y = found
    assert sorted(partner.tolist()) == list(range(len(y))) and 0 < drawn < 1

    expected, left = plain_mix(kind, step.images, drawn, partner.tolist(), centre)
    assert share == pytest.approx(left, abs=1e-12)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    logits = step.copied.train()(expected)
    margins = [0.5 * (min(counts) / n) ** 0.25 for n in counts]
    total = divisor = 0.0
    for i, j in enumerate(partner.tolist()):
        for part, target in ((share, int(y[i])), (1 - share, int(y[j]))):
            row = [
                z - 30 * margins[c] if c == target else z
                for c, z in enumerate(logits[i].double().unbind())
            ]
            row = torch.stack(row)
            total = total + part * weights[target] * (row.logsumexp(0) - row[target])
        divisor += weights[int(y[i])]
    plain = total / divisor if reduction == "mean" else total
    assert step.value.item() == pytest.approx(plain.item(), rel=1e-4)
    plain.backward()
    for ours, p in zip(step.grads, step.copied.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-3, atol=1e-4 * p.grad.abs().max().item())


@pytest.mark.parametrize("kind", OURS)
def test_the_mean_of_balanced_softmax_by_hand(kind):
    """The loss is the learner's own, of each target for itself: no one-hot targets are mixed."""
    learn, cb = make_lt_learner(), kind()
    keep, seen = Keep(cb), []

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                seen.append((self.learn.pred.detach().clone(), self.learn.loss.item()))

    learn.fit_stage1(1, 0.01, loss=BalancedSoftmaxLoss(), cbs=[cb, keep, Look()])
    assert len(seen) == len(keep.seen) == 7
    for (_, share, partner, _, y), (pred, loss) in zip(keep.seen, seen, strict=True):
        shifted = pred + torch.tensor(COUNTS).float().log()
        first, other = (F.cross_entropy(shifted, t).item() for t in (y, y[partner]))
        assert loss == pytest.approx(share * first + (1 - share) * other, rel=1e-4)


@pytest.mark.parametrize("kind", OURS)
def test_a_share_of_one_is_training_without_it(kind, monkeypatch):
    monkeypatch.setattr(
        "ltlearn.callbacks.mixing.np.random.default_rng",
        lambda seed: SimpleNamespace(
            beta=lambda *_: 1.0,
            permutation=np.random.Generator(np.random.PCG64(seed)).permutation,
            integers=np.random.Generator(np.random.PCG64(seed)).integers,
        ),
    )
    mixed, plain = make_lt_learner(), make_lt_learner()
    record = mixed.fit_stage1(2, 0.05, cbs=kind())
    monkeypatch.undo()
    assert record["loss"] == plain.fit_stage1(2, 0.05)["loss"]
    assert same(state(mixed), state(plain))


def test_a_share_near_one_is_nearly_that():
    learn, cb = make_lt_learner(), BatchMixUp(1e-3)
    keep = Keep(cb)
    learn.fit_stage1(3, 1e-9, cbs=[cb, keep])
    shares = np.array([s for _, s, *_ in keep.seen])
    assert ((shares < 1e-6) | (shares > 1 - 1e-6)).mean() > 0.9


# ------------------------------------------------ the draws


def draws_of(cb, seed=0, epochs=20, n=6, side=8):
    cb.learn = SimpleNamespace(dls=SimpleNamespace(train=SimpleNamespace(seed=seed)))
    x = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, side, side)
    found = []
    for epoch in range(epochs):
        for i in range(100):
            cb.learn.epoch, cb.learn.iter, cb.learn.xb = epoch, i, (x,)
            cb.before_batch()
            found.append((cb.share_, cb.partner_, cb.learn.xb[0]))
    return found


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_follow_the_beta_distribution(alpha):
    found = draws_of(BatchMixUp(alpha))
    shares = np.array([share for share, *_ in found])
    assert len(set(shares)) == 2000
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3
    # Partners, too, are drawn alike, an image itself among them.
    first = np.array([partner[0].item() for _, partner, _ in found])
    assert chisquare(np.bincount(first, minlength=6)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-300, 5e-324, 1e300, 1.7e308])
def test_the_ends_of_the_range_of_alpha(alpha):
    shares = np.array([share for share, *_ in draws_of(BatchMixUp(alpha), epochs=2)])
    if alpha > 1:
        assert np.allclose(shares, 0.5)
    else:
        assert set(shares) == {0.0, 1.0} and 0.1 < shares.mean() < 0.9


def test_the_share_of_cutmix_is_the_remaining_area():
    found = draws_of(BatchCutMix(1.0), side=16)
    for share, partner, mixed in found:
        moved = (partner != torch.arange(6)).nonzero().flatten()
        for i in moved[:1].tolist():
            assert (mixed[i] == i).float().mean().item() == pytest.approx(share, abs=1e-6)
            assert set(mixed[i].unique().tolist()) <= {i, partner[i].item()}
    shares = np.array([share for share, *_ in found])
    # Boxes at the border are clipped: more is left than was drawn.
    assert 0.6 < shares.mean() < 0.75 and shares.min() >= 0 and shares.max() <= 1
    # Each pixel of each row is inside some box and outside another.
    inside = torch.stack([m[i] != i for _, p, m in found for i in [0] if p[0] != 0]).float()
    assert 0.1 < inside.mean(0).min() and inside.mean(0).max() < 0.7


def test_seed_epoch_and_position_decide_the_draws():
    def shares(**kwargs):
        return [share for share, *_ in draws_of(BatchMixUp(1.0), epochs=2, **kwargs)]

    assert shares() == shares() != shares(seed=1)
    assert len(set(shares()) | set(shares(seed=1))) == 400
    # A loader without a seed, or one whose dataset calls something else by that name, has 0.
    assert shares(seed=None) == shares(seed="abc") == shares()
    assert shares(seed=np.int64(3)) == shares(seed=3)


@pytest.mark.parametrize("kind", OURS)
def test_the_same_seed_gives_the_same_weights(kind):
    results = []
    for seed, chaos in ((0, 1), (0, 2), (3, 1)):
        learn = make_lt_learner(make_dls(seed=seed))
        np.random.seed(chaos)
        random.seed(chaos)
        torch.manual_seed(chaos)
        learn.fit_stage1(2, 0.05, cbs=kind())
        results.append(state(learn))
    assert same(results[0], results[1]) and not same(results[0], results[2])


@pytest.mark.parametrize("kind", OURS)
def test_the_global_generators_are_used_as_without_it(kind):
    def after(cbs):
        learn = make_lt_learner()
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        learn.fit_stage1(2, 0.05, cbs=cbs)
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    assert after([]) == after([kind()])


def test_workers_change_nothing(tmp_path):
    images, targets = make_images([14, 6, 4], 16)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        path = tmp_path / "photos" / f"class{target}"
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / f"{i}.png")
    results = []
    for workers in (0, 2):
        dls = LTDataLoaders.from_folder(
            tmp_path / "photos", device="cpu", transform="crop_flip", size=16, in_memory=False,
            bs=6, valid_pct=0.2, num_workers=workers,
        )  # fmt: skip
        learn = make_lt_learner(dls)
        learn.fit_stage1(2, 0.05, cbs=BatchCutMix())
        results.append(state(learn))
    assert same(*results)


def test_a_checkpoint_of_another_alpha_is_refused(tmp_path):
    def fit(alpha, resume):
        checkpoint = Checkpoint(tmp_path / "fit", resume=resume, min_seconds=0)
        make_lt_learner().fit_stage1(3, 0.05, cbs=[BatchMixUp(alpha), checkpoint])

    fit(0.2, False)
    with pytest.raises(UserError, match=r"alpha=0.2.*alpha=0.4"):
        fit(0.4, True)


# ------------------------------------------------ with all else


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [BatchMixUp, MixUp])
def test_every_loss(kind, loss):
    """With fastai's own, too, which replaces `loss_func` and sets `reduction`."""
    learn = make_lt_learner(make_dls([12, 6, 1], bs=6))
    loss_func, own = loss(), learn.loss_func
    before = dict(vars(loss_func)), dict(loss_func.named_buffers())
    weights = state(learn)
    record = learn.fit_stage1(2, 0.01, loss=loss_func, cbs=kind())
    assert np.isfinite(record["loss"]).all() and record["loss"][-1] > 0
    assert all(v.isfinite().all() for v in state(learn).values()) and not same(
        weights, state(learn)
    )
    assert learn.loss_func is own and loss_func.reduction == "mean"
    assert (dict(vars(loss_func)), dict(loss_func.named_buffers())) == before


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", THEIRS)
def test_fastais_own_mixes_the_losses_of_two_targets(kind, loss):
    """Without class weights it is the mean of the images' mixed losses."""
    learn, cb = make_lt_learner(), kind()
    loss_func = loss() if loss is CrossEntropy else loss(class_counts=COUNTS)
    seen = []

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                y, other = self.learn.yb[0], cb.yb1[0]
                assert y.dtype == torch.int64 and y.ndim == 1
                pred = self.learn.pred.detach()
                share = torch.as_tensor(cb.lam).expand(len(y))
                seen.append((pred.clone(), y, other, share, self.learn.loss.item()))

    learn.fit_stage1(1, 0.01, loss=loss_func, cbs=[cb, Look()])
    assert len(seen) == 7
    loss_func.reduction = "none"
    for pred, y, other, share, found in seen:
        both = share * loss_func(pred, y) + (1 - share) * loss_func(pred, other)
        assert found == pytest.approx(both.mean().item(), rel=1e-4)


def test_with_class_weights_ours_divides_as_the_loss_does_unlike_fastais():
    loss_func = ClassBalancedLoss([40, 12, 4], beta=0.99)
    pred, y = torch.randn(5, 3), torch.tensor([0, 0, 1, 0, 2])
    ours, theirs = BatchMixUp(), MixUp()
    partner = torch.tensor([1, 0, 2, 4, 3])
    expected = 0.3 * loss_func(pred, y) + 0.7 * loss_func(pred, y[partner])
    ours.learn = SimpleNamespace(
        loss_func=loss_func, pred=pred, yb=(y,), loss_grad=loss_func(pred, y)
    )
    ours.share_, ours.partner_ = 0.3, partner
    ours.after_loss()
    assert ours.learn.loss == pytest.approx(expected.item(), rel=1e-6)
    theirs.learn = SimpleNamespace(loss_func=loss_func, training=True)
    theirs.before_train()
    theirs.yb1, theirs.lam = (y[partner],), torch.full((5,), 0.3)
    found = theirs.learn.loss_func(pred, y)
    ratio = loss_func.weights[y].sum() / 5
    assert found.item() == pytest.approx((expected * ratio).item(), rel=1e-5)
    theirs.after_train()
    assert theirs.learn.loss_func is loss_func and loss_func.reduction == "mean"


HOWS = [CancelBatchException, KeyboardInterrupt]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("kind", THEIRS)
def test_the_learner_is_left_as_it_was_found(kind, how, event):
    """With fastai's own, which replace `loss_func`; ours are in the contract test."""
    learn, loss_func = make_lt_learner(), BalancedSoftmaxLoss()
    own, cbs, train = learn.loss_func, list(learn.cbs), learn.dls.train
    sampler = train.sampler, train.sampler_name, train.seed

    class Leave(Callback):
        order = 65

        left = False

        def __init__(self):
            setattr(self, event, self.leave)

        def leave(self):
            if self.learn.training and (self.learn.epoch, self.learn.iter) == (1, 2):
                self.left = True
                raise how

    cb, leave = kind(), Leave()
    try:
        learn.fit_stage1(2, 0.05, loss=loss_func, cbs=[cb, leave])
    except (ArithmeticError, KeyboardInterrupt) as e:
        assert e is how or type(e) is how
    assert leave.left
    assert learn.loss_func is own and list(learn.cbs) == cbs and not hasattr(learn, cb.name)
    assert loss_func.reduction == "mean" and loss_func.class_counts is None
    assert "forward" not in vars(loss_func) and learn.dls.train is train
    assert (train.sampler, train.sampler_name, train.seed) == sampler
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit_stage1(1, 0.05, cbs=cb)


@pytest.mark.parametrize("kind", OURS)
def test_deferred_reweighting(kind):
    learn, own, seen = make_lt_learner(), CrossEntropy(), []
    cb = kind()
    keep = Keep(cb)

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                assert self.learn.loss_func is own
                weights = None if own.weights is None else own.weights.clone()
                pred = self.learn.pred.detach().clone()
                seen.append((weights, pred, self.learn.loss.item()))

    learn.fit_stage1(4, 0.01, loss=own, cbs=[cb, keep, Look(), DeferredReweighting(start_pct=0.5)])
    assert [w is not None for w, *_ in seen] == [False] * 14 + [True] * 14
    for (_, share, partner, _, y), (weights, pred, loss) in zip(keep.seen, seen, strict=True):
        parts = [F.cross_entropy(pred, t, weights).item() for t in (y, y[partner])]
        assert loss == pytest.approx(share * parts[0] + (1 - share) * parts[1], rel=1e-4)
    assert own.weights is None


@pytest.mark.parametrize("kind", OURS)
def test_samn_in_stage_1_and_after_it(kind):
    learn = make_lt_learner()
    learn.fit_stage1(2, 0.05, cbs=[kind(), SAMN()])
    assert type(learn.model.head) is SAMNLinear
    raw = learn.model.head.raw_norm_weight[learn.model.head.rank_to_class]
    assert (raw.diff() >= 0).all()
    learn.retrain_classifier(2, cbs=SAMN())
    assert [kind.__name__ in s["callbacks"] for s in learn.stages] == [True, False]


@pytest.mark.parametrize("kind", OURS)
def test_gradients_that_are_accumulated_and_clipped(kind):
    steps = []

    class Steps(Callback):
        order = 60

        def after_step(self):
            steps.append(self.learn.iter)

    one, two = make_lt_learner(), make_lt_learner()
    plain = one.fit_stage1(1, 1e-9, cbs=kind())
    accumulated = two.fit_stage1(
        1, 1e-9, cbs=[kind(), GradientAccumulation(16), GradientClip(0.1), Steps()]
    )
    assert steps == [1, 3, 5]
    assert accumulated["loss"] == pytest.approx(plain["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", OURS)
def test_the_record_holds_the_mixed_loss(kind):
    learn, seen = make_lt_learner(), []

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                seen.append((self.learn.loss.item(), len(self.learn.yb[0])))

    trajectory = learn.fit_stage1(1, 0.01, cbs=[kind(), Look()])
    mean = sum(loss * n for loss, n in seen) / sum(n for _, n in seen)
    assert trajectory["loss"][0] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.parametrize("kind", OURS)
def test_a_loss_that_is_not_finite_for_the_partners(kind, on_nan):
    """The loss of the images' own targets is good: what is looked at is the mixed one."""
    calls = []

    def loss(logits, target):
        # Twice a step, and once a batch in validation.
        calls.append(logits.requires_grad)
        good = F.cross_entropy(logits, target)
        return good * math.nan if calls.count(True) == 6 and logits.requires_grad else good

    learn = make_lt_learner()
    if on_nan == "stop":
        with pytest.raises(UserError, match="diverged in epoch 1 of stage 1"):
            learn.fit_stage1(1, 0.01, loss=loss, cbs=kind())
    else:
        learn.fit_stage1(1, 0.01, loss=loss, on_nan="skip", cbs=kind())
        assert calls.count(True) == 14
    assert all(v.isfinite().all() for v in state(learn).values())
    assert not any(isinstance(cb, FiniteLoss) for cb in learn.cbs)


@pytest.mark.parametrize("sampler", ["square_root", "progressive", "class_balanced"])
def test_samplers_that_balance(sampler):
    learn, cb = make_lt_learner(), BatchMixUp()
    keep = Keep(cb)
    trajectory = learn.fit_stage1(3, 0.05, sampler=sampler, cbs=[cb, keep])
    assert np.isfinite(trajectory["loss"]).all() and learn.dls.train.sampler_name == "instance"
    plain = make_lt_learner()
    drawn = []

    class Targets(Callback):
        def before_batch(self):
            if self.learn.training:
                drawn.append(self.learn.yb[0].clone())

    plain.fit_stage1(3, 0.05, sampler=sampler, cbs=Targets())
    # Mixing has no part in what the sampler draws.
    targets = [y for *_, y in keep.seen]
    assert all(map(torch.equal, targets, drawn)) and len(targets) == len(drawn)
    rare = torch.cat(targets[-7:]).bincount(minlength=3)[2] / sum(map(len, targets[-7:]))
    assert rare > 4 / 56


@pytest.mark.parametrize("kind", OURS)
def test_it_stays_out_of_validation(kind):
    learn = make_lt_learner(cbs=kind())
    trajectory = learn.fit_stage1(2, 0.05)
    before = state(learn)
    learn.validate()
    logits, targets = learn.get_preds(act=lambda x: x)
    expected = learn.predict_logits("valid", cached=False)[0]
    torch.testing.assert_close(logits, expected)
    assert trajectory["all"][-1] == pytest.approx((expected.argmax(1) == targets).float().mean())
    assert same(before, state(learn))


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_runs_the_network_in_bf16_and_the_loss_in_fp32(channels_last):
    learn, cb = make_lt_learner(precision="bf16", channels_last=channels_last), BatchMixUp()
    seen, given = set(), set()
    learn.model.backbone.layer2[0].conv1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))

    class Look(Callback):
        order = 60

        def after_loss(self):
            if self.learn.training:
                x = self.learn.xb[0]
                given.add((x.dtype, self.learn.loss.dtype, self.learn.loss_grad.dtype))
                assert x.is_contiguous(memory_format=torch.channels_last)

    trajectory = learn.fit_stage1(2, 1e-9, cbs=[cb, Look()])
    assert seen == {torch.bfloat16} and given == {(torch.float32,) * 3}
    plain = make_lt_learner(precision="fp32", channels_last=channels_last)
    again = plain.fit_stage1(2, 1e-9, cbs=BatchMixUp())
    assert trajectory["loss"] == pytest.approx(again["loss"], rel=0.01)


@pytest.mark.parametrize("kind", OURS)
def test_no_step_waits_for_a_device(kind, monkeypatch):
    learn, cb = make_lt_learner(), kind()
    inside = []

    def guarded(event):
        def run():
            inside.append(True)
            try:
                event()
            finally:
                inside.pop()

        return run

    for name in ("before_batch", "after_loss"):
        monkeypatch.setattr(cb, name, guarded(getattr(cb, name)))
    ran = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        found = getattr(torch.Tensor, name)

        def refuse(self, *args, found=found, name=name, **kwargs):
            assert not inside, f"{name} in a step"
            ran.append(name)
            return found(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, refuse)
    learn.fit_stage1(1, 0.05, cbs=cb)
    assert not inside and ran


@pytest.mark.parametrize("kind", OURS)
def test_it_learns(kind):
    learn = make_lt_learner(make_dls([40, 20, 8]))
    trajectory = learn.fit_stage1(8, 0.05, cbs=kind())
    assert trajectory["balanced"][-1] > 0.6


# ------------------------------------------------ another Learner


class Tinted(Points):
    """Images of fastai's kind; `seed` is something else here."""

    seed = "a word"

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return TensorImage(x), y


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))  # fmt: skip


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat, CrossEntropy, LDAMLoss])
@pytest.mark.parametrize("kind", OURS)
def test_a_plain_learner(kind, loss):
    loss = loss(COUNTS) if loss is LDAMLoss else loss()
    learn = make_learner(network(), (3, 8, 8), loss_func=loss)
    data = Tinted((3, 8, 8))
    learn.dls = DataLoaders.from_dsets(data, data, bs=8, device="cpu", num_workers=0)
    assert learn.dls.train.seed == "a word"
    cb = kind()
    keep = Keep(cb)
    learn.fit(2, 0.01, cbs=[cb, keep])
    assert isinstance(keep.seen[0][3], TensorImage)
    assert len(keep.seen) == 14 and len({s for _, s, *_ in keep.seen}) > 7
    assert learn.loss_func is loss and cb.learn is None and cb.share_ is cb.partner_ is None
    assert np.isfinite(learn.recorder.values[-1][0])
    learn.get_preds()
    learn.lr_find(num_it=5, show_plot=False, suggest_funcs=())


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.GradScaler")
@pytest.mark.parametrize("kind", OURS)
def test_a_plain_learner_with_mixed_precision_and_a_loader_of_torch(kind):
    learn = make_learner(network(), (3, 8, 8))
    data = Points((3, 8, 8))
    batches = [(data.x[i : i + 8], data.y[i : i + 8]) for i in range(0, 56, 8)]
    before = [x.clone() for x, _ in batches]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    learn.dls = DataLoaders(loader, loader)
    learn.fit(2, 0.01, cbs=[kind(), MixedPrecision()])
    assert all(map(torch.equal, before, (x for x, _ in batches))), "the loader's own were changed"
    assert not torch.is_autocast_enabled("cpu")


# ------------------------------------------------ mistakes


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("alpha", [0, -0.1, math.nan, math.inf, "1", None, True])
def test_an_alpha_that_is_not_allowed(kind, alpha):
    message = "alpha must be .*, got " + repr(alpha).replace("'", ".")
    with pytest.raises(UserError, match=message):
        kind(alpha)


def test_the_published_values_are_the_defaults():
    assert (BatchMixUp().alpha, BatchCutMix().alpha) == (0.2, 1.0)


@pytest.mark.parametrize("other", [*OURS, *THEIRS])
@pytest.mark.parametrize("kind", OURS)
def test_two_that_mix(kind, other):
    learn = make_lt_learner()
    own = learn.loss_func
    message = "would mix the same batch"
    with pytest.raises(UserError, match=message):
        learn.fit_stage1(1, 0.05, cbs=[other(), kind()])
    with pytest.raises(UserError, match=message):
        make_lt_learner(cbs=other()).fit_stage1(1, 0.05, cbs=kind())
    assert learn.loss_func is own
    learn.fit_stage1(1, 0.05, cbs=kind())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", OURS)
def test_glmc_mixes_by_itself(kind, first):
    cbs = [kind(), GLMC()] if first else [GLMC(), kind()]
    with pytest.raises(UserError, match=f"GLMC.*{kind.__name__}|{kind.__name__}.*GLMC"):
        make_lt_learner().fit_stage1(1, 0.05, cbs=cbs)


@pytest.mark.parametrize("kind", OURS)
def test_features_are_no_images(kind):
    learn = make_lt_learner()
    learn.fit_stage1(1, 0.05)
    head = copy.deepcopy(learn.model.head.state_dict())
    message = rf"{kind.__name__} .* \(N, C, H, W\) .* got torch.float32 \(56, 16\): .*fit_stage1"
    with pytest.raises(UserError, match=message):
        learn.retrain_classifier(1, cbs=kind())
    assert same(head, learn.model.head.state_dict())
    # On images the classifier can be trained with it.
    learn.retrain_classifier(1, views=0, cbs=kind())
    plain = make_learner()
    with pytest.raises(UserError, match=r"got torch.float32 \(8, 6\)"):
        plain.fit(1, cbs=kind())
    plain.fit(1)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    ("xb", "got"),
    [
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8),), r"torch.uint8 \(2, 3, 4, 4\)"),
        ((torch.zeros(2, 3, 4, 4),) * 2, r"torch.float32 \(2, 3, 4, 4\), torch.float32 \(2"),
        (({"x": 1},), "dict"),
        ((torch.zeros(2, 4, 4),), r"torch.float32 \(2, 4, 4\)"),
    ],
)
def test_batches_that_it_cannot_mix(kind, xb, got):
    cb = kind()
    cb.learn = SimpleNamespace(xb=xb)
    with pytest.raises(UserError, match=f"got {got}"):
        cb.before_batch()
