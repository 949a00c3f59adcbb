import json
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from ltlearn import UserError
from ltlearn.exporting.card import CardFacts, CardResult, render_card
from ltlearn.exporting.hub import HubOptions, publish
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.exporting.helpers import COUNTS, STEPS, make_source


@pytest.fixture
def hub(monkeypatch):
    """A hub in memory: what was created and uploaded."""
    calls = SimpleNamespace(created=[], uploaded=[], error=None)

    class Api:
        def __init__(self, **kwargs):
            calls.token = kwargs["token"]

        def create_repo(self, repo, **kwargs):
            if calls.error:
                raise calls.error
            calls.created.append((repo, kwargs))

            class Url(str):
                repo_id = repo

            return Url(f"https://hub/{repo}")

        def upload_folder(self, repo_id, folder_path, allow_patterns, **kwargs):
            files = {
                str(p.relative_to(folder_path)): p.read_bytes()
                for pattern in allow_patterns
                for p in folder_path.glob(pattern)
            }
            calls.uploaded.append((repo_id, files))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return calls


def make_facts(source, **kwargs):
    figures = {"all": 0.5, "balanced": 0.4, "many": None, "few": 0.1}
    results = [CardResult("CE", figures), CardResult("SAMN", figures, is_exported=True)]
    values = {"title": "Birds", "architecture": "resnet18", "results": results, "dataset": "birds"}
    return CardFacts(
        **{**values, "classes": source.classes, "class_counts": source.class_counts, **kwargs}
    )


def test_a_learner_is_published_with_its_card(hub, tmp_path):
    learn = make_lt_learner(make_dls(side=16), arch="resnet20_cifar")
    learn.retrain_classifier(1, 0.05, method="crt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/private.txt").write_text("mine")
    done = learn.push_to_hub("user/birds", out=tmp_path / "out", private=True, license="mit")
    assert done.url == "https://hub/user/birds" and done.kind == "hub" and done.difference <= 1e-6
    ((repo, files),) = hub.uploaded
    assert hub.created == [("user/birds", {"private": True, "exist_ok": True})]
    assert repo == "user/birds" and set(files) == {
        "README.md", "config.json", "model.safetensors", "cifar_resnet.py",
        "plots/class_counts.png",
    }  # fmt: skip
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.library_name == "timm"
    report = learn.shot_report("test")
    accuracy = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert accuracy["Accuracy"] == pytest.approx(100 * report.all, abs=0.01)
    assert done.code in card.text and "plots/class_counts.png" in card.text
    for name, n in zip(learn.dls.vocab, learn.dls.shot_counts.tolist(), strict=True):
        assert f"| {name} | {n} |" in card.text


def test_a_dry_run_uploads_nothing(hub, tmp_path):
    learn = make_lt_learner(make_dls(side=16), arch="resnet20_cifar")
    done = learn.push_to_hub("user/birds", out=tmp_path / "out", dry_run=True)
    assert hub.created == hub.uploaded == [] and done.url == ""
    assert (tmp_path / "out/README.md").is_file()
    with pytest.raises(UserError, match=r"dry_run=True.*out"):
        learn.push_to_hub("user/birds", dry_run=True)
    with pytest.raises(UserError, match=r"repo.*'a b/c'"):
        learn.push_to_hub("a b/c", out=tmp_path / "other", dry_run=True)
    assert not (tmp_path / "other").exists()


def test_what_the_hub_refuses_is_one_sentence_without_a_token(hub):
    hub.error = RuntimeError("401 Unauthorized\nfor hf_abcdefgh")
    learn = make_lt_learner(make_dls(side=16), arch="resnet20_cifar")
    with pytest.raises(UserError, match=r"user/birds.*401 Unauthorized.*login") as raised:
        learn.push_to_hub("user/birds")
    assert "abcdefgh" not in str(raised.value)


