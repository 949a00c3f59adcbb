"""`ltlearn inspect RUN`: findings of a trained run, and the list after a person's actions."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ltlearn.errors import UserError
from ltlearn.experiments.clean_run import apply_actions, clean_run
from ltlearn.utils.run_folder import Run
from tests.helpers import TINY, ltlearn

FAST = ["--arch", "resnet20_cifar", "--epochs", "1", "--set", "model.width=4", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images in files, whose test set holds an image of training."""
    folder = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(0)
    for part, counts in (("train", (24, 9, 3)), ("test", (3, 3, 3))):
        for name, n in zip("abc", counts, strict=True):
            (folder / "data" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / part / name / f"{i}.png")
    shutil.copy(folder / "data/train/a/0.png", folder / "data/test/b/leak.png")
    done = ltlearn("train", folder / "data", *FAST, "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def inspected(run):
    done = ltlearn("inspect", run, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    return done


def read(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_gets_a_table_and_a_page(run, inspected):
    rows = read(run / "clean.csv")
    (leak,) = (row for row in rows if row["kind"] == "leak")
    assert leak["path"].endswith("test/b/leak.png") and leak["twin"].endswith("0.png")
    assert (leak["part"], leak["class"], leak["suggested_class"]) == ("test", "b", "a")
    assert "leak.png" in (run / "clean.html").read_text()
    lines = inspected.stdout.splitlines()
    assert lines[0].startswith("46 images") and any("1 leak" in line for line in lines)
    assert any(line.startswith("leak\t1.00\t") for line in lines)
    assert "clean.csv" in inspected.stderr and "clean.html" in inspected.stderr


def test_as_json_and_kinds(run, inspected):
    done = ltlearn("inspect", run, "--kinds", "leak,duplicate", "--json", cwd=run.parent)
    found = json.loads(done.stdout)
    assert found["searched"] == ["leak", "duplicate"] and found["counts"] == {"leak": 1}
    assert found["findings"][0]["kind"] == "leak"


def test_actions_make_a_list_that_train_takes(run, inspected):
    done = ltlearn("inspect", run, "--kinds", "leak", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    rows = read(run / "clean.csv")
    rows[0]["action"] = "drop"
    Run(run.parent).write_csv("actions.csv", rows)
    done = ltlearn("inspect", run, "--apply", run.parent / "actions.csv", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    cleaned = run / "cleaned.csv"
    assert "45 images" in done.stdout and f"ltlearn train {cleaned}" in done.stdout
    assert len(read(cleaned)) == 45 and "leak.png" not in cleaned.read_text()
    again = ltlearn("inspect", cleaned, "--json", cwd=run.parent)
    images = json.loads(again.stdout)["images"]
    assert images["test"] == 9 and images["train"] + images["valid"] == 36


@pytest.mark.parametrize(
    "words, fault",
    [
        (["--quick"], "--quick .*run"),
        (["--few", "<=20"], "--few .*run"),
        (["--seed", "7"], "--seed 7.* 0"),
        (["--kinds", "labels"], "--kinds .*leak.*'labels'"),
        (["--apply", "nothing.csv"], "nothing.csv"),
    ],
)
def test_wrong_options_for_a_run(run, words, fault):
    done = ltlearn("inspect", run, *words, cwd=run.parent)
    assert done.returncode == 2 and re.search(fault, done.stderr), done.stderr


def test_options_of_a_run_are_refused_for_images(run):
    done = ltlearn("inspect", run.parent / "data", "--kinds", "label", cwd=run.parent)
    assert done.returncode == 2 and "--kinds" in done.stderr


def test_images_beside_a_manifest_are_images(run, tmp_path):
    """Only what a run wrote is a run."""
    shutil.copytree(run.parent / "data", tmp_path / "data")
    (tmp_path / "data/manifest.json").write_text('{"files": 3}')
    done = ltlearn("inspect", tmp_path / "data", "--quick", cwd=tmp_path)
    assert done.returncode == 0 and "imbalance factor" in done.stdout


def test_without_the_extra(run, monkeypatch):
    monkeypatch.setattr("ltlearn.utils.extras.find_spec", lambda name: None)
    done = ltlearn("inspect", run, cwd=run.parent)
    assert done.returncode == 2 and "pip install 'ltlearn[clean]'" in done.stderr


def test_images_that_changed_since_the_training(run, tmp_path):
    shutil.copytree(run.parent / "data", tmp_path / "data")
    (tmp_path / "data/train/a/1.png").unlink()
    done = ltlearn("inspect", run, "--data", tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 2 and "images" in done.stderr


def test_a_run_on_arrays_has_rows_instead_of_paths(tmp_path):
    done = ltlearn(*TINY, "--smoke", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    issues = clean_run(Run(tmp_path / "run"), ["label", "duplicate", "leak"], device="cpu")
    assert all(one.path.split("[")[0] in issues.n_images for one in issues.findings)
    issues.to_csv(tmp_path / "actions.csv")
    with pytest.raises(UserError, match="not in files"):
        apply_actions(Run(tmp_path / "run"), tmp_path / "actions.csv", device="cpu")
