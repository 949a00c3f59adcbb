"""Methods and datasets from outside go through recipes, comparisons and the command line."""

import json
from contextlib import ExitStack

import pytest
import torch
from fastai.callback.core import Callback

from ltlearn import Method, UserError
from ltlearn.data.benchmarks import BENCHMARKS, ListedSet, register_benchmark
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.runner import run_recipe
from ltlearn.methods import registered_method
from ltlearn.utils.run_folder import Run
from tests.data.lookalikes import save_image, write_list
from tests.helpers import ltlearn
from tests.outside import SOURCE, PowerLoss, apply_shift, choose_shift, registered_gain

RECIPE = """
name = "toy"
title = "Methods from outside on handwritten digits"
methods = ["dimmed", "power", "gain", "shift"]

[data]
dataset = "digits_lt"
imbalance_factor = 50

[model]
arch = "resnet20_cifar"
width = 4

[stage1]
method = "dimmed"
strength = 0.25
epochs = 2
lr = 0.05

[stage2]
epochs = 2
lr = 5e-4

[method.power]
power = 1.5

[method.gain]
limit = 1.25

[provenance]
"data.dataset" = "own"
"data.imbalance_factor" = "own"
"model.arch" = "own"
"model.width" = "own"
"stage1.method" = "own"
"stage1.strength" = "own"
"stage1.epochs" = "own"
"stage1.lr" = "own"
"stage2.epochs" = "own"
"stage2.lr" = "own"
"method.power.power" = "own"
"method.gain.limit" = "own"
"""


class Dim(Callback):
    """Darken the images of stage 1."""

    used = []

    def __init__(self, strength):
        self.strength = strength

    def before_batch(self):
        if self.learn.training:
            self.used.append(self.strength)
            self.learn.xb = ((1 - self.strength) * self.learn.xb[0],)