def test_timm_loads_what_is_on_the_hub(hub, tmp_path, monkeypatch):
    source = make_source("convnext_atto", "samn")
    folder = tmp_path / "out"
    done = publish(source, make_facts(source), {}, HubOptions("user/birds", folder))

    def download(repo_id, filename, **kwargs):
        assert repo_id == "user/birds"
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    space = {"timm": timm}
    exec(done.code.split("\n\n")[1].splitlines()[0], space)
    x = torch.randn(2, 3, *STEPS.size)
    with torch.no_grad():
        assert torch.allclose(space["model"](x), source.model(x), atol=1e-6)
    assert space["model"].pretrained_cfg["label_names"] == source.classes


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
def test_a_head_that_does_not_fold_leaves_as_onnx(hub):
    source = make_source("resnet8_cifar", "cosine")
    publish(source, make_facts(source), {}, HubOptions("user/birds"))
    ((_, files),) = hub.uploaded
    assert set(files) == {"README.md", "model.onnx", "model.pt"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "onnx"
    assert "hf_hub_download('user/birds', 'model.onnx')" in card.text
    assert "CosineLinear" in card.text


def test_names_from_data_do_not_break_the_card():
    source = make_source("resnet20_cifar")
    names = ["a|b", "two\nlines", "---", "<script>x</script>"]
    facts = make_facts(source, classes=names, title="x\n---\nlicense: other", dataset="a: b\n- c")
    card = render_card("user/birds", facts)
    again = ModelCard(str(card))
    assert again.data.license is None
    assert again.data.eval_results[0].dataset_name == "a: b - c"
    assert "<script" not in card.text and "| a\\|b | 500 |" in card.text
    assert len([line for line in card.text.splitlines() if line.startswith("| ")]) == 6 + 4


def test_a_long_list_of_classes_shows_its_ends():
    source = make_source("resnet20_cifar")
    classes = [f"class {c}" for c in range(8142)]
    facts = make_facts(source, classes=classes, class_counts=list(range(8142, 0, -1)), results=())
    text = render_card("user/birds", facts).text
    assert "8,132 more" in text and "class 8141" in text and len(text) < 4000
    assert "No accuracy is reported" in text


def test_the_config_of_pretrained_weights_keeps_their_licence_alone_if_used(hub, tmp_path):
    from dataclasses import replace

    source = make_source("resnet18")
    source.model.backbone.pretrained_cfg = {
        **source.model.backbone.pretrained_cfg, "license": "cc-by-nc-4.0",
    }  # fmt: skip
    for is_pretrained in (True, False):
        one = replace(source, is_pretrained=is_pretrained)
        publish(one, make_facts(one), {}, HubOptions("user/birds", tmp_path / "out", dry_run=True))
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert ("license" in config["pretrained_cfg"]) == is_pretrained
    assert len(COUNTS) == len(config["label_names"])


def test_files_of_an_earlier_export_are_not_uploaded(hub, tmp_path):
    out = tmp_path / "out"
    for head in ("cosine", "linear"):
        source = make_source("resnet20_cifar", head)
        publish(source, make_facts(source), {}, HubOptions("user/birds", out))
    assert (out / "model.onnx").is_file()
    first, last = (set(files) for _, files in hub.uploaded)
    assert first == {"README.md", "model.onnx", "model.pt"}
    assert last == {"README.md", "config.json", "model.safetensors", "cifar_resnet.py"}


@pytest.mark.parametrize("in_the_way", ["README.md/x", "plots"])
def test_names_in_the_way_are_reported_before_anything_is_written(hub, in_the_way, tmp_path):
    file = tmp_path / "out" / in_the_way
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    source = make_source("resnet20_cifar")
    with pytest.raises(UserError, match=r"out has a folder README\.md or a file plots"):
        publish(source, make_facts(source), {}, HubOptions("user/birds", tmp_path / "out"))
    assert not hub.uploaded and len(list((tmp_path / "out").iterdir())) == 1
