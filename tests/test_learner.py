import copy
import gc
import json
import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.optimizer import Adam
from PIL import Image
from torch import nn

from ltlearn import (
    GLMC,
    SAMN,
    LTDataLoaders,
    SAMNLinear,
    SharpnessAware,
    UserError,
    WeightAverage,
)
from ltlearn.data.samplers import ClassBalancedSampler
from ltlearn.metrics.report import shot_report
from ltlearn.training.checkpoint import Checkpoint
from tests.callbacks.helpers import (
    COUNTS,
    Spy,
    assert_monotone,
    make_dls,
    make_images,
    make_lt_learner,
)
from tests.models.helpers import SMALL
from tests.training.helpers import EPOCHS, check_resumed

START = [2.1414, 3.4347, 4.2321]


def state(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and set(a) == set(b)


# ------------------------------------------------ the model


@pytest.mark.parametrize("arch", [a for a in SMALL if a != "mobilenetv3_small_050"])
def test_a_step_with_each_kind_of_backbone(arch):
    kwargs = SMALL[arch]
    learn = make_lt_learner(make_dls([8, 4, 4], side=32, bs=8), arch=arch, **kwargs)
    assert type(learn.model.head) is nn.Linear
    learn.create_opt()
    groups = [{id(p) for p in g} for g in learn.opt.param_lists]
    parts = (learn.model.backbone, learn.model.head)
    assert groups == [{id(p) for p in part.parameters()} for part in parts]
    learn.model.eval()
    x = next(iter(learn.dls.valid))[0]
    with torch.no_grad():
        assert torch.equal(learn.model(x), learn.model.head(learn.model.backbone(x)))
        assert learn.model.backbone(x).shape == (len(x), learn.model.head.in_features)
    before = state(learn.model)
    learn.fit(1, 0.05)
    after = learn.model.state_dict()
    changed = [k for k, _ in learn.model.named_parameters() if not torch.equal(before[k], after[k])]
    assert {k.split(".")[0] for k in changed} == {"backbone", "head"}
    assert len(changed) > 0.5 * len(list(learn.model.parameters()))


def test_freeze_freezes_all_of_the_backbone():
    learn = make_lt_learner()
    learn.fit(1, 0.05, wd=0.1)
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model.backbone.parameters())
    before = dict(learn.model.named_parameters())
    before = {k: v.detach().clone() for k, v in before.items()}
    learn.fit(1, 0.05, wd=0.1)
    for k, v in learn.model.named_parameters():
        assert torch.equal(v, before[k]) == k.startswith("backbone"), k
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())


def test_normalisation_follows_the_weights_unless_it_was_given(tmp_path):
    source = make_lt_learner().model.backbone
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    dls = make_dls()
    learn = make_lt_learner(dls, pretrained=tmp_path / "weights.pth")
    assert same(learn.model.backbone.state_dict(), source.state_dict())
    assert dls.normalize.mean.flatten().tolist() == pytest.approx(
        [0.4914 * 255, 0.4822 * 255, 0.4465 * 255]
    )
    dls = make_dls(stats=([0.5] * 3, [0.25] * 3))
    make_lt_learner(dls, pretrained=tmp_path / "weights.pth")
    assert dls.normalize.mean.flatten().tolist() == pytest.approx([127.5] * 3)


# ------------------------------------------------ precision


def test_bf16_runs_the_network_in_bf16_and_the_loss_in_fp32():
    learn = make_lt_learner(precision="bf16")
    seen, losses = set(), set()
    learn.model.backbone.layer2[0].conv1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))

    def loss(pred, target):
        losses.add(pred.dtype)
        return nn.functional.cross_entropy(pred, target)

    learn.fit_stage1(1, 0.05, loss=loss)
    learn.retrain_classifier(1, 0.05, views=0, loss=loss)
    learn.predict_logits("valid", cached=False)
    assert seen == {torch.bfloat16} and losses == {torch.float32}
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert learn.bank.dtype == "float16"
    assert not torch.is_autocast_enabled("cpu")


def test_choice_of_precision(monkeypatch):
    with pytest.raises(UserError, match="fp16.* cpu"):
        make_lt_learner(precision="fp16")
    with pytest.raises(UserError, match="precision must be one of .*'f'"):
        make_lt_learner(precision="f")
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert make_lt_learner(make_dls(side=16), precision="auto").precision == expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert make_lt_learner(make_dls(side=8), precision="auto").precision == "fp32"


# ------------------------------------------------ stage 2


@pytest.mark.parametrize("views", [0, 1, 2])
def test_a_frozen_backbone_is_bit_identical(views):
    learn = make_lt_learner()
    # fastai's optimisers leave gradients of zero behind, which weight decay would follow.
    learn.fit_stage1(1, 0.05, opt_func=Adam)
    before, head = state(learn.model.backbone), state(learn.model.head)
    learn.retrain_classifier(2, 0.05, wd=0.1, views=views, select="last")
    assert same(before, learn.model.backbone.state_dict())
    assert not torch.equal(head["weight"], learn.model.head.weight)


