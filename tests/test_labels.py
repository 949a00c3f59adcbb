import json
import re

import pytest

from ltlearn.methods import METHODS, Method, label_of, labels_of, stage1_methods
from tests.helpers import TINY, ltlearn


@pytest.mark.parametrize(
    ("method", "stage1", "label"),
    [
        ("samn", "ce", "CE + SAMN"), ("crt", "ce", "cRT"), ("ce", "ce", "CE"),
        ("glmc", "glmc", "GLMC"), ("samn", "glmc", "GLMC + SAMN"),
        ("glmc_samn", "glmc", "GLMC + SAMN"), ("crt", "mixup", "MixUp + cRT"),
        ("tau_norm", "cutmix", "CutMix + tau-norm"), ("slas_samn", "glmc", "GLMC + SLAS + SAMN"),
        ("ce", None, "as given"), ("samn", None, "SAMN"), ("crt", None, "cRT"),
    ],
)  # fmt: skip
def test_a_row_is_named_after_its_stage_1_and_its_method(method, stage1, label):
    assert label_of(method, stage1) == label


@pytest.mark.parametrize("stage1", [*stage1_methods(), None])
def test_labels_of_a_table_are_all_different(stage1):
    names = [m for m, row in METHODS.items() if row.kind != "stage 1" or m == stage1]
    labels = labels_of(names, stage1)
    assert list(labels) == names and len(set(labels.values())) == len(names)


def test_equal_labels_get_the_names_of_their_methods():
    assert labels_of(["glmc", "samn", "glmc_samn"], "glmc") == {
        "glmc": "GLMC", "samn": "GLMC + SAMN (samn)", "glmc_samn": "GLMC + SAMN (glmc_samn)",
    }  # fmt: skip


def test_a_method_that_is_not_registered_has_a_label():
    rows = {"mine": Method("Mine", "stage 2", "me, 2026")}
    assert labels_of(["mine"], rows=rows) == {"mine": "Mine"}
    assert label_of("mine", "glmc", rows) == "GLMC + Mine"


def test_a_run_and_its_comparison_use_these_labels(tmp_path):
    run = tmp_path / "run"
    done = ltlearn(
        *TINY, "--out", run, "--set", 'stage1.method="glmc"',
        "--set", 'methods=["glmc","samn","logit_adjustment"]',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = (run / "report.md").read_text()
    for text in (done.stdout, report):
        assert "GLMC + SAMN" in text and "GLMC + logit adjustment" in text
        assert re.search(r"tau [\d.]+, chosen on validation", text)
        assert "CE + SAMN" not in text and "logit_adjustment 1" not in text
    assert "### GLMC + SAMN: stage 2, epoch by epoch" in report
    methods = json.loads((run / "model.json").read_text())["methods"]
    assert [row["label"] for row in methods.values()] == [
        "GLMC", "GLMC + SAMN", "GLMC + logit adjustment"
    ]  # fmt: skip
    done = ltlearn("compare", run, "--methods", "glmc,tau_norm", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "GLMC + tau-norm" in done.stdout and "to GLMC" in done.stdout
    assert "* GLMC + tau-norm (`tau_norm`)" in (run / "compare.md").read_text()
