"""Features that the user has: `LTDataLoaders.from_features` and a learner over them."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import load_learner
from torch import nn

from ltlearn import GLMC, SAMN, Checkpoint, LTDataLoaders, LTLearner, UserError, lt_learner
from ltlearn.methods import METHODS
from ltlearn.models.backbone import LTModel
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.device.simcuda import SimCuda
from tests.training.helpers import Kill, Killed, check_resumed

COUNTS, WIDTH = [60, 20, 6, 3], 8
AFTER_PROBE = [
    name for name, row in METHODS.items() if row.stage == 2 and row.fits(METHODS["probe"])
]


def rows(counts=COUNTS, seed=0):
    targets = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(9).normal(size=(len(counts), WIDTH))
    noise = np.random.default_rng(seed).normal(size=(len(targets), WIDTH))
    return (2 * centres[targets] + noise).astype(np.float32), targets


def loaders(**kwargs):
    kwargs = {"test": rows([5] * 4, 2), "valid": rows([8] * 4, 1), "device": "cpu", **kwargs}
    return LTDataLoaders.from_features(*rows(), bs=8, **kwargs)


def learner(**kwargs):
    torch.manual_seed(0)
    return lt_learner(loaders(**kwargs))


# ------------------------------------------------ the data


def test_counts_and_the_carved_split_are_as_for_images():
    x, y = rows()
    options = {"valid_pct": 0.2, "seed": 3, "device": "cpu"}
    dls = LTDataLoaders.from_features(x, y, **options)
    images = LTDataLoaders.from_arrays(np.zeros((len(y), 4, 4, 3), np.uint8), y, **options)
    assert dls.class_counts.tolist() == images.class_counts.tolist()
    assert dls.shot_counts.tolist() == COUNTS and dls.split.imbalance_factor == 20
    assert dls.split.valid_from == "training images" and dls.test is None
    parts = [dls.train.dataset, dls.valid.dataset]
    both = np.concatenate([part.views[0] for part in parts])
    assert np.array_equal(both[np.lexsort(both.T)], x[np.lexsort(x.T)])
    assert all(np.array_equal(y[(x == row).all(1)], [t]) for row, t in parts[1])
    dls.train.set_epoch(2), images.train.set_epoch(2)
    assert [t.tolist() for _, t in dls.train] == [t.tolist() for _, t in images.train]


def test_the_fingerprint_depends_on_features_and_labels():
    x, y = rows()
    moved, other = x.copy(), y.copy()
    moved[5, 2] += 1e-3
    other[0] = 1
    order = np.random.default_rng(0).permutation(len(y))
    made = [
        LTDataLoaders.from_features(*pair, device="cpu").split.train
        for pair in ((x, y), (x[order], y[order]), (moved, y), (x, other))
    ]
    assert made[0] == made[1] and len(set(made)) == 3


@pytest.mark.parametrize(
    "as_given, kept",
    [
        (lambda x: x.astype(np.float16), np.float16),
        (lambda x: x.astype(np.float64), np.float32),
        (lambda x: x.tolist(), np.float32),
        (lambda x: torch.tensor(x, requires_grad=True), np.float32),
        (lambda x: torch.tensor(x).bfloat16(), np.float32),
        (lambda x: pd.DataFrame(x), np.float32),
    ],
)
def test_types_of_features(as_given, kept):
    x, y = rows()
    dls = LTDataLoaders.from_features(as_given(x), torch.tensor(y), device="cpu")
    assert dls.train.dataset.views[0].dtype == kept
    batch = dls.train.one_batch()[0]
    assert batch.dtype == torch.float32 and batch.shape == (64, WIDTH)


def test_a_file_stays_on_disk_with_validation_features(tmp_path):
    x, y = rows()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    dls = LTDataLoaders.from_features(mapped, y, valid=(x, y), device="cpu")
    assert dls.train.dataset.views[0] is mapped and dls.valid.dataset.views[0] is x


def test_views_of_one_array_differ_on_a_device():
    x, y = rows([8, 8])
    with SimCuda():
        dls = LTDataLoaders.from_features(
            x[::2], y[::2], valid=(x[:8], [0, 1] * 4), bs=8, device="cuda"
        )
        shown = [next(iter(loader.new(shuffle=False)))[0].cpu() for loader in dls.loaders]
    assert np.array_equal(shown[0], x[::2]) and np.array_equal(shown[1], x[:8])


def test_each_constructor_names_the_other():
    x, y = rows()
    with pytest.raises(UserError, match="float32 .*from_features"):
        LTDataLoaders.from_arrays(x, y)


def test_labels_that_are_names():
    x, y = rows()
    names = np.array(["owl", "10_cat", "2_dog", "auk"])
    dls = LTDataLoaders.from_features(x, names[y], test=(x, list(names[y])), device="cpu")
    assert dls.vocab == ["2_dog", "10_cat", "auk", "owl"]
    assert dls.shot_counts.tolist() == [6, 20, 3, 60]
    dls = LTDataLoaders.from_features(x, names[y], classes=names, device="cpu")
    assert dls.vocab == names.tolist() and dls.shot_counts.tolist() == COUNTS
    for given in (names[y].astype("S"), names[y].astype("S").astype(object)):  # as HDF5 has them
        assert LTDataLoaders.from_features(x, given, device="cpu").vocab[3] == "owl"
    dls = LTDataLoaders.from_features(x, y, classes=names, device="cpu")
    assert dls.vocab == names.tolist() and dls.shot_counts.tolist() == COUNTS


def with_value(value):
    x = rows()[0]
    x[7, 3] = value
    return {"x": x}


@pytest.mark.parametrize(
    "given, words",
    [
        (with_value(np.nan), "row 7 .*training.* nan"),
        (with_value(-np.inf), "row 7 .*training.* -inf"),
        ({"x": rows()[0].astype(np.float64) * 1e300}, "row 0 .*training.* inf|-inf"),
        ({"y": rows()[1][1:]}, r"89 .*\(88,\)"),
        ({"y": rows()[1] - 1}, "from 0 .*-1"),
        ({"y": rows()[1] / 2}, "training targets .*float64"),
        ({"y": ["a"] * 80 + [None] * 9}, "row 80 .*label is empty"),
        ({"y": ["a"] * 89}, "'a'"),
        ({"y": ["a"] * 80 + ["b"] * 9, "classes": ["a", "c"]}, "training.*'b'.*classes"),
        ({"classes": ["a"]}, "3.* 1 class"),
        ({"classes": "abcd"}, "classes .*'abcd'"),
        ({"classes": 4}, "classes .* 4"),
        ({"classes": dict(enumerate("abcd"))}, "classes .*0: 'a'"),
        ({"classes": ["a", "b", "c", "b"]}, "classes .*'b' 2"),
        ({"y": ["a"] * 80 + ["b"] * 8}, r"89 .*names.*\(88,\)"),
        ({"y": ["a"] * 80 + [np.nan] * 9}, "row 80 .*label is empty"),
        ({"y": [0] * 88 + [2**40]}, "train .*1099511627776"),
        ({"x": rows()[0][:, 0]}, r"training features .*\(N, D\).*\(89,\)"),
        ({"x": rows()[0].astype(int)}, "training features .*int64"),
        ({"x": np.zeros((89, 4, 4, 3), np.uint8)}, "uint8.*from_arrays"),
        ({"x": [[1.0, 2.0], [1.0]]}, "training features"),
        ({"x": list(torch.zeros(89, 4, requires_grad=True))}, "training features .*grad"),
        ({"test": (rows()[0][:, :5], rows()[1])}, "test features have 5 .* 8"),
        ({"test": (rows()[0], rows()[1] + 1)}, "row 86 of the test.*'4'"),
        ({"valid": rows()[0]}, "valid .*pair .*ndarray"),
        ({"valid_pct": 0}, "valid_pct .*0"),
        ({"bs": 0}, "bs .*0"),
        ({"protocol": "paper"}, "test set"),
    ],
)
def test_bad_input_is_one_sentence(given, words):
    x, y = rows()
    with pytest.raises(UserError, match=words):
        LTDataLoaders.from_features(**{"x": x, "y": y, "device": "cpu", **given})


# ------------------------------------------------ the learner


@pytest.fixture(scope="module")
def probed():
    learn = learner()
    learn.fit_stage1(method="probe")
    return learn


def test_a_learner_needs_no_architecture(probed):
    assert isinstance(probed.model.backbone, nn.Identity)
    assert (probed.arch, probed.precision) == ("identity", "fp32")
    assert probed.model.head.weight.shape == (4, WIDTH)
    assert probed.stages[0]["on"] == "features, 1 view"
    assert probed.shot_report("valid").balanced > 0.7
    given = probed.features("train")
    assert given.views[0] is probed.dls.train.dataset.views[0]  # no copy


@pytest.mark.parametrize("method", AFTER_PROBE)
def test_every_method_after_a_probe_runs(probed, method):
    probed.use("stage1")
    before = probed.predict_logits("test")[0]
    epochs = 2 if METHODS[method].kind == "stage 2" and METHODS[method].draws else None
    probed.retrain_classifier(epochs, method=method)
    logits = probed.predict_logits("test")[0]
    assert logits.shape == (20, 4) and logits.isfinite().all() and not logits.equal(before)
    assert torch.allclose(logits, probed.predict_logits("test", cached=False)[0], atol=1e-5)


def test_weights_are_those_of_a_learner_of_images():
    images = make_lt_learner(make_dls(transform="none"))
    found = {part: images.features(part) for part in ("train", "valid", "test")}
    parts = {part: (f.views[0], f.targets) for part, f in found.items()}
    dls = LTDataLoaders.from_features(
        *parts["train"], valid=parts["valid"], test=parts["test"], bs=8, device="cpu"
    )
    given = lt_learner(dls)
    for learn in (images, given):
        learn.fit_stage1(3, method="probe")
    for method in (None, "samn", "crt", "tau_norm", "ncm"):
        if method is not None:
            for learn in (images, given):
                learn.retrain_classifier(method=method)
        one, two = images.model.head.state_dict(), given.model.head.state_dict()
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-7)
    assert images.shot_report().balanced == given.shot_report().balanced


def test_stage_1_with_events_trains_the_head():
    learn = learner()
    learn.fit_stage1(12, lr=0.1)
    assert (learn.stages[0]["on"], learn.stages[0]["trained"]) == ("features", "head")
    assert learn.shot_report("valid").balanced > 0.6
    learn.fit_stage1(2, method="ldam_drw_stage1")
    assert learn.predict_logits()[0].isfinite().all()


def test_a_network_of_ones_own_over_features():
    learn = LTLearner(
        loaders(), LTModel(nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU()), nn.Linear(16, 4))
    )
    before = learn.model.backbone[0].weight.clone()
    learn.fit_stage1(8, lr=0.1)
    assert not before.equal(learn.model.backbone[0].weight)
    assert learn.features("train").views[0].shape == (89, 16)
    learn.retrain_classifier(2, cbs=SAMN())
    assert learn.shot_report("valid").balanced > 0.6


@pytest.mark.parametrize("what", ["probe", "crt"])
def test_a_training_that_is_killed_resumes(tmp_path, what):
    def train(learn, cbs):
        if what == "probe":
            learn.fit_stage1(5, method="probe", cbs=cbs)
        else:
            learn.retrain_classifier(5, method=what, cbs=cbs)

    check_resumed(train, tmp_path / "c", make=learner)


def test_other_features_are_not_resumed(tmp_path):
    with pytest.raises(Killed):
        stopped = [Kill(1), Checkpoint(tmp_path / "c", min_seconds=0)]
        learner().fit_stage1(2, method="probe", cbs=stopped)
    other = learner(test=rows([5] * 4, 5))
    with pytest.raises(UserError, match="images"):
        other.fit_stage1(2, method="probe", resume=tmp_path / "c")


def test_comparison_and_prediction(probed):
    probed.use("stage1")
    found = probed.compare_classifiers(["probe", "crt", "samn"], seeds=2)
    made = sorted((one.method, one.seed) for one in found.outcomes)
    assert made == [("crt", 0), ("crt", 1), ("probe", 0), ("samn", 0), ("samn", 1)]
    x, y = rows([5] * 4, 2)
    logits = probed.predict_logits("test")[0]
    names, probs = probed.predict_batch(x)
    assert probed.predict_batch(pd.DataFrame(x))[0] == names
    torch.testing.assert_close(probs, logits.softmax(1))
    assert probed.predict(x[3])[0] == probed.predict(torch.tensor(x[3]))[0] == names[3]
    labelled = probed.dls.test_dl(list(zip(x, y, strict=True)), with_labels=True)
    preds, targets = probed.get_preds(dl=labelled)
    torch.testing.assert_close(preds, probs)
    assert targets.tolist() == y.tolist()
    pair = probed.dls.test_dl((x, y), with_labels=True)
    assert probed.get_preds(dl=pair)[1].tolist() == y.tolist()
    narrow = LTDataLoaders.from_features(x[:, :3], y, device="cpu")
    with pytest.raises(UserError, match="3 columns.* 8"):
        probed.dls.test_dl(narrow.valid_ds)
    shown = probed.interpret("test")
    assert len(shown.top_losses(3, items=True)[2]) == 3
    for bad, words in ((x[:, :3], "3 columns.* 8"), ("photo.jpg", "features"), (x[:0], "features")):
        with pytest.raises(UserError, match=words):
            probed.predict_batch(bad)


def test_a_head_without_parameters_predicts(probed):
    probed.use("stage1")
    probed.correct_classifier("ncm")
    x, y = rows([5] * 4, 2)
    logits, targets = probed.predict_logits("test")
    preds, found = probed.get_preds(dl=probed.dls.test)
    torch.testing.assert_close(preds, logits.softmax(1))
    assert found.equal(targets) and len(probed.validate(2)) == 1
    assert probed.predict(x[0])[1] == logits[0].argmax()
    assert probed.interpret("test").confusion_matrix().sum() == len(x)
    with pytest.raises(UserError, match="NearestClassMean .*stage1"):
        probed.fit(1)


def test_an_untrained_classifier_and_a_rate_for_images_are_warned_of(caplog):
    learn = learner()
    learn.correct_classifier("tau_norm", 0.5)
    assert re.search("no stage 1 .*fit_stage1.*probe", caplog.text)
    caplog.clear()
    learn.fit_stage1(1)
    assert re.search(r"learning rate 0\.0\d+ .*features.*probe", caplog.text)
    caplog.clear()
    learn.fit_stage1(1, 0.1)
    learn.fit_stage1(method="probe")
    learn.correct_classifier("tau_norm", 0.5)
    assert not re.search("no stage 1|learning rate", caplog.text)


def test_files_of_a_learner(probed, tmp_path):
    probed.use("stage1")
    x = rows([5] * 4, 2)[0]
    wanted = probed.predict_batch(x)[1]
    probed.path, before = tmp_path, probed.path
    try:
        probed.save("one")
        probed.export("one.pkl")
        other = learner()
        other.path = tmp_path
        assert torch.equal(other.load("one").predict_batch(x)[1], wanted)
        loaded = load_learner(tmp_path / "one.pkl")
        assert torch.equal(loaded.predict_batch(x)[1], wanted)
        with pytest.raises(UserError, match="exported .*dls"):
            loaded.shot_report()
    finally:
        probed.path = before


def test_a_device_trains_the_same_classifier():
    def trained(device):
        learn = learner(device=device)
        learn.fit_stage1(2, method="probe")
        learn.retrain_classifier(2, method="crt")
        retrained = learn.model.head.weight.detach().cpu().clone()
        learn.fit_stage1(2, lr=0.05)
        return retrained, learn.model.head.weight.detach().cpu()

    with SimCuda():
        on_device = trained("cuda")
    for one, two in zip(on_device, trained("cpu"), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


# ------------------------------------------------ what needs images


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda learn: learn.fit_stage1(1, method="glmc"), "GLMC .*features"),
        (lambda learn: learn.fit_stage1(1, method="mixup"), "MixUp .*features"),
        (lambda learn: learn.fit_stage1(1, cbs=GLMC()), "GLMC .*features"),
        (lambda learn: learn.fit_stage1(1, method="lora"), "LoRA .*features"),
        (lambda learn: learn.fit_stage1(1, method="full"), "full .*features"),
        (lambda learn: learn.fit_stage1(1, method="sade"), "SADE .*features"),
        (lambda learn: learn.fit_stage1(1, flip=True), "flip=True .*features"),
        (lambda learn: learn.fit_stage1(method="probe", views=2), "views=2 .*features"),
        (lambda learn: learn.retrain_classifier(1, views=2), "views=2 .*features"),
        (lambda learn: learn.retrain_classifier(1, views=0), "views=0 .*features"),
        (lambda learn: learn.retrain_classifier(1, bn="train"), "bn=.train. .*features"),
        (lambda learn: learn.correct_classifier("ncm", views=2), "views=2 .*features"),
        (lambda learn: learn.compare_classifiers(["crt"], views=2), "views=2 .*features"),
        (lambda learn: learn.predict_logits(flip=True), "flip=True .*features"),
        (lambda learn: learn.shot_report(crops=5), "crops=5 .*features"),
        (lambda learn: learn.dls.show_batch(), "show_batch .*features"),
        (lambda learn: learn.dls.valid.show_batch(), "show_batch .*features"),
        (lambda learn: learn.dls.add_tfms([], "after_batch"), "add_tfms .*features"),
        (lambda learn: learn.show_results(), "show_results .*features"),
        (lambda learn: learn.tta(), "tta .*features"),
        (lambda learn: learn.interpret().plot_top_losses(2), "plot_top_losses .*features"),
        (lambda learn: learn.find_issues(), "find_issues .*features"),
        (lambda learn: learn.export_timm("x"), "export_timm .*features"),
        (lambda learn: learn.export_onnx("x"), "export_onnx .*features"),
        (lambda learn: learn.export_torchscript("x"), "export_torchscript .*features"),
        (lambda learn: learn.push_to_hub("a/b"), "push_to_hub .*features"),
        (lambda learn: lt_learner(learn.dls, "resnet18"), "arch='resnet18' .*features"),
        (lambda learn: lt_learner(learn.dls, pretrained="w.pth"), "pretrained='w.pth' .*features"),
        (lambda learn: lt_learner(learn.dls, width=4), "width=4 .*features"),
        (lambda learn: lt_learner(learn.dls, keep_head=True), "keep_head=True .*features"),
    ],
)
def test_what_needs_images_is_refused(probed, call, words):
    probed.use("stage1")
    with pytest.raises(UserError, match=words):
        call(probed)