def test_bn_train_changes_statistics_alone():
    learn = make_lt_learner()
    before = state(learn.model.backbone)
    learn.retrain_classifier(1, 0.05, wd=0.1, bn="train", select="last")
    after = learn.model.backbone.state_dict()
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


class Stop(Callback):
    order = 95  # after the spy has counted the step

    def __init__(self, error):
        self.error = error

    def after_step(self):
        if self.learn.iter == 2:
            raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, CancelFitException, ValueError("no")])
@pytest.mark.parametrize(
    ("stage", "options"), [(1, {}), (2, {"views": 0}), (2, {"views": 1}), (2, {"bn": "train"})]
)
def test_the_learner_is_restored_after_a_stage(stage, options, error):
    learn = make_lt_learner()
    if stage == 2:  # stage 1 trains everything
        learn.model.backbone.layer1.requires_grad_(False)
    train = learn.dls.train

    def look():
        flags = [p.requires_grad for p in learn.model.backbone.parameters()]
        own = (learn.loss_func, learn.opt_func, list(learn.cbs), flags)
        return own, (train.sampler, train.sampler_name, train.seed)

    before, train_method = look(), learn.model.backbone.train
    fit = learn.fit_stage1 if stage == 1 else partial(learn.retrain_classifier, bs=8)
    spy = Spy()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    cbs = [spy, SAMN()] + ([Stop(error)] if error else [])
    try:
        fit(2, 0.05, sampler="class_balanced", loss=loss, opt_func=Adam, cbs=cbs, **options)
    except (KeyboardInterrupt, ValueError) as e:
        assert error is not CancelFitException and not isinstance(e, UserError)
    assert look() == before
    assert learn.model.backbone.train.__func__ is train_method.__func__
    assert "train" not in vars(learn.model.backbone)
    assert spy.steps == (3 if error else 2 * len(train))
    assert isinstance(learn.model.head, SAMNLinear)
    assert learn.predict_logits("valid", cached=False)[0].isfinite().all()
    again = learn.retrain_classifier(1, 0.05, cbs=[SAMN(), Spy()], select="last")
    assert len(again["epoch"]) == 2
    learn.fit(1, 0.05, cbs=SAMN())


@pytest.mark.parametrize("views", [0, 1])
def test_without_epochs_the_head_has_the_starting_norms(views):
    learn = make_lt_learner()
    trajectory = learn.retrain_classifier(0, cbs=SAMN(), views=views)
    assert learn.head_norms().tolist() == pytest.approx(START, abs=1e-4)
    assert trajectory["epoch"] == [0] and trajectory["norms"][0] == pytest.approx(START, abs=1e-4)


@pytest.mark.parametrize("views", [0, 1])
@pytest.mark.parametrize("select", ["best", "last"])
def test_trajectory_and_selection(select, views):
    learn = make_lt_learner()
    learn.fit_stage1(2, 0.05)
    trajectory = learn.retrain_classifier(4, 0.3, select=select, views=views, cbs=SAMN())
    assert trajectory is learn.trajectory
    assert trajectory["epoch"] == [0, 1, 2, 3, 4]
    assert trajectory["norms"][0] == pytest.approx(START, abs=1e-4)
    balanced = trajectory["balanced"]
    chosen = 4 if select == "last" else balanced.index(max(balanced))
    assert trajectory["chosen"] == chosen
    assert learn.head_norms().tolist() == pytest.approx(trajectory["norms"][chosen], rel=1e-5)
    assert learn.shot_report("valid").balanced == pytest.approx(balanced[chosen])
    assert learn.stages[-1]["chosen_epoch"] == chosen
    assert [s["stage"] for s in learn.stages] == ["stage 1", "stage 2"]


def test_cached_features_and_images_agree():
    """One unaugmented view, in the order of a seed, trains the same head either way."""
    results = []
    for views in (0, 1):
        learn = make_lt_learner(make_dls(transform="none", bs=16))
        learn.retrain_classifier(2, 0.05, bs=16, views=views, select="last", seed=4)
        results.append(learn.model.head.weight.detach())
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"views": 2}, {"bn": "train"}, {"reset": True}])
def test_the_same_seed_gives_the_same_numbers(options):
    def run(seed):
        learn = make_lt_learner()
        learn.fit_stage1(1, 0.05)
        torch.rand(len(heads))  # what else was drawn does not matter
        learn.retrain_classifier(2, 0.1, seed=seed, select="last", cbs=SAMN(), **options)
        return learn.model.head.weight.detach().clone()

    heads = []
    for seed in (1, 1, 2):
        heads.append(run(seed))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_two_classes_and_a_class_without_training_images():
    for counts in ([20, 4], [20, 8, 0]):
        learn = make_lt_learner(make_dls(counts))
        trajectory = learn.fit_stage1(1, 0.05)
        for options in ({}, {"bn": "train"}, {"sampler": "class_balanced"}):
            trajectory = learn.retrain_classifier(1, 0.05, cbs=SAMN(), **options)
            assert np.isfinite(trajectory["balanced"]).all()
            assert np.isfinite(trajectory["norms"]).all()
            assert all(p.isfinite().all() for p in learn.model.parameters())
        assert np.isfinite(learn.shot_report().balanced)


