"""Class names as rows of a classifier, with a tiny random CLIP in the place of open_clip."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ltlearn import UserError
from ltlearn.models.text_start import (
    ClipText,
    check_class_names,
    check_templates,
    load_clip_text,
    text_rows,
)
from tests.models.clip import TinyClip, tokenize


def test_rows_equal_a_slow_transcription():
    clip = ClipText(TinyClip(width=6, embed=4), tokenize)
    names, templates = ["cat", "hot dog", "wolf"], ["a photo of a {}.", "a drawing of the {}."]
    rows = text_rows(clip, names, templates)
    assert rows.shape == (3, 6)
    for row, name in zip(rows, names, strict=True):
        t = torch.zeros(4)
        for template in templates:
            e = clip.model.encode_text(tokenize([template.replace("{}", name)]))[0]
            t += e / e.norm() / 2
        w = clip.model.visual.proj @ (t / t.norm())
        torch.testing.assert_close(row, (w / w.norm()).detach())


def test_the_cosine_with_a_feature_is_that_of_the_embeddings_up_to_its_length():
    clip, f = ClipText(TinyClip(width=6, embed=4), tokenize), torch.randn(5, 6)
    rows = text_rows(clip, ["cat", "dog"], ["{}"])
    lengths = (clip.embed(["cat", "dog"]) @ clip.projection.t()).norm(dim=1)
    texts = clip.embed(["cat", "dog"])
    torch.testing.assert_close(f @ rows.t() * lengths, (f @ clip.projection) @ texts.t())


def test_many_texts_are_read_in_parts():
    clip = ClipText(TinyClip(), tokenize)
    texts = [f"image {i}" for i in range(600)]
    torch.testing.assert_close(clip.embed(texts)[555:556], clip.embed(texts[555:556]))


@pytest.mark.parametrize("templates", ["photo", ["{} of {}"], [], [3]])
def test_templates_without_a_place_for_the_name(templates):
    with pytest.raises(UserError, match=r"templates must be sentences with \{\}"):
        check_templates(templates)


def test_names():
    assert check_class_names(None, ["hot_dog", "Ice  cream"]) == ["hot dog", "Ice cream"]
    assert check_class_names(["a", "b"], ["0", "1"]) == ["a", "b"]
    assert check_class_names(None, ["digit 0", "7up"]) == ["digit 0", "7up"]
    assert check_class_names(None, ["n01440764", "n02119789"])[0] == "tench"
    for vocab in (["0", "1"], ["cat", "07"], ["1.5", "2.5"]):
        with pytest.raises(UserError, match="names that are words.*class_names=.*class_means"):
            check_class_names(None, vocab)
    with pytest.raises(UserError, match="the data has none"):
        check_class_names(None, None)
    with pytest.raises(UserError, match="3 names, but the data has 2"):
        check_class_names(["a", "b", "c"], ["x", "y"])
    with pytest.raises(UserError, match="n99999999"):
        check_class_names(None, ["n99999999", "n01440764"])


CONFIG = {
    "architecture": "vit_tiny_clip", "tag": "openai", "hf_hub_id": "timm/vit_tiny_clip.openai",
}  # fmt: skip


@pytest.fixture
def open_clip(monkeypatch):
    """Put a module with open_clip's calls in its place; the hub has the file in its cache."""
    module = ModuleType("open_clip")
    module.__spec__ = SimpleNamespace(name="open_clip")
    module.model, module.asked = TinyClip(), []
    module.list_pretrained = lambda: [("Tiny", "openai"), ("Tiny-quickgelu", "openai"), ("B", "x")]
    facts = {"hf_hub": "timm/vit_tiny_clip.openai/", "quick_gelu": True}
    module.pretrained = SimpleNamespace(
        get_pretrained_cfg=lambda name, tag: facts if tag == "openai" else {}
    )

    def create_model(name, pretrained):
        module.asked.append((name, pretrained))
        return module.model

    module.create_model, module.get_tokenizer = create_model, lambda name: tokenize
    monkeypatch.setitem(sys.modules, "open_clip", module)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "file")
    return module


def trunk(model):
    """Return a trunk with the weights of an image tower."""
    backbone = nn.Module()
    backbone.cls_token = nn.Parameter(model.visual.class_embedding.detach()[None, None].clone())
    backbone.patch_embed = nn.Module()
    backbone.patch_embed.proj = nn.Conv2d(3, 6, 2, bias=False)
    backbone.patch_embed.proj.weight = nn.Parameter(model.visual.conv1.weight.detach().clone())
    backbone.pretrained_cfg = CONFIG
    return backbone


def test_the_model_with_the_activation_of_the_weights_is_taken(open_clip):
    clip = load_clip_text(trunk(open_clip.model))
    assert open_clip.asked == [("Tiny-quickgelu", "openai")] and clip.model is open_clip.model


def test_a_trunk_with_other_weights_is_refused(open_clip):
    backbone = trunk(open_clip.model)
    with torch.no_grad():
        backbone.cls_token.add_(0.1)
    with pytest.raises(UserError, match="not those of timm/vit_tiny_clip.openai.*pretrained=True"):
        load_clip_text(backbone)
    open_clip.model.visual.proj = None
    with pytest.raises(UserError, match="no linear projection.*class_means"):
        load_clip_text(backbone)


def test_a_trunk_of_no_clip_model_is_refused(open_clip):
    backbone = trunk(open_clip.model)
    backbone.pretrained_cfg = {"architecture": "resnet18", "hf_hub_id": "timm/resnet18.a1"}
    with pytest.raises(UserError, match="resnet18 is none; take.*vit_base_patch16_clip"):
        load_clip_text(backbone)
    del backbone.pretrained_cfg
    with pytest.raises(UserError, match="open_clip knows"):
        load_clip_text(backbone)


def test_a_file_that_cannot_be_fetched(open_clip, monkeypatch):
    asked = {}

    def no_network(self, repo, revision, timeout):
        asked["timeout"] = timeout
        raise OSError("no route to host\nat all")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"cannot be fetched \(no route to host\).*HF_HOME.*start="):
        load_clip_text(trunk(open_clip.model))
    assert asked["timeout"] < 5 and not open_clip.asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_clip_text(trunk(open_clip.model))


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr("ltlearn.utils.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"open_clip.*ltlearn\[clip\]"):
        load_clip_text(nn.Identity())
