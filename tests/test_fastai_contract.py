"""What fastai's documentation shows for `vision_learner` works on `lt_learner` and its loaders."""

import io
import json
import sys
import types
import warnings

import albumentations as A
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.schedule import valley
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, Precision, accuracy, error_rate
from fastai.optimizer import Adam
from fastai.vision.augment import Resize, Rotate, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastcore.foundation import L
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ltlearn import SAMN, LTDataLoaders, UserError, lt_learner
from ltlearn.losses import BalancedSoftmaxLoss
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner

CASES = ["memory", "disk", "folder", "digits", "loaded"]


@pytest.fixture(autouse=True)
def no_windows():
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of class folders, with a test part."""
    root = tmp_path_factory.mktemp("photos")
    for part, counts, seed in (("train", [20, 10, 6], 0), ("test", [4, 4, 4], 1)):
        images, targets = make_images(counts, 16, seed)
        for i, (image, c) in enumerate(zip(images, targets, strict=True)):
            path = root / part / ("ant", "bee", "cat")[c] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def make_case(case, photos):
    if case == "memory":
        return make_dls()
    if case == "digits":
        return LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, n_max=30, bs=32,
                                          device="cpu")  # fmt: skip
    in_memory = case == "folder"
    return LTDataLoaders.from_folder(
        photos, bs=8, device="cpu", in_memory=in_memory, num_workers=0, size=16
    )


@pytest.fixture(scope="module", params=CASES)
def learn(request, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    dls = make_case(request.param, photos)
    learn = make_lt_learner(dls, metrics=[accuracy, error_rate], path=folder)
    learn.fit(1, 0.05)
    if request.param != "loaded":
        return learn
    learn.export("all.pkl")
    return load_learner(folder / "all.pkl")


@pytest.fixture(scope="module")
def dls(photos):
    return make_case("folder", photos)


def make_learner(dls, **kwargs):
    return make_lt_learner(dls, **kwargs)


def titles(axes):
    return [ax.get_title() for ax in axes if ax.has_data()]


def figure_axes():
    from matplotlib import pyplot as plt

    return plt.gcf().axes


# ---------------------------------------------------------------------------- over all cases


def test_batches_and_parts(learn):
    dls = learn.dls
    assert dls.c == len(dls.vocab) and len(dls.loaders) >= 2
    assert dls.train_ds is dls.train.dataset and dls.valid_ds is dls.valid.dataset
    assert list(dls.valid.vocab) == dls.vocab and dls.valid.vocab.o2i[dls.vocab[1]] == 1
    assert dls.normalize in list(dls.after_batch.fs)
    if not dls.train.n:
        return
    x, y = dls.one_batch()
    assert x.shape[1:] == (3, *dls.size) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert dls.train.new(bs=3).one_batch()[0].shape[0] == 3
    assert dls.cpu() is not None and dls.to("cpu") is dls


def test_show_batch(learn):
    dls = learn.dls
    if not dls.train.n:
        return
    dls.show_batch(max_n=4, nrows=1)
    assert set(titles(figure_axes())) <= set(dls.vocab) and len(titles(figure_axes())) == 4
    x, _, samples = dls.valid.show_batch(show=False)
    plain = dls.valid_ds[0][0] / 255
    assert torch.allclose(torch.as_tensor(samples[0][0]), plain, atol=1e-5), "not denormalised"
    assert samples[0][1] == dls.valid_ds.items[0].label
    dls.show_batch(unique=True, max_n=4)
    assert len(set(titles(figure_axes()))) == 1


def test_predict_and_get_preds_agree(learn, photos):
    paths = sorted((photos / "test").rglob("*.png"))[:5]
    names, probs = learn.predict_batch(paths)
    preds, targets = learn.get_preds(dl=learn.dls.test_dl(paths))
    assert targets is None and torch.allclose(preds, probs, atol=1e-6)
    name, index, p = learn.predict(paths[0])
    assert (name, learn.dls.vocab[index]) == (names[0], names[0])
    assert index.ndim == 0 and torch.allclose(p, probs[0], atol=1e-6)
    array = np.array(Image.open(paths[0]))
    chw = torch.from_numpy(array).permute(2, 0, 1)
    for same in (str(paths[0]), Image.open(paths[0]), array, chw, paths[0].read_bytes()):
        assert torch.allclose(learn.predict(same)[2], p, atol=1e-6)
    seen, *rest = learn.predict(paths[0], with_input=True)
    assert rest[0] == name and seen.shape == (3, *learn.dls.size) and 0 <= seen.min() <= 1
    several = L(paths), np.array(list(map(str, paths))), pd.Series(list(map(str, paths)))
    for images in (*several, (p for p in paths), learn.dls.test_dl(paths)):
        assert learn.predict_batch(images)[0] == names


def test_predictions_of_unlabelled_and_labelled_images(learn, photos):
    images, _ = make_images([2, 2, 1], 16, seed=3)
    dl = learn.dls.test_dl(list(images))
    (x,) = dl.one_batch()
    assert x.shape == (5, 3, *learn.dls.size)
    vocab = learn.dls.vocab
    pairs = [(images[0], vocab[1]), (images[1], 0), (images[2], vocab[2])]
    dl = learn.dls.test_dl(pairs, with_labels=True)
    preds, targets, decoded, losses = learn.get_preds(dl=dl, with_decoded=True, with_loss=True)
    assert targets.tolist() == [1, 0, 2] and torch.equal(decoded, preds.argmax(1))
    expected = -preds.log()[range(3), targets]
    assert torch.allclose(losses, expected, atol=1e-4)
    assert len(learn.validate(dl=dl)) == 3
    learn.show_results(dl=dl)
    assert len(titles(figure_axes())) == 3
    plain, _ = learn.tta(dl=dl, beta=1.0)
    assert torch.allclose(plain, preds, atol=1e-6)
    again = [learn.tta(dl=dl, n=2)[0] for _ in range(2)]
    assert torch.equal(*again) and torch.allclose(again[0].sum(1), torch.ones(3), atol=1e-5)
    with pytest.raises(UserError, match="label 'dog'"):
        learn.dls.test_dl([(images[0], "dog")], with_labels=True)
    with pytest.raises(UserError, match="with_labels.*ndarray"):
        learn.dls.test_dl([images[0]], with_labels=True)


def test_predictions_of_the_parts(learn):
    if not learn.dls.train.n:
        for call in (learn.get_preds, learn.validate, learn.tta, learn.show_results):
            with pytest.raises(UserError, match=r"no images.*load_learner"):
                call()
        return
    logits, targets = learn.predict_logits("valid", cached=False)
    x, preds, y, decoded, loss = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert torch.allclose(preds, logits.softmax(1), atol=1e-5) and torch.equal(y, targets)
    assert len(x) == len(loss) and torch.equal(decoded, preds.argmax(1))
    for options in ({"ds_idx": 0}, {"dl": learn.dls.train}):
        assert torch.equal(learn.get_preds(**options)[1], learn.dls.train_ds.targets)
    loss, *metrics = learn.validate()
    assert metrics[0] == pytest.approx((decoded == y).float().mean().item())
    (varied, plain), y = learn.tta(n=2, beta=None)
    assert torch.allclose(plain, preds, atol=1e-6) and torch.equal(y, targets)
    if getattr(learn.dls.train_ds.transform, "name", learn.dls.train_ds.transform) != "none":
        assert not torch.allclose(varied, plain)
    assert (learn.tta(n=2, use_max=True)[0] >= plain - 1e-6).all()
    learn.show_results(max_n=4)
    assert all("\n" in title for title in titles(figure_axes()))
    with pytest.raises(UserError, match="ds_idx is 7"):
        learn.get_preds(7)


def test_interpretation(learn, capsys):
    if not learn.dls.train.n:
        return
    found = ClassificationInterpretation.from_learner(learn)
    _, targets, decoded = learn.get_preds(with_decoded=True)
    matrix = found.confusion_matrix()
    assert matrix.sum() == len(targets) and np.trace(matrix) == (targets == decoded).sum()
    for true, predicted, n in found.most_confused():
        vocab = learn.dls.vocab
        assert matrix[vocab.index(true), vocab.index(predicted)] == n
    found.plot_confusion_matrix()
    found.plot_top_losses(3, nrows=1)
    assert titles(figure_axes())[0].count("/") == 3
    found.print_classification_report()
    assert learn.dls.vocab[0] in capsys.readouterr().out
    found.show_results([0, 1])
    losses, index, items = Interpretation.from_learner(learn).top_losses(2, items=True)
    worst = items[0]
    assert worst.label == learn.dls.vocab[targets[index[0]]]
    one = learn.dls.test_dl([worst], with_labels=True)
    assert learn.get_preds(dl=one, with_loss=True)[2][0] == pytest.approx(
        losses[0].item(), rel=1e-3
    )


# ---------------------------------------------------------------------------- learner's options


def test_options_of_the_learner(dls, tmp_path):
    learn = make_learner(
        dls, metrics=accuracy, loss_func=CrossEntropyLossFlat(), opt_func=Adam, path=tmp_path,
        model_dir="kept", wd=0.1, lr=0.01, moms=(0.9, 0.8, 0.9), n_out=3, train_bn=True,
        wd_bn_bias=False, splitter=lambda model: [list(model.parameters())],
    )  # fmt: skip
    learn.fit(1)
    assert learn.opt.hypers[0]["wd"] == 0.1 and learn.opt.hypers[0]["lr"] == 0.01
    assert len(learn.opt.param_lists) == 1 and type(learn.opt).__name__ == "Optimizer"
    assert list(learn.recorder.metric_names) == ["epoch", "train_loss", "valid_loss", "accuracy",
                                                 "time"]  # fmt: skip
    assert learn.moms == (0.9, 0.8, 0.9) and learn.train_bn and not learn.wd_bn_bias
    assert learn.save("one") == tmp_path / "kept/one.pth"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_out": 4}, "n_out is 4.*3 classes"),
        ({"normalize": False}, "normalize.*stats"),
        ({"nonsense": 3}, "does not take.*nonsense"),
        ({"metrics": [accuracy, 3]}, "metrics.*got 3"),
        ({"loss_func": "ce"}, "loss_func.*'ce'"),
        ({"opt_func": 3}, "opt_func.*got 3"),
        ({"splitter": 3}, "splitter.*got 3"),
        ({"path": 3}, "path.*got 3"),
        ({"lr": "fast"}, "lr.*'fast'"),
        ({"wd": -1}, "wd.*-1"),
    ],
)
def test_options_that_are_not_allowed(dls, options, message):
    with pytest.raises(UserError, match=message):
        make_learner(dls, **options)


def test_what_is_no_model_and_no_data_for_a_learner(dls, photos):
    def resnet18():
        pass

    with pytest.raises(UserError, match="arch.*function.*arch='resnet18'"):
        lt_learner(dls, resnet18, pretrained=False)
    others = ImageDataLoaders.from_folder(
        photos, valid="test", bs=8, device="cpu", num_workers=0, item_tfms=Resize(16)
    )
    for wrong in (others, str(photos)):
        with pytest.raises(UserError, match=f"dls.*LTDataLoaders.*{type(wrong).__name__}"):
            lt_learner(wrong, "resnet18", pretrained=False)


@pytest.mark.parametrize("tfms", [{"item_tfms": Resize}, {"batch_tfms": [Rotate, aug_transforms]}])
def test_a_transform_that_is_not_called(photos, tfms):
    with pytest.raises(UserError, match="(Resize|aug_transforms) .*; call it"):
        LTDataLoaders.from_folder(photos, bs=8, device="cpu", num_workers=0, size=16, **tfms)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda learn: learn.retrain_classifier("crt"), "epochs.*'crt'.*method='crt'"),
        (lambda learn: learn.retrain_classifier(method=SAMN()), "method.*SAMN.*cbs"),
        (lambda learn: learn.compare_classifiers(["ce", abs]), "name.*'abs'"),
    ],
)
def test_a_method_in_the_wrong_place(dls, call, message):
    with pytest.raises(UserError, match=message):
        call(make_learner(dls))


@pytest.mark.parametrize("how", ["fit", "fit_stage1", "retrain_classifier"])
@pytest.mark.parametrize("make", [SaveModelCallback, EarlyStoppingCallback])
def test_a_callback_that_monitors_what_is_not_measured(dls, tmp_path, how, make):
    learn = make_learner(dls, path=tmp_path)
    with pytest.raises(UserError, match=f"{make.__name__}.*'accuracy'.*valid_loss"):
        getattr(learn, how)(1, 0.01, cbs=make(monitor="accuracy"))


@pytest.mark.parametrize(
    "loss",
    [F.cross_entropy, nn.CrossEntropyLoss(), BalancedSoftmaxLoss()],
    ids=["function", "module", "counted"],
)
def test_a_loss_of_ones_own(dls, loss):
    learn = make_learner(dls, loss_func=loss)
    learn.fit(1, 0.01)
    assert learn.loss_func is loss and len(learn.validate()) == 1
    found = ClassificationInterpretation.from_learner(learn)
    assert found.confusion_matrix().sum() == dls.valid.n and len(found.losses) == dls.valid.n
    assert learn.loss_func is loss
    if isinstance(loss, BalancedSoftmaxLoss):
        assert loss.class_counts is None, "the counts belong to the data"


def test_a_loss_without_a_reduction(dls):
    learn = make_learner(dls, loss_func=lambda pred, y: F.cross_entropy(pred, y))
    learn.fit(1, 0.01)
    assert len(learn.get_preds(with_decoded=True)) == 3
    with pytest.raises(UserError, match="loss.*no parameter reduction"):
        learn.get_preds(with_loss=True)


# ---------------------------------------------------------------------------- training


def test_schedules_and_freezing(dls):
    learn = make_learner(dls, metrics=[Precision(average="macro"), F1Score(average="macro")])
    assert learn.lr_find(num_it=4, start_lr=1e-4, end_lr=1e-2, show_plot=False) is not None
    learn.fine_tune(1, 0.01)
    learn.fit_flat_cos(1, 0.01)
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model.backbone.parameters())
    learn.fit_one_cycle(1, 0.01)
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    assert "LTModel" in str(learn.summary())
    learn.recorder.plot_loss(skip_start=0)
    learn.recorder.plot_sched()
    assert valley is not None


def test_show_training_loop(dls, capsys):
    make_learner(dls).show_training_loop()
    assert "TrainEvalCallback" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["fit", "fit_stage1", "retrain_classifier"])
def test_the_best_model_is_saved_and_loaded(dls, tmp_path, how, capsys):
    learn = make_learner(dls, path=tmp_path)
    options = {} if how != "retrain_classifier" else {"select": "last"}
    # The loss grows, so that the first epoch stays the best.
    getattr(learn, how)(2, 5.0, cbs=SaveModelCallback(comp=np.less), **options)
    saved = torch.load(tmp_path / "models/model.pth")
    state = learn.model.state_dict()
    kept = {k: state[k] for k in saved}
    assert all(torch.equal(kept[k], saved[k]) for k in saved)
    assert "Better model found at epoch 0" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["fit", "fit_stage1", "learner"])
@pytest.mark.parametrize("make", [ProgressCallback, ShowGraphCallback])
def test_progress_of_fastai(dls, where, make, capsys):
    cb = make()
    learn = make_learner(dls, cbs=cb if where == "learner" else None)
    if where == "fit_stage1":
        learn.fit_stage1(1, 0.01, cbs=cb)
    else:
        learn.fit(1, 0.01, cbs=None if where == "learner" else cb)
    out = capsys.readouterr().out
    assert "train_loss" in out and "valid_loss" in out
    assert (cb in learn.cbs) == (where == "learner")
    if where == "learner":
        learn.retrain_classifier(1, 0.01)
        assert "balanced" in capsys.readouterr().out
        assert cb in learn.cbs and cb.learn is learn
        assert type(cb).__name__ not in learn.stages[-1].callbacks, "it changes no weights"
    else:
        learn.fit(1, 0.01)
        assert capsys.readouterr().out == "", "quiet again"


@pytest.mark.parametrize(
    "make", [CSVLogger, EarlyStoppingCallback, ReduceLROnPlateau, MixUp, CutMix]
)
def test_callbacks_of_fastai(dls, make, tmp_path):
    learn = make_learner(dls, path=tmp_path)
    learn.fit(1, 0.01, cbs=make())
    learn.fit_stage1(1, 0.01, cbs=make)
    if make not in (MixUp, CutMix):
        learn.retrain_classifier(1, 0.01, cbs=make())
    if make is CSVLogger:
        assert list(pd.read_csv(tmp_path / "history.csv").columns[:2]) == ["epoch", "train_loss"]


class FakeWandb(types.ModuleType):
    """The part of wandb that fastai's callback uses; it keeps what is logged."""

    class _Run:
        step, summary = 0, {}

        def mark_preempting(self):
            pass

    class Config(dict):
        def update(self, values, **_):
            super().update(json.loads(json.dumps(values)))

    def __init__(self):
        super().__init__("wandb")
        self.run, self.config, self.logged = self._Run(), self.Config(), []
        self.watch = self.termwarn = lambda *args, **kwargs: None
        self.Image = lambda image, **kwargs: image
        self.Table = lambda columns: types.SimpleNamespace(columns=columns, add_data=list)

    def log(self, values, **_):
        self.logged.append(values)