@pytest.mark.parametrize("views", [0, 1])
def test_loss_and_sampler_are_really_used(views):
    learn = make_lt_learner()
    seen = []

    def loss(pred, target):
        if torch.is_grad_enabled():
            seen.append(target.clone())
        return nn.functional.cross_entropy(pred, target)

    def shares(**kwargs):
        seen.clear()
        learn.retrain_classifier(6, 0.01, loss=loss, views=views, **kwargs)
        y = torch.cat(seen)
        return (torch.bincount(y, minlength=3) / len(y)).tolist()

    assert shares() == pytest.approx([40 / 56, 12 / 56, 4 / 56], abs=0.02)
    assert shares(sampler="class_balanced") == pytest.approx([1 / 3] * 3, abs=0.1)
    own = ClassBalancedSampler(np.asarray(learn.dls.train.dataset.targets), seed=5)
    assert shares(sampler=own) == pytest.approx([1 / 3] * 3, abs=0.1)
    before = learn.stages[-1]
    assert before["sampler"] == "ClassBalancedSampler" or "Sampler" in before["sampler"]
    assert before["loss"] == "loss"


def test_reset_begins_with_a_new_head():
    learn = make_lt_learner()
    learn.retrain_classifier(1, 0.05, cbs=SAMN())
    learn.retrain_classifier(0, reset=True)
    assert type(learn.model.head) is nn.Linear
    assert learn.stages[-1]["head"] == "new"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epochs": -1}, "epochs must be .* got -1"),
        ({"epochs": 1.5}, "epochs must be .* got 1.5"),
        ({"bn": "thaw"}, "bn must be one of .*'thaw'"),
        ({"views": -1}, "views must be .* got -1"),
        ({"views": 0.5}, "views must be .* got 0.5"),
        ({"bn": "train", "views": 1}, "views must be 0 .*'train'.* views=1"),
        ({"epochs": True}, "epochs must be .* got True"),
        ({"lr": 0}, "lr must be .* above 0, got 0"),
        ({"lr": math.nan}, "lr must be .* got nan"),
        ({"lr": "0.1"}, "lr must be .* got '0.1'"),
        ({"lr": slice(0.1, 0.2)}, "lr must be .* got slice"),
        ({"wd": -0.1}, "wd must be .* got -0.1"),
        ({"wd": math.inf}, "wd must be .* got inf"),
        ({"bs": 0}, "bs must be .* got 0"),
        ({"bs": 2.0}, "bs must be .* got 2.0"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"seed": "a"}, "seed must be .* got 'a'"),
        ({"loss": "mse"}, "loss must be .* got 'mse'"),
        ({"opt_func": "Adam"}, "opt_func must be .* got 'Adam'"),
        ({"cbs": [3]}, "cbs must be .* got 3"),
        ({"cbs": nn.Linear}, "cbs must be .* got <class 'torch.nn"),
        ({"flip": True, "views": 1}, "flip=True.*views=0"),
        ({"schedule": "linear"}, "schedule must be one of .*'linear'"),
        ({"select": "first"}, "select must be one of .*'first'"),
        ({"sampler": "fair"}, "sampler must be one of .* got 'fair'"),
    ],
)
def test_options_out_of_range(kwargs, message):
    learn = make_lt_learner()
    with pytest.raises(UserError, match=message):
        learn.retrain_classifier(**{"epochs": 1, **kwargs})
    assert type(learn.model.head) is nn.Linear


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1}, "lr must be .* got -1"),
        ({"lr": [0.1]}, r"lr must be .* got \[0.1\]"),
        ({"lr": slice(0.1, math.inf)}, "lr must be .* got slice"),
        ({"lr": slice(None)}, "lr must be .* got slice"),
        ({"wd": -1}, "wd must be .* got -1"),
        ({"warmup_epochs": 0.5, "schedule": "constant"}, "warmup_epochs must be .* got 0.5"),
        ({"epochs": "1"}, "epochs must be .* got '1'"),
        ({"loss": 3}, "loss must be .* got 3"),
        ({"opt_func": 3}, "opt_func must be .* got 3"),
        ({"cbs": "SAMN"}, "cbs must be .* got 'SAMN'"),
    ],
)
def test_options_of_stage_1_out_of_range(kwargs, message):
    learn = make_lt_learner()
    before = state(learn.model)
    with pytest.raises(UserError, match=message):
        learn.fit_stage1(**{"epochs": 1, **kwargs})
    assert same(before, learn.model.state_dict())


