"""A run whose stage 1 trains experts, from the command line."""

import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from ltlearn.data.benchmarks.digits import load_digits_images
from ltlearn.experiments.read_recipe import load_recipe
from tests.helpers import TINY, ltlearn

ROWS = ["balpoe", "expert_1", "expert_3", "crt"]
RUN = [*TINY, "--set", 'stage1.method="balpoe"', "--set", f"methods={json.dumps(ROWS)}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "run"
    done = ltlearn(*RUN, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_report_has_a_row_for_each_expert(run):
    report = (run / "report.md").read_text()
    for label in ("BalPoE", "BalPoE, expert 1", "BalPoE, expert 3", "BalPoE + cRT"):
        assert f"| {label} " in report, label
    methods = json.loads((run / "model.json").read_text())["methods"]
    assert [m["head"] for m in methods.values()] == ["ExpertHead"] * 3 + ["Linear"]
    assert [m["prior"] for m in methods.values()] == ["uniform", "train", "uniform", "uniform"]


def test_each_row_predicts_and_exports(run, tmp_path):
    images, _ = load_digits_images("test")
    for i in range(3):
        Image.fromarray(images.images[i]).convert("RGB").save(tmp_path / f"{i}.png")
    found = {}
    for method in ROWS:
        words = ["predict", run, tmp_path, "--csv", tmp_path / "out.csv", "--device", "cpu"]
        done = ltlearn(*words, "--method", method)
        assert done.returncode == 0, done.stderr
        found[method] = (tmp_path / "out.csv").read_text()
    assert len(set(found.values())) == len(ROWS)
    file = tmp_path / "model.onnx"
    done = ltlearn("export", run, "--method", "balpoe", "--to", "onnx", "--out", file)
    assert done.returncode == 0, done.stderr
    done = ltlearn("predict", file, tmp_path, "--csv", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    rows, ours = (t.splitlines() for t in ((tmp_path / "out.csv").read_text(), found["balpoe"]))
    assert [r.split(",")[:2] for r in rows] == [r.split(",")[:2] for r in ours]


def test_it_is_compared_and_resumed(run):
    done = ltlearn("compare", run, "--methods", "balpoe,expert_2,ncm", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "BalPoE, expert 2" in done.stdout and "to BalPoE" in done.stdout
    before = load_file(run / "checkpoints/seed0-stage1.safetensors")
    (run / "checkpoints/seed0-crt.json").unlink()
    done = ltlearn(*RUN, "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert "stage 2" in done.stderr + done.stdout, "only the classifier is trained again"
    after = load_file(run / "checkpoints/seed0-stage1.safetensors")
    assert before.keys() == after.keys() and all(before[k].equal(after[k]) for k in before)
    done = ltlearn("compare", run, "--methods", "samn", "--device", "cpu")
    assert done.returncode != 0 and "samn needs a linear" in done.stderr


def test_the_recipe_of_experts():
    recipe = load_recipe("cifar100_lt_experts_w16").settled()
    assert recipe.stage1.options() == {"alpha": 0.4, "tau": 1.0, "scale": 30.0}
    assert [e.accuracy for e in recipe.published()] == [52.0]
    sade = load_recipe("cifar100_lt_experts_w16", ["stage1.method=sade"]).settled()
    assert sade.methods == ["sade", "expert_1", "expert_2", "expert_3"]
    assert sade.stage1.options() == {"tau": 2.0, "scale": 30.0}
    assert [e.accuracy for e in sade.published()] == [49.8]
    for method in ("ce", "mixup", "balanced_softmax_stage1"):
        plain = load_recipe("cifar100_lt_experts_w16", [f"stage1.method={method}"]).settled()
        assert plain.methods == [method] and plain.stage1.lr == 0.1
