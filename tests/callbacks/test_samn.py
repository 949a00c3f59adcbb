import warnings
from functools import partial

import pytest
import timm
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

from ltlearn import SAMN, UserError
from ltlearn.models.backbone import find_head
from tests.callbacks.helpers import (
    COUNTS,
    OPTIMIZERS,
    Spy,
    assert_monotone,
    make_learner,
    make_lt_learner,
    torch_sgd,
    two_groups,
)

START = [2.1414, 3.4346, 4.2321]


class TorchvisionLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


MODELS = {
    "sequential": (lambda: None, (6,)),
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "no_bias": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3, bias=False)), (6,)),
    "timm": (lambda: timm.create_model("resnet20_cifar", width=4, num_classes=3), (3, 8, 8)),
    "torchvision": (TorchvisionLike, (3, 8, 8)),
}


@pytest.mark.parametrize("make", MODELS)
def test_works_with_any_learner_that_ends_in_a_linear_layer(make):
    model, shape = MODELS[make]
    learn = make_learner(model(), shape)
    spy = Spy()
    learn.fit(2, 0.1, cbs=[SAMN(), spy])
    assert spy.steps == 14
    head = find_head(learn.model)[1]
    assert_monotone(head)
    assert head.norms().tolist() != pytest.approx(START, abs=0.01)


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("project", ["step", "forward"])
def test_works_with_any_optimiser(opt, project):
    learn = make_learner(opt_func=OPTIMIZERS[opt])
    before = [p.clone() for p in learn.model[0].parameters()]
    spy = None if project == "forward" else Spy()
    learn.fit(2, 0.05, wd=0.01, cbs=[SAMN(project=project), *([spy] if spy else [])])
    head = learn.model[2]
    norms = head.norms()[head.rank_to_class]
    assert (norms.diff() <= 1e-6).all()
    assert (norms - torch.tensor(START[::-1])).abs().max() > 1e-3
    assert not torch.equal(before[0], learn.model[0].weight)


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_the_optimiser_keeps_groups_hyper_parameters_and_frozen_parameters(opt):
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    learn.fit(1, [0.01, 0.02], wd=0.003)
    learn.freeze()
    # fastai's optimisers decay a frozen parameter that still has a gradient, if only of zeros.
    learn.model.zero_grad()
    old = learn.opt
    for h, mom in (("lr", [0.01, 0.02]), ("wd", [0.003, 0.003]), ("mom", [0.7, 0.8])):
        old.set_hyper(h, mom)
    before = [dict(h) for h in old.hypers]
    backbone = [p.clone() for p in learn.model[0].parameters()]

    head = SAMN().install(learn)
    assert learn.opt is old and [dict(h) for h in learn.opt.hypers] == before
    assert [len(g) for g in learn.opt.param_lists] == [2, 4]
    assert {id(p) for p in learn.opt.param_lists[1]} == {id(p) for p in head.parameters()}
    assert learn.opt.frozen_idx == 1
    assert [p.requires_grad for p in learn.model.parameters()] == [False, False] + [True] * 4

    learn.fit(1, [0.01, 0.02], cbs=[SAMN(), Spy()])
    assert all(
        torch.equal(a, b) for a, b in zip(backbone, learn.model[0].parameters(), strict=True)
    )
    assert learn.opt is old
    learn.unfreeze()
    learn.fit(1, [0.01, 0.02], cbs=SAMN())
    assert not torch.equal(backbone[0], learn.model[0].weight)


class Hypers(Callback):
    """Note the learning rates and weight decay of every step, and whether the head moved."""

    order = 90

    def before_step(self):
        self.seen = getattr(self, "seen", [])
        self.seen.append([(h["lr"], h["wd"]) for h in self.learn.opt.hypers])


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_the_first_fit_runs_with_the_learning_rate_it_was_given(opt):
    """The new head once came with a new optimiser, which had the Learner's default rate."""
    learn = make_learner(opt_func=OPTIMIZERS[opt])
    hypers = Hypers()
    learn.fit(1, 0.0123, wd=0.004, cbs=[SAMN(), hypers])
    assert hypers.seen == [[(0.0123, 0.004)]] * 7