METHODS_FROM_OUTSIDE = {
    "dimmed": Method(
        "dimmed CE", "stage 1", SOURCE, callbacks=lambda **options: [Dim(**options)],
        callback_options={"strength": 0.1}, prior="train",
    ),
    "power": Method(
        "power loss", "stage 2", SOURCE, "own values", loss=PowerLoss,
        loss_options={"power": 2.0}, values={"lr": 0.05}, prior="train",
    ),
    "shift": Method("shift", "post hoc", SOURCE, apply=apply_shift, choose=choose_shift),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    """A recipe of methods that are registered, and removed at the end."""
    with ExitStack() as registered:
        for name, row in METHODS_FROM_OUTSIDE.items():
            registered.enter_context(registered_method(name, row))
        registered.enter_context(registered_gain())
        file = tmp_path_factory.mktemp("outside") / "toy.toml"
        file.write_text(RECIPE)
        yield file


@pytest.fixture(scope="module")
def run(recipe_file):
    PowerLoss.used.clear()
    Dim.used.clear()
    folder = recipe_file.parent / "run"
    done = ltlearn("recipe", recipe_file, "--out", folder, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert all(label in done.stdout for label in ("dimmed CE", "power loss", "gain", "shift"))
    return Run(folder)


def test_a_recipe_gives_methods_their_options(run):
    assert set(Dim.used) == {0.25} and set(PowerLoss.used) == {1.5}
    values = run.read_json("manifest.json")["values"]
    assert values["stage1"]["strength"] == 0.25
    assert values["method"]["power"]["power"] == 1.5
    stages = run.read_json("manifest.json")["stages"]
    assert [stage["method"] for stage in stages] == ["dimmed", "power", "gain", "shift"]
    assert stages[1]["loss"] == "PowerLoss" and "Dim" in stages[0]["callbacks"]
    assert stages[2]["trained"] == "GainLinear" and values["method"]["gain"]["limit"] == 1.25


def test_an_option_may_have_the_name_of_an_attribute():
    row = Method(
        "copying", "stage 1", SOURCE, callbacks=lambda copy, options: [],
        callback_options={"copy": 0.1, "options": 0.2}, prior="train",
    )  # fmt: skip
    with registered_method("copying", row):
        given = ["stage1.method=copying", "methods=['samn']", "stage1.copy=1"]
        recipe = load_recipe("digits_lt", given).smoke().settled()
        assert recipe.stage1.options() == {"copy": 1.0, "options": 0.2}
        assert recipe.flat()["stage1.options"] == 0.2


def test_a_finished_run_is_loaded_with_its_methods(run, recipe_file):
    recipe = load_recipe(str(recipe_file))
    Dim.used.clear()
    result = run_recipe(recipe, run, device="cpu")
    assert Dim.used == [] and [row.method for row in result.table.rows] == recipe.methods
    for override in ("method.power.power=2.5", "stage1.strength=0.5"):
        with pytest.raises(UserError, match=override.replace("=", ".*")):
            run_recipe(load_recipe(str(recipe_file), [override]), run, device="cpu")


def test_a_comparison_has_methods_from_outside(run):
    found = compare_run(run, ["dimmed", "power", "gain", "shift", "crt"], priors="uniform")
    assert found.stage1 == "dimmed" and len(found.outcomes) == 5
    assert found.of("gain")[0].stages[0]["trained"] == "GainLinear"
    assert found.of("power")[0].stages[0]["loss"] == "PowerLoss"
    assert found.of("shift")[0].stages[0]["method"] == "shift"
    text = (run.path / "compare.md").read_text()
    assert SOURCE in text and "power loss" in text


def test_the_command_line_knows_methods_from_outside(run, recipe_file):
    listed = json.loads(ltlearn("methods", "--json").stdout)
    assert {"dimmed", "power", "gain", "shift"} <= {row["name"] for row in listed}
    done = ltlearn("compare", run.path, "--methods", "dimmed,power,gain", "--quiet")
    assert done.returncode == 0 and "power loss" in done.stdout and "gain" in done.stdout
    done = ltlearn("recipe", recipe_file, "--set", "stage1.force=1")
    assert done.returncode == 2 and "stage1.force" in done.stderr and "strength" in done.stderr
    done = ltlearn("recipe", recipe_file, "--set", "stage1.method=ce")
    assert done.returncode == 2 and "dimmed" in done.stderr


def test_a_stage_that_is_missing_is_trained_again(run, recipe_file):
    before = run.read_json("manifest.json")["results"]
    for name in ("gain", "power"):
        (run.path / f"checkpoints/seed0-{name}.safetensors").unlink()
    done = ltlearn("recipe", recipe_file, "--out", run.path, "--device", "cpu", "--resume")
    assert done.returncode == 0, done.stderr
    after = run.read_json("manifest.json")["results"]
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert (old["method"], old["reports"]) == (new["method"], new["reports"])


def test_predictions_use_a_method_from_outside(run):
    for method in (*METHODS_FROM_OUTSIDE, "gain"):
        predictor = Predictor(run.path, method)
        height, width = predictor.facts.size
        pixels = torch.zeros(2, 3, height, width, dtype=torch.uint8)
        assert predictor.logits(pixels).shape == (2, 10)
    assert predictor.facts.methods["power"]["prior"] == "train"


BIRDS = {"robin": 6, "wren": 4, "tit": 3}


@pytest.fixture
def birds(tmp_path):
    """A dataset that is published as lists, registered from outside."""
    for part, counts in (("train", BIRDS), ("test", dict.fromkeys(BIRDS, 2))):
        rows = []
        for label, (bird, n) in enumerate(counts.items()):
            for i in range(n):
                name = f"images/{bird}/{part}{i}.jpg"
                save_image(tmp_path / name, 10 * label + i)
                rows.append((name, label))
        write_list(tmp_path / f"{part}.txt", rows)
    register_benchmark(
        ListedSet(
            name="toy_birds", title="Toy birds", classes=3, class_order="as in the list",
            sizes={"train": 13, "test": 6}, each={"test": 2}, largest=6, smallest=3,
            forms=({"train": "train.txt", "test": "test.txt"},), transform="crop_flip",
            class_of=lambda folder: folder.rpartition("/")[2],
        )
    )  # fmt: skip
    yield tmp_path
    del BENCHMARKS["toy_birds"]


def test_the_command_line_checks_a_dataset_from_outside(birds):
    done = ltlearn("data", "toy_birds", "--root", birds)
    assert done.returncode == 0 and "Toy birds" in done.stdout, done.stderr
    (birds / "images" / "wren" / "train0.jpg").unlink()
    done = ltlearn("data", "toy_birds", "--root", birds)
    assert done.returncode == 1 and "train0.jpg" in done.stdout


def test_a_dataset_from_outside_goes_through_a_recipe(birds, tmp_path):
    words = [
        "--set", "data.dataset=toy_birds", "--set", "data.size=32", "--set", "stage1.epochs=1",
        "--set", "model.arch=resnet20_cifar", "--set", "model.width=4", "--set", "methods=['ce']",
        "--set", "model.pretrained=false", "--device", "cpu",
    ]  # fmt: skip
    done = ltlearn("recipe", "imagenet_lt", *words, "--data", birds, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    manifest = Run(tmp_path / "run").read_json("manifest.json")
    assert manifest["values"]["data"]["dataset"] == "toy_birds" and manifest["test_images"] == 6
    with pytest.raises(UserError, match=r"data\.imbalance_factor.*toy_birds"):
        load_recipe("imagenet_lt", ["data.dataset=toy_birds", "data.imbalance_factor=5"])
    with pytest.raises(UserError, match=r"data\.dataset='toy_bird'.*toy_birds"):
        load_recipe("imagenet_lt", ["data.dataset=toy_bird"])
