"""Runs whose stage 1 is a linear probe: recipes of a user's images, `retrain` with a new head."""

import json
import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ltlearn import UserError
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.own_data import own_recipe
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.runner import run_recipe
from ltlearn.methods import METHODS
from ltlearn.training.features import FeatureBank
from ltlearn.utils.run_folder import Run
from tests.helpers import ltlearn

COUNTS = {"ant": 12, "bee": 6, "cow": 4}
OPTIONS = {"model.arch": "resnet10t", "data.size": 32}
SHORT = ["stage2.epochs=1", "stage1.batch_size=16"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "photos"
    rng = np.random.default_rng(0)
    for part, more in (("train", 0), ("test", -2)):
        for c, (name, n) in enumerate(COUNTS.items()):
            (folder / part / name).mkdir(parents=True)
            for i in range(n + more):
                pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., c] += 120
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(photos):
    """The file of a trained backbone, whose classifier has other classes."""
    torch.manual_seed(0)
    file = photos.parent / "mine.pth"
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), file)
    return file


@pytest.fixture
def extracted(monkeypatch):
    """Return the numbers of images that passed through a backbone."""
    found, extract = [], FeatureBank._extract

    def counted(self, store, backbone, dl, *args):
        found.append(dl.n)
        return extract(self, store, backbone, dl, *args)

    monkeypatch.setattr(FeatureBank, "_extract", counted)
    return found


def test_train_and_compare_look_at_each_image_once(photos, weights, tmp_path, extracted):
    values = {**OPTIONS, "model.pretrained": str(weights), "stage1.method": "probe"}
    recipe = own_recipe(photos, ["samn", "crt"], values, SHORT)
    row = METHODS["probe"]
    assert recipe.methods == ["probe", "samn", "crt"] and recipe.stage1.epochs == 20
    assert recipe.stage1.lr == row.values["lr"] / 4
    assert recipe.stage1.weight_decay == row.values["wd"]
    assert recipe.provenance["stage1.lr"].startswith("own: ")
    run, cache = Run(tmp_path / "run"), tmp_path / "cache"
    result = run_recipe(recipe, run, device="cpu", cache_path=cache, precision="fp32")
    n_test = sum(COUNTS.values()) - 6
    assert sorted(extracted) == sorted([sum(COUNTS.values()) - extracted[1], extracted[1], n_test])
    stage1 = next(s for s in result.manifest["stages"] if s["stage"] == "stage 1")
    assert (stage1["trained"], stage1["method"], stage1["head"]) == ("head", "probe", "new")
    assert "linear probe + SAMN" in (run.path / "report.md").read_text()
    extracted.clear()
    table = compare_run(run, "probe,samn,tau_norm,ncm", device="cpu", cache_path=cache)
    assert table.methods == ["probe", "samn", "tau_norm", "ncm"] and extracted == []
    (found,) = Predictor(run.path).predict([photos / "test/ant/0.png"])
    assert found.classes[0] in COUNTS


def test_retrain_with_a_new_head_begins_from_a_probe(photos, weights, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ltlearn"):
        recipe = own_recipe(photos, ["samn"], OPTIONS, SHORT, checkpoint=weights, reset=True)
    assert caplog.text.count("samn needs a trained classifier, and reset=True leaves none") == 1
    assert (recipe.stage1.method, recipe.methods) == ("probe", ["probe", "samn"])
    assert not recipe.starts_without_head and recipe.named_stage1 == "probe"
    caplog.clear()
    plain = own_recipe(photos, ["crt"], OPTIONS, SHORT, checkpoint=weights, reset=True)
    assert plain.starts_without_head and plain.methods == ["crt"] and "probe" not in caplog.text


def test_the_command_that_retrains(photos, weights, tmp_path):
    done = ltlearn(
        "retrain", "--checkpoint", weights, "--data", photos, "--arch", "resnet10t", "--size", "32",
        "--reset", "--method", "tau_norm", "--precision", "fp32", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stage 1, linear probe, 20 epochs on features of resnet10t" in done.stderr
    values = json.loads((tmp_path / "run" / "manifest.json").read_text())["values"]
    assert values["stage1"]["method"] == "probe" and values["stage1"]["start"] == "none"


def test_recipes_with_a_probe_that_are_refused(photos, weights):
    values = {"stage1.method": "probe"}
    with pytest.raises(UserError, match="'probe'.*resnet32_cifar.*arch.*FILE"):
        own_recipe(photos, ["crt"], {**values, "model.arch": "resnet32_cifar"})
    # Asked for, random features are taken as they are.
    random = {**values, **OPTIONS, "model.pretrained": False}
    assert own_recipe(photos, ["crt"], random).stage1.method == "probe"
    given = {**values, **OPTIONS, "model.pretrained": str(weights)}
    for override, words in (
        ("stage1.start=end", "stage1.start must be one of none, class_means, logistic, got 'end'"),
        ("stage1.start=1", "stage1.start must be one of none"),
        ("stage1.epochs=0", "stage1.epochs .*1.* 0"),
        ("stage1.trains=last_block", "stage1.trains .*last_block"),
        ("stage1.warmup_epochs=1", "stage1.warmup_epochs .*probe"),
        ("stage1.grad_checkpointing=true", "stage1.grad_checkpointing .*probe"),
        ("stage1.head_start=class_means", "stage1.head_start .*probe"),
        ("protocol=paper", "'probe'.*protocol='clean'"),
    ):
        with pytest.raises(UserError, match=words):
            own_recipe(photos, ["crt"], given, [override])
    with pytest.raises(UserError, match="stage1.start is an option of probe"):
        load_recipe("digits_lt", ["stage1.start=none"])


def test_options_for_the_backbone_are_refused_before_a_run_begins(photos, weights):
    given = {**OPTIONS, "model.pretrained": str(weights), "stage1.method": "probe"}
    with pytest.raises(UserError, match="grad_checkpointing.*probe.*leave it out"):
        own_recipe(photos, ["samn"], {**given, "stage1.grad_checkpointing": True}).settled()


@pytest.mark.parametrize("method", ["bitfit", "lora"])
def test_an_adapted_backbone_needs_weights_unless_random_ones_are_asked_for(photos, method):
    given = {"stage1.method": method, "model.arch": "resnet20_cifar", "data.size": 32}
    with pytest.raises(UserError, match=f"{method}.*resnet20_cifar.*arch.*weights='FILE'"):
        own_recipe(photos, ["samn"], given)
    assert (
        own_recipe(photos, ["samn"], {**given, "model.pretrained": False}).model.pretrained is False
    )