def test_bias_of_the_new_head_is_not_decayed_where_that_of_the_old_was_not():
    learn = make_learner()
    learn.create_opt()
    assert learn.opt.state[learn.model[2].bias] == {"do_wd": False, "force_train": True} or (
        learn.opt.state[learn.model[2].bias] == {"do_wd": False}
    )
    kept = dict(learn.opt.state[learn.model[2].bias])
    head = SAMN().install(learn)
    assert learn.opt.state[head.bias] == kept
    assert learn.opt.state[head.weight] == {}


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_one_cycle(opt):
    learn = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    hypers, spy = Hypers(), Spy()
    learn.fit_one_cycle(2, 0.05, cbs=[SAMN(), hypers, spy])
    plain = make_learner(opt_func=OPTIMIZERS[opt], splitter=two_groups)
    expected = Hypers()
    plain.fit_one_cycle(2, 0.05, cbs=expected)
    assert hypers.seen == expected.seen and len(hypers.seen) == 14
    assert spy.steps == 14


def test_gradient_accumulation():
    learn = make_learner(opt_func=partial(SGD, mom=0.9))
    spy = Spy()
    learn.fit(2, 0.1, cbs=[GradientAccumulation(16), SAMN(), spy])
    assert spy.steps == 7
    assert_monotone(learn.model[2])


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_norms_are_monotone_after_every_step(precision):
    learn = make_lt_learner(precision=precision)
    spy = Spy()
    # So large a rate that the gradient breaks the order at once.
    learn.fit(2, 0.5, wd=0.01, cbs=[SAMN(), spy])
    assert spy.steps == 2 * len(learn.dls.train)
    assert (learn.model.head.raw_norm_weight.diff() == 0).any(), "nothing was ever pooled"
    assert learn.model.head.norms().isfinite().all()


def test_mixed_precision_of_fastai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = make_learner(cbs=MixedPrecision("bf16"))
        learn.fit(1, 0.1, cbs=[SAMN(), Spy()])


def test_retrain_classifier_with_it():
    learn = make_lt_learner()
    spy = Spy()
    learn.retrain_classifier(2, 0.1, bs=16, cbs=[SAMN(), spy], select="last")
    assert spy.steps == 2 * len(range(0, learn.dls.train.n, 16))
    assert_monotone(learn.model.head)


# ------------------------------------------------ save and load


def test_save_and_load_in_a_plain_learner(tmp_path):
    learn = make_learner(tmp_path=tmp_path)
    learn.fit(1, 0.1, cbs=SAMN())
    learn.save("samn")
    fresh = make_learner(tmp_path=tmp_path)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fresh.load("samn")
    SAMN().install(fresh)
    fresh.load("samn")
    x = torch.randn(5, 6)
    assert torch.equal(fresh.model(x), learn.model(x))
    raw = fresh.model[2].raw_norm_weight.clone()
    hypers = [dict(h) for h in fresh.opt.hypers]
    fresh.fit(1, 0.0, cbs=[SAMN(), Spy()])
    assert torch.equal(fresh.model[2].raw_norm_weight, raw)
    assert [set(h) for h in fresh.opt.hypers] == [set(h) for h in hypers]
    fresh.fit(1, 0.1, cbs=[SAMN(), Spy()])
    assert not torch.equal(fresh.model[2].raw_norm_weight, raw)


def test_a_learner_that_loaded_an_optimiser_can_get_the_head(tmp_path):
    learn = make_learner(tmp_path=tmp_path)
    learn.fit(1, 0.1)
    learn.save("plain")
    learn.load("plain")
    learn.fit(1, 0.1, cbs=[SAMN(), Spy()])


def test_install_before_a_fit_is_trained():
    """An existing optimiser once kept the parameters of the old head."""
    learn = make_learner()
    learn.fit(1, 0.01)
    head = SAMN().install(learn)
    raw = head.raw_norm_weight.clone()
    learn.fit(1, 0.1, cbs=SAMN())
    assert learn.model[2] is head and not torch.equal(head.raw_norm_weight, raw)


# ------------------------------------------------ interrupted fits


@pytest.mark.parametrize("at", ["before_batch", "before_backward"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, CancelFitException, RuntimeError("user")])
def test_an_interrupted_fit_leaves_a_head_that_works(stop, at):
    learn = make_learner(opt_func=torch_sgd, splitter=two_groups)
    spy = Spy(stop, at)
    try:
        learn.fit(2, 0.1, cbs=[SAMN(), spy])
    except (KeyboardInterrupt, RuntimeError) as e:
        assert stop is not CancelFitException and isinstance(e, KeyboardInterrupt | RuntimeError)
    assert spy.steps == 2, "it was to stop after two steps"
    head = learn.model[2]
    assert_monotone(head)
    raw = head.raw_norm_weight.clone()
    learn.validate()
    learn.fit(1, 0.0, cbs=SAMN())
    assert learn.model[2] is head and torch.equal(head.raw_norm_weight, raw)
    spy = Spy()
    learn.fit(1, 0.1, cbs=[SAMN(), spy])
    assert spy.steps == 7 and not torch.equal(head.raw_norm_weight, raw)


