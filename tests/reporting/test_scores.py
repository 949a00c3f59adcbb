import re

import pytest
import torch

from ltlearn.metrics.report import shot_report
from ltlearn.reporting.scores import class_score_table
from ltlearn.reporting.table import ResultRow, ResultTable


def make_report(predictions=(0, 0, 1, 1, 0, 2), classes=("ant", "b|e<e>\n", "cat", "dog")):
    target = [0, 0, 1, 1, 2, 2]
    return shot_report(torch.tensor(predictions), target, [500, 50, 5, 4], classes=classes)


def make_table(*reports):
    row = ResultRow("ce", "CE", list(reports), "last epoch")
    seeds = list(range(len(reports)))
    return ResultTable([row], "clean", "split", "3f9a", "<20", seeds, "data")


def test_a_table_of_results_has_the_scores_of_each_group():
    scores = make_table(make_report()).scores()
    assert scores.head == ["method", "classes", "precision", "recall", "F1"]
    assert scores.rows == [
        ["CE", "all", "88.9", "83.3", "82.2"],
        ["CE", "many", "66.7", "100.0", "80.0"],
        ["CE", "medium", "100.0", "100.0", "100.0"],
        ["CE", "few", "100.0", "50.0", "66.7"],
    ]
    lines = str(scores).splitlines()
    assert lines[0].split() == scores.head and lines[1].split() == scores.rows[0]
    ends = [re.sub(r" +$", "", line)[-1] for line in lines[:5]]
    assert len({len(line) for line in lines[:5]}) == 1 and ends[0] == "1"
    assert "F1" not in make_table(make_report()).to_text(), "only when asked"


def test_scores_of_several_seeds_have_a_deviation():
    table = make_table(make_report(), make_report((0, 0, 1, 1, 2, 2)))
    assert table.scores().rows[3] == ["CE", "few", "100.0 ± 0.0", "75.0 ± 35.4", "83.3 ± 23.6"]


def test_the_table_of_the_classes_ends_with_the_means():
    table = class_score_table(make_report())
    assert table.rows[0] == ["ant", "many", "500", "2", "66.7", "100.0", "80.0"]
    assert table.rows[3] == ["dog", "few", "4", "0", "–", "–", "–"]
    assert [row[:2] for row in table.rows[4:]] == [
        ["mean of 3 classes", "all"],
        ["mean of 1 class", "many"],
        ["mean of 1 class", "medium"],
        ["mean of 1 class", "few"],
    ]
    assert table.rows[4][2:4] == ["555", "6"]


@pytest.mark.parametrize("kind", ["to_text", "to_markdown", "_repr_html_"])
def test_names_of_classes_are_harmless(kind):
    text = getattr(class_score_table(make_report()), kind)()
    assert "e<e>" not in text or kind == "to_text"
    assert "dog" in text and "F1" in text
    if kind == "to_markdown":
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {9}