def test_wandb(dls, monkeypatch):
    """fastai's callback fails on the settings that fastai itself collects."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    from fastai.callback import wandb as module

    monkeypatch.setattr(module, "wandb", fake, raising=False)
    learn = make_learner(dls, metrics=accuracy)
    for train in (learn.fit, learn.fit_stage1, learn.retrain_classifier):
        fake.logged.clear()
        train(1, 0.01, cbs=module.WandbCallback(log=None, log_preds=False, log_model=False))
        losses = [values["train_loss"] for values in fake.logged if "train_loss" in values]
        assert losses and all(np.isfinite(float(loss)) for loss in losses)
    assert fake.config["batches per epoch"]


def test_mixed_precision_of_fastai_warns_of_no_attribute(dls):
    learn = make_learner(dls)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*shadowing an attribute")
        learn.to_bf16().fit(1, 0.01)
    learn.to_fp32()


def test_the_smoothed_loss_is_a_tensor(dls):
    learn = make_learner(dls)
    with pytest.raises(AttributeError):
        _ = learn.smooth_loss
    learn.fit(1, 0.01)
    assert isinstance(learn.smooth_loss, torch.Tensor)
    assert learn.smooth_loss.item() == pytest.approx(learn.recorder.losses[-1].item())


def test_loading_a_file_that_does_not_fit(dls, tmp_path):
    learn = make_learner(dls, path=tmp_path)
    learn.fit(1, 0.01)
    learn.save("one")
    learn.load("one", with_opt=False, weights_only=True)
    (tmp_path / "models/bad.pth").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"bad\.pth is not opened.*damaged"):
        learn.load("bad")
    with pytest.raises(UserError, match=r"one is.*another model.*size mismatch"):
        make_learner(dls, path=tmp_path, width=8).load("one")
    buffer = io.BytesIO()
    torch.save(learn.model.state_dict(), buffer)
    buffer.seek(0)
    assert learn.load(buffer, with_opt=False) is learn


def test_a_loaded_learner_treats_images_as_before(photos, tmp_path):
    dls = LTDataLoaders.from_folder(
        photos, bs=8, device="cpu", num_workers=0, item_tfms=[Resize(20), lambda image: image],
        transform=A.Compose([A.RandomCrop(10, 10)]), batch_tfms=aug_transforms(size=16),
    )  # fmt: skip
    learn = make_learner(dls, path=tmp_path)
    learn.fit(1, 0.01)
    learn.export("own.pkl")
    again = load_learner(tmp_path / "own.pkl")
    paths = sorted((photos / "test").rglob("*.png"))[:4]
    for one in (learn, again):
        assert one.dls.size == (16, 16)
    assert torch.allclose(learn.predict_batch(paths)[1], again.predict_batch(paths)[1], atol=1e-6)
    varied = [one.tta(dl=one.dls.test_dl(paths))[0] for one in (learn, again)]
    assert torch.allclose(*varied, atol=1e-6)
    assert not torch.allclose(varied[0], learn.predict_batch(paths)[1], atol=1e-4)


# ---------------------------------------------------------------------------- single images


def test_a_photo_is_upright_however_it_is_given(dls, tmp_path):
    learn = make_learner(dls)
    image = np.tile(np.linspace(0, 255, 24, dtype=np.uint8)[None, :, None], (16, 1, 3))
    upright = Image.fromarray(image)
    exif = Image.Exif()
    exif[0x112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    expected = learn.predict(upright)[2]
    turned = tmp_path / "turned.png"
    for same in (turned, Image.open(turned), turned.read_bytes(), Image.open(turned).convert("L")):
        assert torch.allclose(learn.predict(same)[2], expected, atol=1e-6)
    assert torch.allclose(learn.predict_batch([Image.open(turned)])[1][0], expected, atol=1e-6)


def test_16_bit_images_are_scaled_however_they_are_given(dls, tmp_path):
    pixels = (np.linspace(0, 65535, 256).reshape(16, 16)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    learn = make_learner(dls)
    expected = learn.predict(tmp_path / "deep.png")[2]
    assert torch.equal(learn.predict(Image.open(tmp_path / "deep.png"))[2], expected)


@pytest.mark.parametrize("image", [None, {}, 3.5, b"abc", np.zeros((0, 0, 3), np.uint8)])
def test_what_is_no_image(dls, image):
    with pytest.raises(UserError, match="image"):
        make_learner(dls).predict(image)


def test_a_table_of_images(dls):
    with pytest.raises(UserError, match="columns image, label.*column of the paths"):
        dls.test_dl(pd.DataFrame({"image": ["a.png"], "label": ["ant"]}))