def test_an_exception_in_the_loss():
    calls = []

    def loss(pred, target):
        calls.append(1)
        if len(calls) == 4:
            raise FloatingPointError("no")
        return nn.functional.cross_entropy(pred, target)

    learn = make_learner(loss_func=loss)
    with pytest.raises(FloatingPointError):
        learn.fit(2, 0.1, cbs=[SAMN(), Spy()])
    assert_monotone(learn.model[2])
    learn.fit(1, 0.1, cbs=[SAMN(), Spy()])


def test_an_interruption_between_step_and_projection():
    class Before(Callback):
        order = 1

        def after_step(self):
            head = self.learn.model.head
            with torch.no_grad():
                head.raw_norm_weight.copy_(torch.tensor([0.1, 0.5, 0.9]))
            raise KeyboardInterrupt

    learn = make_lt_learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.1, cbs=[SAMN(), Before()])
    assert_monotone(learn.model.head)


def test_a_second_fit_goes_on_with_the_norms():
    learn = make_learner()
    learn.fit(1, 0.1, cbs=SAMN())
    head = learn.model[2]
    raw = head.raw_norm_weight.clone()
    learn.fit(1, 0.0, cbs=SAMN())
    assert learn.model[2] is head and torch.equal(head.raw_norm_weight, raw)


def test_other_options_for_an_existing_head_are_warned_of(caplog):
    learn = make_learner()
    learn.fit(1, 0.1, cbs=SAMN())
    assert not caplog.records
    with caplog.at_level("WARNING", "ltlearn"):
        learn.fit(1, 0.1, cbs=SAMN(on=("weight",)))
    assert "already has, with on=('weight', 'bias') and project='step'" in caplog.text


def test_get_preds_and_validate_change_no_model():
    learn = make_learner(cbs=SAMN())
    logits = learn.get_preds()[0]
    learn.validate()
    assert type(learn.model[2]) is nn.Linear
    assert torch.equal(learn.get_preds()[0], logits)
    learn.fit(1, 0.1)
    head = learn.model[2]
    raw = head.raw_norm_weight.clone()
    learn.get_preds()
    assert learn.model[2] is head and torch.equal(head.raw_norm_weight, raw)


def test_no_warning_of_a_shadowed_name(recwarn):
    learn = make_lt_learner()
    learn.retrain_classifier(1, cbs=SAMN())
    learn.fit_stage1(1)
    assert [w for w in recwarn if "shadowing" in str(w.message)] == []


# ------------------------------------------------ class counts


def test_missing_class_counts_raise_an_error():
    learn = make_learner(tell=False)
    with pytest.raises(UserError, match=r"class_counts.*SAMN\(class_counts=\[500, 120, ...\]\)"):
        learn.fit(1, 0.1, cbs=SAMN())
    assert type(learn.model[2]) is nn.Linear
    learn.fit(1, 0.1, cbs=[SAMN(COUNTS), Spy()])
    assert learn.model[2].class_counts.tolist() == COUNTS


def test_counts_of_another_length_are_refused():
    learn = make_learner()
    with pytest.raises(
        UserError, match=r"linear layer of 3 outputs \(2\), but there are 4 classes"
    ):
        learn.fit(1, 0.1, cbs=SAMN([4, 3, 2, 1]))


def test_a_class_without_images():
    learn = make_learner()
    learn.fit(1, 0.1, cbs=[SAMN([40, 12, 0]), Spy()])
    assert learn.model[2].norms().isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_counts_of_fastais_own_loaders_are_found_without_opening_images(tmp_path, monkeypatch):
    from fastai.vision.all import ImageDataLoaders
    from PIL import Image

    for part, counts in (("train", COUNTS), ("valid", [2, 2, 2])):
        for c, n in enumerate(counts):
            folder = tmp_path / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (i, c * 100, 0)).save(folder / f"{i}.png")
    dls = ImageDataLoaders.from_folder(tmp_path, train="train", valid="valid", bs=8, device="cpu")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    learn = Learner(dls, model, CrossEntropyLossFlat(), path=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
        head = SAMN().install(learn)
    assert head.class_counts.tolist() == COUNTS
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01, cbs=[SAMN(), Spy()])
