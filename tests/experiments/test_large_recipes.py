"""Every recipe of a large set, from its published files to the report, on a look-alike."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ltlearn.cli.app import app
from ltlearn.data import LTDataLoaders
from ltlearn.data.benchmarks import registry as benchmarks
from ltlearn.errors import UserError
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.read_recipe import load_recipe, recipe_names
from ltlearn.experiments.runner import run_recipe
from ltlearn.utils.run_folder import Run
from tests.data.lookalikes import facts_of, write_imagenet_lt, write_inat, write_places_lt

COUNTS = {"imagenet_lt": [12, 3, 30, 2], "places_lt": [9, 2, 25], "inat2018": [3, 14, 2, 2]}
LARGE = [n for n in recipe_names() if load_recipe(n).data.dataset in COUNTS]


def write(name, root):
    counts = COUNTS[name]
    if name == "imagenet_lt":
        return write_imagenet_lt(root, counts)
    if name == "places_lt":
        return write_places_lt(root, counts, "hyphens", "nested")
    return write_inat(root, counts)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Write a look-alike, and make its counts the published ones."""

    def make(name):
        write(name, tmp_path / name)
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, facts_of(name, COUNTS[name]))
        return tmp_path / name

    return make


def test_there_are_recipes_of_each():
    assert {load_recipe(n).data.dataset for n in LARGE} == set(COUNTS)
    assert {"imagenet_lt", "places_lt", "inat2018"} <= set(LARGE) and len(LARGE) == 12


@pytest.mark.parametrize("name", LARGE)
def test_it_runs_from_lists_to_report(name, copy, tmp_path):
    recipe = load_recipe(name)
    # The images, the classes and the steps of the recipe; a smaller network of the same family.
    arch = "test_vit" if name.endswith("_lift") else "resnet10t"
    small = load_recipe(name, [f"model.arch={arch}", "model.pretrained=false"]).smoke()
    assert small.data.size == 32 and small.methods == recipe.methods
    run = Run(tmp_path / "run")
    run_recipe(small, run, data_path=copy(recipe.data.dataset), device="cpu")
    manifest = run.read_json("manifest.json")
    counts = [min(n, small.data.n_max) for n in COUNTS[recipe.data.dataset]]
    assert manifest["status"] == "finished" and manifest["class_counts"] == counts
    assert [row["method"] for row in manifest["results"]["rows"]] == recipe.methods
    assert manifest["results"]["split"].startswith("published, imbalance factor")
    assert (run.path / "report.md").is_file()


def test_a_trunk_of_large_images_on_a_set_of_small_ones(tmp_path):
    generator = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 1)):
        for c in range(100):
            (tmp_path / part / f"class {c:02d}").mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f"class {c:02d}" / f"{i}.png")
    overrides = ["model.arch=test_vit", "model.pretrained=false", "data.imbalance_factor=2"]
    recipe = load_recipe("cifar100_lt_lift", overrides).smoke()
    recipe.data.n_max, recipe.data.test_per_class = 4, 1
    assert recipe.data.size == 112 and recipe.stage1.head_start == "class_means"
    assert load_recipe("cifar100_lt_lift").stage1.head_start == "text"
    run = Run(tmp_path / "run")
    run_recipe(recipe, run, data_path=tmp_path, device="cpu")
    manifest = run.read_json("manifest.json")
    assert [row["method"] for row in manifest["results"]["rows"]] == recipe.methods
    records = {s["method"]: s for s in manifest["stages"]}
    assert "HeadStart" in records["adaptformer"]["callbacks"]
    assert records["samn"]["trained"] == "SAMNLinear on normalised features"


def test_the_paper_protocol_and_a_comparison(copy, tmp_path):
    overrides = [
        "model.arch=resnet10t", "protocol=paper", "data.size=32", "stage1.epochs=1",
        "stage2.epochs=1", "stage1.batch_size=4", "method.crt.epochs=1",
    ]  # fmt: skip
    recipe = load_recipe("inat2018", [*overrides, "methods=['ce','crt']"])
    run, root = Run(tmp_path / "run"), copy("inat2018")
    run_recipe(recipe, run, data_path=root, device="cpu")
    manifest = run.read_json("manifest.json")
    assert manifest["validation_images"] == manifest["test_images"] == 3 * 4
    assert manifest["training_images"] == sum(COUNTS["inat2018"])
    lines = []
    found = compare_run(run, ["ce", "tau_norm"], notify=lines.append)
    assert found.methods == ["ce", "tau_norm"]
    assert any("paper protocol" in line and "on the images" in line for line in lines)


