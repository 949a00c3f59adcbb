import logging

import pytest
import torch
from torch import nn

from ltlearn import (
    SAMN,
    Checkpoint,
    CosineHead,
    CosineLinear,
    HeadStart,
    UserError,
    WeightAverage,
)
from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.models.text_start import ClipText
from tests.callbacks.helpers import COUNTS, make_dls, make_learner, make_lt_learner
from tests.models.clip import TinyClip, tokenize

unit = nn.functional.normalize


def means_of(learn):
    features = learn.features("train")
    x, y = torch.from_numpy(features.views[0]).float(), features.targets
    return unit(torch.stack([unit(x[y == c]).mean(0) for c in range(len(COUNTS))]))


def test_class_means_of_the_untrained_backbone():
    learn = make_lt_learner()
    expected = means_of(learn)
    learn.fit_stage1(0, cbs=HeadStart())
    head = learn.model.head
    assert type(head) is CosineLinear and head.cosine_scale == 25
    torch.testing.assert_close(head.weight.detach(), expected, rtol=1e-4, atol=1e-4)
    assert learn.predict_logits("train")[0].abs().max() <= 25.01


@pytest.mark.parametrize("start", ["class_means", "logistic"])
def test_a_fit_goes_on_from_the_start(start):
    learn = make_lt_learner()
    learn.fit_stage1(0, cbs=HeadStart(start))
    rows = learn.model.head.weight.detach().clone()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(COUNTS)))
    other = make_lt_learner()
    other.fit_stage1(1, 1e-9, wd=0, cbs=HeadStart(start))
    torch.testing.assert_close(other.model.head.weight.detach(), rows, rtol=1e-4, atol=1e-4)


def test_an_existing_cosine_head_keeps_its_scale_and_gets_the_rows():
    learn = make_lt_learner()
    expected = means_of(learn)
    learn.fit_stage1(0, cbs=[HeadStart(scale=16), CosineHead(16)])
    assert learn.model.head.cosine_scale == 16
    torch.testing.assert_close(learn.model.head.weight.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_head_over_normalised_features_becomes_a_cosine_classifier_again():
    learn = make_lt_learner()
    learn.fit_stage1(0, cbs=HeadStart())
    learn.retrain_classifier(epochs=1, cbs=SAMN())
    assert type(learn.model.head) is NormalizedFeatureHead
    learn.fit_stage1(0, cbs=CosineHead(16))
    assert type(learn.model.head) is CosineLinear and learn.model.head.cosine_scale == 16
    learn.retrain_classifier(epochs=1, cbs=SAMN())
    learn.fit_stage1(0, cbs=HeadStart())
    assert type(learn.model.head) is CosineLinear
    torch.testing.assert_close(learn.model.head.weight.detach(), means_of(learn))


def test_an_average_of_weights_begins_with_the_rows():
    learn, plain = make_lt_learner(), make_lt_learner()
    learn.fit_stage1(1, 1e-9, wd=0, cbs=[WeightAverage(0.999), HeadStart()])
    plain.fit_stage1(0, cbs=HeadStart())
    a, b = learn.model.head.weight.detach(), plain.model.head.weight.detach()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_resumed_fit_does_not_start_again(tmp_path, monkeypatch):
    class Stops(Checkpoint):
        """Stop the fit after the second epoch."""

        def after_epoch(self):
            super().after_epoch()
            if self.learn.epoch == 1:
                raise ArithmeticError("the user's")

    def callbacks(kind=Checkpoint):
        return [HeadStart(), kind(tmp_path / "stopped", resume=True, keep_all=True)]

    whole, learn = make_lt_learner(), make_lt_learner()
    whole.fit_stage1(4, 0.05, cbs=HeadStart())
    with pytest.raises(ArithmeticError):
        learn.fit_stage1(4, 0.05, cbs=callbacks(Stops))
    learn = make_lt_learner(seed=3)
    calls = []
    monkeypatch.setattr(type(learn), "features", lambda *args: calls.append(args))
    learn.fit_stage1(4, 0.05, cbs=callbacks())
    assert not calls
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, learn.model.state_dict()[name]), name


def test_a_damaged_checkpoint_does_not_lose_the_start(tmp_path, caplog):
    plain, learn = make_lt_learner(), make_lt_learner()
    plain.fit_stage1(1, 0.05, cbs=HeadStart())
    (tmp_path / "epoch-00001.json").write_text("{")
    (tmp_path / "epoch-00001.safetensors").write_text("")
    learn.fit_stage1(1, 0.05, cbs=[HeadStart(), Checkpoint(tmp_path, resume=True)])
    assert "no checkpoint" in caplog.text
    assert torch.equal(plain.model.head.weight, learn.model.head.weight)


def test_a_class_without_images_keeps_its_row(caplog):
    learn = make_lt_learner(make_dls([12, 0, 4]))
    row = unit(learn.model.head.weight.detach()[1], dim=0)
    learn.fit_stage1(0, cbs=HeadStart())
    torch.testing.assert_close(unit(learn.model.head.weight.detach()[1], dim=0), row)
    assert "no training images of class 1" in caplog.text


def test_text(monkeypatch):
    learn = make_lt_learner(make_dls(classes=["cat", "hot_dog", "wolf"]))
    clip = ClipText(TinyClip(width=learn.model.head.in_features), tokenize)
    asked = []
    monkeypatch.setattr(
        "ltlearn.callbacks.head_start.load_clip_text", lambda b: asked.append(b) or clip
    )
    learn.fit_stage1(0, cbs=HeadStart("text", templates="the {}"))
    assert asked == [learn.model.backbone]
    t = clip.embed(["the cat", "the hot dog", "the wolf"])
    expected = unit(t @ clip.projection.t())
    torch.testing.assert_close(learn.model.head.weight.detach(), expected)


def test_what_is_refused(caplog):
    with pytest.raises(UserError, match="start must be.*words"):
        HeadStart("words")
    with pytest.raises(UserError, match=r"templates.*'photo'"):
        HeadStart("text", templates="photo")
    with pytest.raises(UserError, match="per_class"):
        HeadStart(per_class=0)
    with pytest.raises(UserError, match="scale.*-1"):
        HeadStart(scale=-1)
    learn = make_lt_learner(make_dls(classes=["0", "1", "2"]))
    with pytest.raises(UserError, match=r"a class is called '0'; give class_names="):
        learn.fit_stage1(1, 0.1, cbs=HeadStart("text"))
    with pytest.raises(UserError, match="HeadStart needs an LTLearner"):
        make_learner().fit(1, 0.1, cbs=HeadStart())
    caplog.set_level(logging.WARNING)
    assert not [r for r in caplog.records if "shadow" in r.message]


def test_a_callback_that_is_given_replaces_the_methods_own():
    learn = make_lt_learner(make_dls([6, 3], side=32), arch="test_vit")
    given = HeadStart("logistic", 16)
    learn.fit_stage1(1, 0.01, method="bitfit", cbs=given)
    assert learn.stages[-1]["callbacks"].count("HeadStart") == 1
    assert learn.model.head.cosine_scale == 16
    learn.fit_stage1(0, method="bitfit", options={"scale": 12})
    assert learn.stages[-1]["callbacks"].count("HeadStart") == 1
