"""Experts from stage 1 on: training, later stages, files and exports."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image

from ltlearn import Experts, LTDataLoaders, UserError, WeightAverage
from ltlearn.callbacks import BatchMixUp, CosineHead
from ltlearn.heads import ExpertHead
from ltlearn.losses import BalPoELoss, LDAMLoss, SADELoss
from ltlearn.methods import METHODS, find_methods
from ltlearn.models.experts import ExpertBackbone
from ltlearn.training.experts import agreement_weights
from tests.callbacks.helpers import make_dls, make_images, make_learner, make_lt_learner
from tests.training.helpers import EPOCHS, check_resumed

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.* is deprecated:FutureWarning", "ignore:.*insecure pickle:UserWarning"
)
COUNTS = [20, 8, 3]
both = pytest.mark.parametrize("method", ["balpoe", "sade"])


def make(counts=COUNTS, **kwargs):
    return make_lt_learner(make_dls(counts), **kwargs)


def trained(method="balpoe", epochs=1, **kwargs):
    learn = make(**kwargs)
    learn.fit_stage1(epochs, 0.05, method=method)
    return learn


def logits_of(learn, part="test"):
    return learn.predict_logits(part, cached=False)[0]


class Seen(Callback):
    """Note the shapes of the logits in training and validation."""

    order = 100

    def __init__(self):
        self.shapes = {True: set(), False: set()}

    def after_pred(self):
        self.shapes[self.learn.training].add(tuple(self.learn.pred.shape[1:]))


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_expert_is_trained_and_the_mean_is_validated(method, precision):
    learn, seen = make(precision=precision), Seen()
    Experts().install(learn)
    before = copy.deepcopy(learn.model.state_dict())
    learn.fit_stage1(1, 0.05, method=method, cbs=seen)
    assert seen.shapes == {True: {(3, 3)}, False: {(3,)}}
    after = learn.model.state_dict()
    floats = [k for k, v in after.items() if v.is_floating_point() and "expert_weights" not in k]
    assert all(not torch.equal(after[k], before[k]) for k in floats if "cosine_scale" not in k)
    head = learn.model.head
    assert type(head) is ExpertHead and not head.separate
    assert head.train()(torch.randn(2, head.in_features)).shape == (2, 3)
    stage = learn.stages[-1]
    assert stage["method"] == learn.stage1_method == method
    assert stage["callbacks"][0] == "Experts" and learn.assumed_prior == "uniform"
    assert stage["parameters"] == sum(p.numel() for p in learn.model.parameters())


def test_the_start_of_the_experts():
    learn, other = make(), make()
    head = Experts(scale=16).install(learn)
    plain, backbone = other.model, learn.model.backbone
    assert type(backbone) is ExpertBackbone and head.cosine_scale == 16
    assert torch.equal(head.weight[0], plain.head.weight)
    names = ("layer2", "layer3")
    for name, own in zip(names, backbone.parts_of(0), strict=True):
        old = plain.backbone.get_submodule(name)
        for p, q in zip(own.parameters(), old.parameters(), strict=True):
            assert torch.equal(p, q)
    for e in (1, 2):
        for one, own in zip(backbone.parts_of(0), backbone.parts_of(e), strict=True):
            pairs = zip(one.parameters(), own.parameters(), strict=True)
            for p, q in pairs:
                assert torch.equal(p.flatten().sort()[0], q.flatten().sort()[0])
                assert p.ndim == 1 or not torch.equal(p, q)
    again = make()
    torch.rand(5)
    assert torch.equal(Experts(scale=16).install(again).weight, head.weight)
    assert Experts().install(learn) is head, "a second fit goes on with them"
    # A trained model is worth more than different starts.
    other.fit_stage1(1, 0.05)
    kept = Experts(experts=2, stages=1).install(other)
    assert torch.equal(kept.weight[0], kept.weight[1])
    assert [len(other.model.backbone.parts_of(e)) for e in range(2)] == [1, 1]
    cosine = make()
    CosineHead().install(cosine)
    weight = cosine.model.head.weight.clone()
    assert torch.equal(Experts().install(cosine).weight[0], weight)


def test_another_loss_trains_the_mean():
    learn, seen = make(), Seen()
    learn.fit_stage1(1, 0.05, cbs=[Experts(), seen])
    assert seen.shapes == {True: {(3,)}, False: {(3,)}}
    assert learn.stage1_method == "ce"
    learn.fit_stage1(1, 0.05, loss=BalPoELoss(), cbs=[Experts(), BatchMixUp(0.4)])
    assert learn.stage1_method == "balpoe"
    learn.fit_stage1(1, 0.05, loss=SADELoss(), cbs=[Experts(), WeightAverage(0.9)])
    assert learn.stage1_method == "sade"
    with pytest.raises(UserError, match="ExpertHead.*Experts\\(\\) in cbs"):
        learn.fit_stage1(1, 0.05)


def test_models_that_cannot_have_experts():
    learn = make()
    with pytest.raises(UserError, match="Experts.*fit_stage1.*install"):
        learn.fit(1, 0.05, cbs=Experts())
    with pytest.raises(UserError, match="Experts needs a model with a backbone"):
        Experts().install(make_learner())
    learn.model.backbone = torch.nn.Sequential(learn.model.backbone)
    with pytest.raises(UserError, match="number the stages of Sequential"):
        learn.fit_stage1(1, 0.05, method="sade")
    learn = trained("sade")
    learn.retrain_classifier(method="crt", epochs=1)
    with pytest.raises(UserError, match="Linear in place.*stage1"):
        learn.fit_stage1(1, 0.05, method="sade")
    for options, words in (
        ({"experts": 1}, "experts must be .*1"), ({"stages": 0}, "stages must be .*0"),
        ({"scale": 0}, "scale must be .*0"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Experts(**options)
    with pytest.raises(UserError, match="BalPoELoss is the loss of 3 experts, got logits of 2"):
        make().fit_stage1(1, 0.05, loss=BalPoELoss(), cbs=Experts(experts=2))


@both
def test_a_killed_training_goes_on_bit_for_bit(method, tmp_path):
    def train(learn, cbs):
        learn.fit_stage1(EPOCHS, 0.05, method=method, cbs=cbs)

    learn = check_resumed(train, tmp_path / "c")
    assert type(learn.model.backbone) is ExpertBackbone


def test_saved_and_exported_learners(tmp_path):
    learn, other = trained(), make(seed=5)
    learn.path = other.path = tmp_path
    learn.save("kept")
    other.load("kept")
    assert torch.equal(logits_of(learn), logits_of(other))
    other.fit_stage1(1, 0.05, method="balpoe")
    images, _ = make_images(COUNTS)
    expected = learn.predict_batch(list(images[:3]))[1]
    file = learn.export_onnx(tmp_path / "m.onnx").path
    x = next(iter(learn.dls.test))[0]
    with torch.no_grad():
        logits = learn.model.eval()(x)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    script = torch.jit.load(learn.export_torchscript(tmp_path / "m.pt").path)
    torch.testing.assert_close(script(x[:1]), logits[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="ExpertHead.*ONNX"):
        learn.export_timm(tmp_path / "timm")
    learn.export(tmp_path / "learner.pkl")
    from fastai.learner import load_learner

    loaded = load_learner(tmp_path / "learner.pkl")
    assert torch.equal(loaded.predict_batch(list(images[:3]))[1], expected)


@both
def test_each_expert_and_the_mean_are_rows_of_a_comparison(method):
    learn = trained(method)
    names = find_methods(None, method)
    assert names[:4] == [method, "expert_1", "expert_2", "expert_3"]
    assert {"crt", "ncm", "balanced_softmax"} <= set(names) and "samn" not in names
    assert not {"expert_1", "expert_2"} & set(find_methods(None, "ce"))
    arguments = {n: {"epochs": 1} for n in names if METHODS[n].kind == "stage 2"}
    table = learn.compare_classifiers(names, arguments=arguments)
    label = METHODS[method].label
    assert table.labels["expert_2"] == f"{label}, expert 2"
    assert table.labels["crt"] == f"{label} + cRT"
    head, (x, _) = learn.model.head, next(iter(learn.dls.test))
    with torch.no_grad():
        own = head.expert_logits(learn.model.eval().backbone(x))
    for e in range(3):
        learn.use(f"expert_{e + 1}")
        torch.testing.assert_close(logits_of(learn), own[:, e], rtol=1e-4, atol=1e-4)
        assert learn.assumed_prior == ("train" if e == 0 else "uniform")
    learn.use("stage1")
    torch.testing.assert_close(logits_of(learn), own.mean(1), rtol=1e-4, atol=1e-4)
    learn.retrain_classifier(method="crt", epochs=1)
    assert learn.model.head.in_features == 3 * 16
    with pytest.raises(UserError, match="samn needs a linear.*classifier of several experts"):
        learn.compare_classifiers(["samn"])
    with pytest.raises(UserError, match="expert_1 needs a classifier of several experts.*CE"):
        find_methods("expert_1", "ce")
    with pytest.raises(UserError, match="expert_2 needs .*Linear.*balpoe"):
        make().correct_classifier("expert_2")


def test_stage_2_can_train_the_experts_classifiers():
    learn = trained("sade")
    learn.retrain_classifier(2, 0.05, loss=SADELoss(), cbs=Experts())
    assert type(learn.model.head) is ExpertHead and not learn.model.head.separate
    with pytest.raises(UserError, match="ExpertHead.*reset"):
        learn.retrain_classifier(1, loss=LDAMLoss())


@both
def test_the_resident_loop_and_a_compiled_backbone_object(method):
    learn = make()
    learn.resident = "always"
    learn.fit_stage1(2, 0.05, method=method)
    events = trained(method, 2)
    assert (learn.loop_ran, events.loop_ran) == ("resident", "events")
    for key, value in events.model.state_dict().items():
        torch.testing.assert_close(learn.model.state_dict()[key], value, rtol=2e-6, atol=2e-6)


def test_weights_for_images_without_labels(tmp_path):
    learn = trained("sade")
    images, _ = make_images(COUNTS)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    weights = learn.weigh_experts(list(images), seed=1)
    assert weights.sum() == pytest.approx(1) and not torch.equal(weights, torch.full((3,), 1 / 3))
    torch.testing.assert_close(learn.model.head.expert_weights, weights)
    before = logits_of(learn)
    of_test = learn.weigh_experts(learn.dls.test, epochs=1)
    assert of_test.sum() == pytest.approx(1) and not torch.equal(of_test, weights)
    assert torch.equal(learn.weigh_experts(list(images), seed=1), weights)
    assert torch.allclose(learn.weigh_experts(tmp_path, seed=1), weights, atol=1e-6)
    assert torch.equal(learn.weigh_experts(None), torch.full((3,), 1 / 3))
    assert not torch.equal(logits_of(learn), before)
    (tmp_path / "empty").mkdir()
    for given, words in (
        (tmp_path / "empty", "empty has 0 images"), (images[0], "got one"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            learn.weigh_experts(given)
    with pytest.raises(UserError, match="epochs must be .*0"):
        learn.weigh_experts(list(images), epochs=0)
    with pytest.raises(UserError, match="lr must be .*0"):
        learn.weigh_experts(list(images), lr=0)
    with pytest.raises(UserError, match="Linear.*sade"):
        make().weigh_experts(list(images))


def test_the_expert_whose_views_agree_gets_the_weight():
    torch.manual_seed(0)
    head = ExpertHead(3 * 8, 5, 3)
    first = torch.randn(200, 24)
    second = first.clone()
    second[:, :16] = torch.randn(200, 16)  # the views agree for the third expert alone
    weights = agreement_weights(head, first, second, 10, 0.1, 0)
    assert weights.argmax() == 2 and weights[2] > 0.5 and weights.sum() == pytest.approx(1)
    assert torch.equal(agreement_weights(head, first, second, 10, 0.1, 0), weights)


def test_images_in_files(tmp_path):
    images, targets = make_images(COUNTS, 24)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        file = tmp_path / f"c{target}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(image)).save(file)
    dls = LTDataLoaders.from_folder(tmp_path, size=24, bs=8, device="cpu")
    learn = make_lt_learner(dls, arch="vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2,
                            patch_size=8)  # fmt: skip
    learn.fit_stage1(1, 0.01, method="balpoe")
    assert learn.model.head.in_features == 72
    assert learn.weigh_experts(tmp_path).sum() == pytest.approx(1)