def test_options_in_their_range():
    learn = make_lt_learner()
    for lr in (np.float32(0.01), slice(0.01), slice(0.01, 0.1), [0.01, 0.1]):
        learn.fit_stage1(np.int64(1), lr, wd=np.float32(0), cbs=Spy2)
    rates = [json.loads(json.dumps(stage.to_dict()))["lr"] for stage in learn.stages]
    assert rates == [pytest.approx(0.01), [0.01], [0.01, 0.1], [0.01, 0.1]]
    assert len(learn.retrain_classifier(np.int32(2), 1, bs=np.int64(8), seed=np.int64(3))["all"])


class Spy2(Callback):
    pass


def test_arguments_of_the_learner():
    with pytest.raises(UserError, match="few must be one of .*'<5'"):
        make_lt_learner(few="<5")
    with pytest.raises(UserError, match="arch must be .* got 18"):
        make_lt_learner(arch=18)
    with pytest.raises(UserError, match="cbs must be .* got 3"):
        make_lt_learner(cbs=3)


# ------------------------------------------------ callbacks that stay


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError("no")])
def test_callbacks_that_stay_take_part_in_stage_2_on_features(error):
    """A learner made with `cbs=SAMN()` once trained a plain head on features, without a word."""
    learn = make_lt_learner(cbs=[SAMN(), Spy])
    learn.add_cb(Spy2())
    own = list(learn.cbs)
    samn, spy = own[-3:-1]
    try:
        learn.retrain_classifier(2, 0.05, bs=8, cbs=Stop(error) if error else None, select="last")
    except (KeyboardInterrupt, ValueError):
        assert error
    assert spy.steps == (3 if error else 2 * len(learn.dls.train))
    assert_monotone(learn.model.head)
    assert list(learn.cbs) == own and all(cb.learn is learn for cb in own)
    assert getattr(learn, samn.name) is samn and learn.spy is spy
    if not error:
        assert {"SAMN", "Spy", "Spy2"} <= set(learn.stages[-1]["callbacks"])
    learn.fit(1, 0.05)
    assert_monotone(learn.model.head)


@pytest.mark.parametrize("fit", ["fit_stage1", "retrain_classifier", "images"])
def test_without_samn_a_samn_head_is_folded_first(fit, caplog):
    """It was once trained without projection, and its norms were not monotone any more."""
    learn = make_lt_learner()
    learn.retrain_classifier(1, 0.05, cbs=SAMN())
    before = learn.predict_logits("test")[0]
    options = {} if fit == "fit_stage1" else {"start": "current"}
    options |= {"views": 0} if fit == "images" else {}
    call = getattr(learn, "retrain_classifier" if fit == "images" else fit)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        call(0, **options)
    assert type(learn.model.head) is nn.Linear
    assert caplog.text.count("folded") == 1
    assert torch.allclose(before, learn.predict_logits("test")[0], atol=1e-5)
    weight = learn.model.head.weight.detach().clone()
    call(1, 0.05, select="last", **options)
    assert not torch.equal(weight, learn.model.head.weight)


def test_with_samn_the_head_stays_a_samn_head():
    learn = make_lt_learner(cbs=SAMN())
    learn.retrain_classifier(1, 0.05)
    learn.retrain_classifier(1, 0.05, start="current")
    learn.fit_stage1(1, 0.05)
    assert_monotone(learn.model.head)


# ------------------------------------------------ divergence


def explode(pred, target):
    return nn.functional.cross_entropy(pred, target) * math.nan


def test_a_diverged_stage_1_raises_an_error():
    learn = make_lt_learner()
    with pytest.raises(UserError, match="epoch 1 of stage 1.* learning rate"):
        learn.fit_stage1(2, 0.05, loss=explode)
    with torch.no_grad():
        learn.model.head.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        learn.retrain_classifier(1, views=0)


@pytest.mark.parametrize("views", [0, 1])
@pytest.mark.parametrize("cbs", [None, SAMN])
def test_a_diverged_stage_2_leaves_the_head_as_it_was(views, cbs):
    learn = make_lt_learner()
    head, before = learn.model.head, state(learn.model)
    with pytest.raises(UserError, match="diverged.* learning rate") as caught:
        learn.retrain_classifier(2, 0.05, loss=explode, views=views, cbs=cbs, reset=True)
    if cbs is None:
        assert "in epoch 1 of stage 2" in str(caught.value)
    assert learn.model.head is head and same(before, learn.model.state_dict())
    assert np.isfinite(learn.shot_report().all)
    learn.retrain_classifier(1, 0.05, views=views, cbs=cbs)


