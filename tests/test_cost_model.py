"""The page on scale has the tables of the cost model, and the model adds up its terms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost_model import (
    SETS,
    Terms,
    device_bytes,
    show_bytes,
    show_seconds,
    stage1_step_s,
    tables,
)

ROOT = Path(__file__).parent.parent
TERMS = Terms(**json.loads((ROOT / "benchmarks" / "scale.json").read_text())["terms"])


def test_the_page_has_the_tables_of_the_measured_terms():
    page = (ROOT / "nbs" / "guide" / "scale.qmd").read_text(encoding="utf-8")
    for table in tables(TERMS).split("\n\n"):
        assert table in page


def test_more_classes_pixels_and_samn_cost_more():
    assert all(value >= 0 for value in TERMS.to_dict().values())
    plain = TERMS.head_step(64, 100, 64, samn=False)
    assert plain < TERMS.head_step(64, 100, 64, samn=True) < TERMS.head_step(64, 1000, 64, True)
    assert TERMS.decode(100) < TERMS.decode(200_000)


def test_more_gpus_share_the_arithmetic_and_add_the_gradients():
    large = SETS[3]
    assert stage1_step_s(large, 8) < stage1_step_s(large, 1) / 6
    # The gradients of a million classes take longer than the step.
    many = replace(large, classes=1_000_000)
    assert stage1_step_s(many, 64) > stage1_step_s(many, 8)
    # Weights, gradient and momentum of 1 M x 2,048 in float32, and logits with their gradient.
    assert device_bytes(many, 8) == 3 * 8.192e9 + 2 * 4 * 128 * 1e6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2e-4, "0.2 ms"), (0.3, "300 ms"), (90, "1.5 min"), (7_200, "2 h"), (864_000, "10 days")],
)
def test_times_and_bytes_have_a_fitting_unit(seconds, text):
    assert show_seconds(seconds) == text
    assert (show_bytes(8.2e9), show_bytes(950), show_bytes(2e15)) == ("8.2 GB", "950 B", "2,000 TB")