def test_the_sets_are_read_as_published(copy):
    dls = LTDataLoaders.from_dataset("imagenet_lt", copy("imagenet_lt"), size=32, bs=4)
    assert dls.class_counts.tolist() == COUNTS["imagenet_lt"], "nothing is carved off"
    assert (dls.valid.n, dls.test.n) == (8, 12) and dls.split.valid_from == "validation set"
    x, _ = dls.train.one_batch()
    assert x.shape == (4, 3, 32, 32)
    dls = LTDataLoaders.from_dataset("inat2018", copy("inat2018"), size=32, bs=4, valid_pct=0.3)
    assert dls.split.valid_from == "training images" and dls.valid.n > 0
    stats = benchmarks.BENCHMARKS["inat2018"].stats
    assert dls.normalize.mean.flatten().tolist() == pytest.approx([255 * m for m in stats[0]])


def test_a_part_of_a_set(copy):
    root = copy("imagenet_lt")
    dls = LTDataLoaders.from_dataset(
        "imagenet_lt", root, size=32, n_max=5, test_per_class=1, max_classes=3
    )
    assert dls.class_counts.tolist() == [5, 3, 5] and dls.c == 3 and dls.test.n == 3
    whole = LTDataLoaders.from_dataset("imagenet_lt", root, size=32)
    kept, paths = dls.train.dataset.data.paths, list(whole.train.dataset.data.paths)
    assert list(kept[:5]) == paths[:5], "the first of each class"


def test_links_out_of_the_folder_are_followed_on_request(copy, tmp_path):
    # Copies of ImageNet are often made of links; only the check of a copy could follow them.
    root = copy("imagenet_lt")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    overrides = [
        "model.arch=resnet10t", "model.pretrained=false", "methods=['ce']", "data.size=32",
    ]  # fmt: skip
    recipe = load_recipe("imagenet_lt", overrides).smoke()
    with pytest.raises(UserError, match="follow_links=True"):
        run_recipe(recipe, Run(tmp_path / "refused"), data_path=root, device="cpu")
    words = ["--data", str(root), "--smoke", "--quiet", "--out", str(tmp_path / "run")]
    for value in overrides:
        words += ["--set", value]
    done = CliRunner().invoke(app, ["recipe", "imagenet_lt", *words, "--follow-links"])
    assert done.exit_code == 0, done.output
    run = Run(tmp_path / "run")
    assert run.read_json("manifest.json")["follow_links"] is True
    assert compare_run(run, ["ce", "tau_norm"]).methods == ["ce", "tau_norm"]
    with pytest.raises(
        UserError, match=r"follow_links=True is for imagenet_lt, .* not for digits_lt"
    ):
        run_recipe(load_recipe("digits_lt"), Run(tmp_path / "digits"), follow_links=True)


REFUSED = {
    "factor": (
        {"imbalance_factor": 50},
        "imbalance_factor has no meaning for inat2018, which is l",
    ),
    "split": ({"split": "first_n"}, "split has no meaning for inat2018"),
    "transform": ({"transform": "x"}, "transform must be one of"),
    "workers": ({"num_workers": -1}, "num_workers must be a whole number"),
    "classes": ({"max_classes": 1}, "max_classes must be a whole number of at least 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(copy, case):
    kwargs, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        LTDataLoaders.from_dataset("inat2018", copy("inat2018"), **kwargs)


def test_recipes_refuse_it_too():
    with pytest.raises(UserError, match=r"data\.split.*inat2018"):
        load_recipe("inat2018", ["data.split=first_n"])
    with pytest.raises(UserError, match=r"data\.transform.*cifar10_lt"):
        load_recipe("cifar10_lt", ["data.transform=crop"])
    assert load_recipe("cifar10_lt", ["data.transform=crop", "data.size=112"]).data.size == 112
    with pytest.raises(UserError, match="mean and std belong together.*data.std"):
        load_recipe("cifar10_lt", ["data.mean=[0,0,0]"])
    with pytest.raises(UserError, match="follow_links.*digits_lt"):
        LTDataLoaders.from_dataset("digits_lt", follow_links=True)
    with pytest.raises(UserError, match="transform.*digits_lt"):
        LTDataLoaders.from_dataset("digits_lt", transform="crop")


def test_the_command_checks_a_copy(copy, tmp_path, monkeypatch):
    root = copy("places_lt")
    done = CliRunner().invoke(app, ["data", "places_lt", "--root", str(root)])
    assert done.exit_code == 0 and "as published" in done.output, done.output
    facts = replace(benchmarks.BENCHMARKS["places_lt"], largest=26)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "places_lt", facts)
    done = CliRunner().invoke(app, ["data", "places_lt", "--root", str(root), "--json"])
    assert done.exit_code == 1 and json.loads(done.output)["ok"] is False
    done = CliRunner().invoke(app, ["data", "inat2018", "--root", str(tmp_path / "no")])
    assert done.exit_code == 1 and "How to get iNaturalist 2018" in done.output
    assert "b1c6952ce38f31868cc50ea72d066cc3" in done.output