# ------------------------------------------------ fastai's own methods


def test_the_schedules_of_fastai_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make_lt_learner()
    before = state(learn.model)
    assert learn.lr_find(num_it=20, show_plot=False).valley > 0
    assert same(before, learn.model.state_dict())
    assert not list(tmp_path.rglob("*.pth"))
    learn.fit_one_cycle(1, 0.05)
    learn.fit_flat_cos(1, 0.05)


def test_the_learning_rate_finder_leaves_the_images_alone(tmp_path, monkeypatch):
    """It once wrote `models/` between the class folders, which then counted as a class."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    images, targets = make_images()
    for i, (image, c) in enumerate(zip(images, targets, strict=True)):
        (tmp_path / f"photos/{c}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"photos/{c}/{i}.png")
    dls = LTDataLoaders.from_folder(tmp_path / "photos", bs=8, device="cpu")
    learn = make_lt_learner(dls)
    learn.lr_find(num_it=6, show_plot=False)
    learn.save("model")
    assert (tmp_path / "work/models/model.pth").is_file()
    assert {p.name for p in (tmp_path / "photos").iterdir()} == {"0", "1", "2"}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.filterwarnings("ignore:load_learner")
def test_export_and_load_learner(tmp_path, in_memory):
    images, targets = make_images()
    for i, (image, c) in enumerate(zip(images, targets, strict=True)):
        (tmp_path / f"photos/{c}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"photos/{c}/{i}.png")
    dls = LTDataLoaders.from_folder(
        tmp_path / "photos", bs=8, device="cpu", in_memory=in_memory, num_workers=0
    )
    learn = make_lt_learner(dls, cbs=SAMN())
    learn.path = tmp_path
    learn.retrain_classifier(1, 0.05)
    learn.export("all.pkl")
    assert learn.dls is dls and len(learn.predict_logits("train")[0]) == dls.train.n
    again = load_learner(tmp_path / "all.pkl")
    names, probs = learn.predict_batch(list(images[:3]))
    assert again.predict_batch(list(images[:3]))[0] == names
    assert torch.allclose(again.predict_batch(list(images[:3]))[1], probs, atol=1e-6)
    assert again.dls.class_counts.tolist() == dls.class_counts.tolist()
    assert not again.dls.train.n and not again.bank._memory


# ------------------------------------------------ save and load


def test_save_and_load_into_a_fresh_learner(tmp_path):
    learn = make_lt_learner()
    learn.path = tmp_path
    learn.fit(1, 0.05, cbs=SAMN())
    learn.save("model.v1")
    fresh = make_lt_learner(seed=1)
    fresh.path = tmp_path
    fresh.create_opt()
    assert fresh.load("model.v1") is fresh
    assert same(fresh.model.state_dict(), learn.model.state_dict())
    held = {id(p) for g in fresh.opt.param_lists for p in g}
    assert held == {id(p) for p in fresh.model.parameters()}
    x = next(iter(learn.dls.valid))[0]
    learn.model.eval(), fresh.model.eval()
    assert torch.equal(learn.model(x), fresh.model(x))
    raw = fresh.model.head.raw_norm_weight.clone()
    fresh.fit(1, 0.0, cbs=SAMN())
    assert torch.equal(fresh.model.head.raw_norm_weight, raw)
    fresh.fit(1, 0.05, cbs=[SAMN(), Spy()])
    assert not torch.equal(fresh.model.head.raw_norm_weight, raw)
    with pytest.raises(UserError, match="nothing.pth"):
        fresh.load("nothing")


def test_loading_without_the_optimiser_makes_a_new_one(tmp_path):
    learn = make_lt_learner()
    learn.path = tmp_path
    learn.fit(1, 0.05)
    learn.save("plain")
    learn.fit(1, 0.05, cbs=SAMN())
    learn.load("plain", with_opt=False)
    weight = learn.model.head.weight.clone()
    learn.fit(1, 0.05)
    assert not torch.equal(weight, learn.model.head.weight), (
        "the old head's optimiser trains nothing"
    )


# ------------------------------------------------ results


def test_logits_of_the_mirror_image_are_averaged():
    learn = make_lt_learner()
    logits, targets = learn.predict_logits("test", flip=True)
    learn.model.eval()
    with torch.no_grad():
        x, y = zip(*learn.dls.test, strict=True)
        x = torch.cat(x)
        expected = (learn.model(x) + learn.model(x.flip(-1))) / 2
    assert torch.allclose(logits, expected, atol=1e-5) and torch.equal(targets, torch.cat(y))
    plain = learn.predict_logits("test")[0]
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(plain, learn.predict_logits("test", cached=False)[0], atol=1e-5)


def test_shot_report(caplog):
    learn = make_lt_learner()
    for part in ("valid", "test"):
        report = learn.shot_report(part)
        logits, targets = learn.predict_logits(part)
        assert report.all == shot_report(logits, targets, torch.tensor(COUNTS)).all
        assert len(targets) == (12 if part == "valid" else 9)
    assert learn.shot_report().all == learn.shot_report("test").all
    learn = make_lt_learner(make_dls(test=None))
    with caplog.at_level("WARNING", "ltlearn"):
        assert learn.shot_report().all == learn.shot_report("valid").all
    assert "there is no test set" in caplog.text
    with pytest.raises(UserError, match="'test'"):
        learn.shot_report("test")


def test_predict(tmp_path):
    learn = make_lt_learner()
    learn.fit_stage1(1, 0.05)
    images, _ = make_images([3, 3, 3], seed=2)
    expected = learn.predict_logits("test", cached=False)[0].softmax(1)
    names, probs = learn.predict_batch(list(images))
    assert torch.allclose(probs, expected, atol=1e-6)
    assert names == [learn.dls.vocab[c] for c in expected.argmax(1).tolist()]
    file = tmp_path / "one.png"
    Image.fromarray(images[4]).save(file)
    for one in (file, str(file), Image.open(file), images[4]):
        name, index, probs = learn.predict(one)
        assert torch.allclose(probs, expected[4], atol=1e-6)
        assert index == expected[4].argmax() and name == learn.dls.vocab[index]
    grey = images[4][..., 0]
    assert torch.equal(learn.predict(grey)[2], learn.predict(np.stack([grey] * 3, 2))[2])
    for wrong, message in (
        (images[4].astype(float), r"\(H, W, 3\) uint8.* got float64"),
        (images, "ndarray of 9.*predict_batch"),
        (list(images[:2]), "list of 2.*predict_batch"),
        ([], "predict.*list of 0"),
        (3, r"\(H, W, 3\) uint8.* got int 3"),
        (tmp_path / "none.png", "none.png"),
    ):
        with pytest.raises(UserError, match=message):
            learn.predict(wrong)


def test_predict_resizes_as_the_images_in_memory_were_resized(tmp_path):
    """It once resized without smoothing, which the images it was trained on had."""
    from ltlearn.data.images import read_image

    learn = make_lt_learner()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    small = read_image(tmp_path / "large.png", 8)
    assert torch.equal(learn.predict(tmp_path / "large.png")[2], learn.predict(small)[2])


def test_images_that_are_not_square():
    images = np.random.default_rng(0).integers(0, 255, (24, 8, 16, 3), dtype=np.uint8)
    dls = make_dls(valid=None, test=None)
    dls = type(dls).from_arrays(images, np.arange(24) % 2, bs=8, device="cpu")
    learn = make_lt_learner(dls)
    x = dls.valid.dataset.get_batch([0])[0][0].permute(1, 2, 0).numpy()
    expected = learn.predict_logits("valid", cached=False)[0][:1].softmax(1)
    assert torch.allclose(learn.predict(x)[2], expected[0], atol=1e-6)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_images_that_are_not_square_with_a_model_of_fixed_size(arch):
    images = np.random.default_rng(0).integers(0, 255, (24, 32, 48, 3), dtype=np.uint8)
    dls = LTDataLoaders.from_arrays(images, np.arange(24) % 2, bs=8, device="cpu")
    learn = make_lt_learner(dls, arch=arch, **SMALL[arch])
    assert np.isfinite(learn.fit_stage1(1, 0.01)["all"]).all()
    assert len(learn.predict(images[0])[2]) == 2


def test_no_gradient_survives_an_interrupted_fit():
    learn = make_lt_learner()

    class StopBeforeStep(Callback):
        def before_step(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.05, cbs=StopBeforeStep())
    assert all(p.grad is None for p in learn.model.parameters())


def test_features_that_are_too_many_for_memory_go_to_disk(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr("ltlearn.training.prediction.MAX_BANK_BYTES", 100)
    learn = make_lt_learner()
    learn.retrain_classifier(1, cbs=SAMN())
    assert learn.bank.path == tmp_path / "features"
    assert list((tmp_path / "features").rglob("*.npy"))
    assert "memory" in caplog.text


# ------------------------------------------------ gradient accumulation


def without_batch_norm(bs):
    learn = make_lt_learner(make_dls(side=4, bs=bs, transform="none"))
    torch.manual_seed(0)
    learn.model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU())
    learn.model.head = nn.Linear(16, 3)
    return learn


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_accumulated_gradients_are_those_of_one_batch(micro):
    """56 images: in batches of 8, or of 4, 2 and 1 that add up to 8."""
    options = {"schedule": "multistep", "milestones": [1], "decay": 0.5, "warmup_epochs": 1}
    whole, parts = without_batch_norm(8), without_batch_norm(micro)
    steps = Spy2()
    steps.after_step = lambda: setattr(steps, "taken", getattr(steps, "taken", 0) + 1)
    first = whole.fit_stage1(3, 0.05, **options)
    second = parts.fit_stage1(3, 0.05, cbs=[GradientAccumulation(8), steps], **options)
    assert len(parts.dls.train) == 56 // micro and steps.taken == 21
    for k, v in whole.model.state_dict().items():
        assert torch.allclose(v, parts.model.state_dict()[k], atol=1e-6), k
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)


def test_a_micro_batch_that_is_left_out_leaves_the_others():
    learn, seen = without_batch_norm(4), []

    def loss(pred, target):
        if torch.is_grad_enabled():
            seen.append(1)
        bad = torch.is_grad_enabled() and len(seen) == 2
        return nn.functional.cross_entropy(pred, target) * (math.nan if bad else 1)

    learn.fit_stage1(1, 0.05, loss=loss, on_nan="skip", cbs=GradientAccumulation(8))
    assert len(seen) == 14
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize("callback", [None, GLMC])
@pytest.mark.parametrize("opt_func", [None, Adam])
def test_a_checkpoint_keeps_accumulated_gradients(callback, opt_func, tmp_path):
    """30 images an epoch, a step each 20 or more: gradients are carried into the next epoch."""
    carried = []

    class Look(Callback):
        run_valid = False

        def before_train(self):
            carried.append(self.learn.gradient_accumulation.count)

    def train(learn, cbs):
        learn.fit_stage1(EPOCHS, 0.05, opt_func=opt_func, cbs=cbs)

    def cbs():
        return [GradientAccumulation(20), Look(), *([callback()] if callback else [])]

    check_resumed(train, tmp_path / "c", cbs=cbs, at=2)
    # Of the whole fit, and of the one that goes on in its third epoch.
    assert carried[-3:] == carried[2:EPOCHS] and carried[2] > 0


# ------------------------------------------------ torch.compile


def small_learner(**kwargs):
    """52 images in batches of 8, so that the last batch has 4; a model that is traced quickly."""
    learn = make_lt_learner(make_dls([36, 12, 4]), **kwargs)
    torch.manual_seed(0)
    learn.model.backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(144, 8),
    )  # fmt: skip
    learn.model.head = nn.Linear(8, 3)
    learn.model.to(memory_format=torch.channels_last)
    torch.manual_seed(5)
    return learn


def trained(**kwargs):
    learn = small_learner()
    learn.fit_stage1(2, 0.05, **kwargs)
    return learn


def is_plain(learn):
    backbone = learn.model.backbone
    own = {"_compiled_call_impl", "forward"} & set(vars(backbone))
    return not own and not any("_orig_mod" in k for k in learn.model.state_dict())


def test_a_compiled_fit_is_an_eager_one(compiler, caplog):
    learn = trained(compile=True)
    n = len(learn.dls.train)
    # The last batch is smaller: a second graph, for sizes that change, and no third.
    assert compiler.graphs == 2
    assert len(compiler.inputs) == 2 * n, "each step"
    assert same(learn.model.state_dict(), trained().model.state_dict())
    assert is_plain(learn) and "ltlearn" not in {r.name for r in caplog.records if r.levelno > 20}
    assert learn.stages[-1]["compiled"] is True and "compiled" not in trained().stages[-1]
    runs = len(compiler.inputs)
    learn.predict_logits(cached=False)
    learn.retrain_classifier(1, 0.05, views=0)
    learn.fit(1, 0.05)
    assert len(compiler.inputs) == runs


def test_copies_keys_and_hooks_in_a_compiled_fit(compiler, tmp_path):
    class Look(Callback):
        def before_fit(self):
            self.hook = self.learn.model.backbone.register_forward_hook(lambda *_: seen.append(1))

        def after_step(self):
            assert not any("_orig_mod" in k for k in self.learn.model.state_dict())
            other = copy.deepcopy(self.learn.model).train()
            with torch.no_grad():
                other.backbone[-1].weight.zero_()
                other.backbone[-1].bias.zero_()
            assert not other.backbone(self.learn.xb[0]).any(), "a copy has weights of its own"
            seen.pop()  # the copy has the hook, too
            self.learn.save("middle")

        def after_fit(self):
            self.hook.remove()

    learn, seen = small_learner(), []
    learn.path = tmp_path
    learn.fit_stage1(1, 0.05, compile=True, select="best", cbs=[Look(), WeightAverage(), SAMN()])
    assert len(seen) == len(learn.dls.train) + len(learn.dls.valid)
    assert is_plain(learn)
    learn.load("middle")
    learn.export("all.pkl")
    again = load_learner(tmp_path / "all.pkl")
    assert same(again.model.state_dict(), learn.model.state_dict())


def test_a_compiled_checkpoint_goes_on(compiler, tmp_path):
    def train(learn, cbs):
        learn.fit_stage1(EPOCHS, 0.05, compile=True, cbs=cbs)

    check_resumed(train, tmp_path / "c", small_learner)


@pytest.mark.parametrize("callback", [GLMC, SharpnessAware])
def test_callbacks_that_run_the_backbone_again(callback, compiler):
    one, two = trained(cbs=callback()), trained(cbs=callback(), compile=True)
    assert same(one.model.state_dict(), two.model.state_dict())
    assert len(compiler.inputs) >= 4 * len(two.dls.train)


@pytest.mark.parametrize("after", [0, 1])
def test_where_compilation_fails_the_fit_is_the_eager_one(after, compiler, caplog):
    """At the first batch, and at the first smaller one."""
    expected = trained()
    compiler.error, compiler.after = RuntimeError("no C++ compiler\nat all"), after
    learn = trained(compile=True)
    assert same(learn.model.state_dict(), expected.model.state_dict())
    assert learn.trajectory["loss"] == expected.trajectory["loss"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert warnings[0].startswith("torch.compile cannot compile")
    assert "no C++ compiler" in warnings[0]
    assert is_plain(learn) and learn.stages[-1]["compiled"] is False


def test_without_torch_compile(monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("torch.compile is not supported here")

    expected = trained()
    monkeypatch.setattr(torch, "compile", refuse)
    learn = trained(compile=True)
    assert same(learn.model.state_dict(), expected.model.state_dict())
    assert caplog.text.count("not supported here") == 1
    with pytest.raises(UserError, match="compile must be .* got 'yes'"):
        learn.fit_stage1(1, compile="yes")


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelFitException, ValueError("no")])
def test_a_compiled_fit_that_ends_early_leaves_a_plain_backbone(error, compiler):
    learn = small_learner()
    patched = learn.model.backbone.forward
    learn.model.backbone.forward = patched
    try:
        learn.fit_stage1(2, 0.05, compile=True, cbs=Stop(error))
    except (KeyboardInterrupt, ValueError):
        pass
    assert vars(learn.model.backbone)["forward"] is patched
    assert "_compiled_call_impl" not in vars(learn.model.backbone)
    del learn.model.backbone.forward
    learn.fit_stage1(1, 0.05)


@pytest.mark.parametrize("resume", [True, "here"])
def test_resume_goes_on_from_its_own_folder(tmp_path, resume, monkeypatch):
    class Stop(Callback):
        def __init__(self, at):
            self.at = at

        def before_train(self):
            if self.learn.epoch == self.at:
                raise KeyboardInterrupt

    class Often(Checkpoint):
        def __init__(self, path, resume):
            super().__init__(path, resume, min_seconds=0)

    monkeypatch.setattr("ltlearn.training.plan.Checkpoint", Often)
    folder = True if resume is True else tmp_path / resume

    def fit(at, resume):
        learn = make_lt_learner()
        learn.path = tmp_path
        torch.manual_seed(3)
        record = learn.fit_stage1(4, 0.05, resume=resume, cbs=Stop(at))
        return learn.model.state_dict(), [v for k, v in record.items() if k != "seconds"]

    whole = fit(9, False)
    with pytest.raises(KeyboardInterrupt):
        fit(2, folder)
    assert (tmp_path / ("models/stage1" if resume is True else resume)).is_dir()
    again = fit(9, folder)
    assert all(torch.equal(v, again[0][k]) for k, v in whole[0].items())
    assert again[1] == whole[1]


def test_a_step_leaves_no_tensor_behind():
    """One loss a step, kept as a tensor, made memory grow by megabytes a step of a large head."""
    learn = make_lt_learner()
    counts = []

    class Count(Callback):
        order = 90

        def after_batch(self):
            if self.training and self.iter == self.n_iter - 1:
                # By type: to ask a proxy whose object is gone for its class is an error.
                found = (issubclass(type(o), torch.Tensor) for o in gc.get_objects())
                counts.append(sum(found))

    learn.fit(4, 0.01, cbs=Count())
    n = len(learn.dls.train)
    # The first epoch makes what stays for all.
    assert len(counts) == 4 and counts[3] <= counts[1]
    # The recorder has them as fastai's plots want them.
    assert len(learn.recorder.losses) == 4 * n
    assert all(isinstance(loss, torch.Tensor) for loss in learn.recorder.losses)
    assert learn.recorder.losses[-1].item() == pytest.approx(learn.smooth_loss.item())
