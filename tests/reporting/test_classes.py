import csv
import io
import re

import numpy as np
import pytest

from ltlearn.reporting.classes import ClassTable
from tests.helpers import Terminal, without_colour


def make_table(num_classes=3, methods=("ce", "samn"), **changes):
    accuracy = np.linspace(0.9, 0.1, num_classes)
    arguments = {
        "classes": [f"class {c}" for c in range(num_classes)],
        "groups": ["many"] * (num_classes - 1) + ["few"],
        "training_images": [10 * (c + 1) for c in range(num_classes)],
        "images": [5] * num_classes,
        "part": "test",
        "accuracy": {m: accuracy for m in methods},
        "labels": {m: m.upper() for m in methods},
        "method": methods[-1],
        "mistakes": [[(0, 0.5), (1, 0.25)]] + [[(0, 0.4)]] * (num_classes - 1),
    }
    return ClassTable(**{**arguments, **changes})


def cells(text):
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    assert len({len(row) for row in rows}) == 1
    return [[cell.strip() for cell in row] for row in rows]


def test_a_report_has_each_class_with_its_images_and_its_mistakes():
    text = make_table().to_markdown("classes.csv")
    assert "All 3 classes, the most frequent first. [classes.csv](classes.csv)" in text
    head, _, *rows = cells(text)
    assert head == [
        "class", "group", "training images", "test images", "CE %", "SAMN %", "SAMN takes it for"
    ]  # fmt: skip
    assert rows[0] == ["class 2", "few", "30", "5", "10.0", "10.0", "class 0 (40 %)"]
    assert rows[2][-1] == "class 0 (50 %), class 1 (25 %)"


def test_of_many_classes_a_report_has_the_worst():
    accuracy = np.linspace(0.9, 0.1, 100)
    accuracy[99] = np.nan  # no image: neither good nor bad
    table = make_table(100, accuracy={"ce": accuracy, "samn": accuracy})
    text = table.to_markdown("classes.csv")
    assert "The 20 of 100 classes that SAMN classifies worst." in text
    rows = cells(text)[2:]
    assert [row[0] for row in rows] == [f"class {c}" for c in range(98, 78, -1)]
    assert len(table.rows()) == 100 and table.rows()[99]["accuracy_ce"] is None


def test_the_worst_of_equal_classes_are_the_rarest():
    assert make_table(4, accuracy={"samn": np.zeros(4)}, methods=("samn",)).worst(2) == [0, 1]


def test_many_methods_leave_two_columns_and_all_of_them_in_the_file():
    table = make_table(methods=("ce", "a", "b", "c", "samn"))
    assert cells(table.to_markdown("f.csv"))[0][4:6] == ["CE %", "SAMN %"]
    assert {f"accuracy_{m}" for m in ("ce", "a", "b", "c", "samn")} <= table.rows()[0].keys()


def test_validation_images_are_not_called_test_images():
    table, file = make_table(part="validation"), io.StringIO()
    table.render(file)
    text = table.to_markdown("classes.csv") + file.getvalue()
    assert "test" not in text and "validation images" in text and "validate" in text
    assert "validation_images" in table.rows()[0] and "test_images" not in table.rows()[0]


def test_names_of_classes_are_harmless():
    nasty = "a|b\x1b[31m<i>\n[x](y)"
    table = make_table(classes=[nasty, "b", "c"])
    text = table.to_markdown("classes.csv")
    assert "\x1b" not in text and "<i>" not in text.replace("\\<", "")
    assert len(cells(text)) == 5
    file = Terminal()
    table.render(file)
    assert "\x1b[31m" not in file.getvalue()
    assert table.rows()[0]["class"] == nasty  # a CSV file keeps it


@pytest.mark.parametrize("num_classes", [3, 100])
def test_a_terminal_of_80_columns_shows_one_table(monkeypatch, num_classes):
    monkeypatch.setenv("COLUMNS", "80")
    table = make_table(num_classes, methods=("ce", "a", "samn"))
    file = Terminal()
    table.render(file)
    lines = without_colour(file.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    (head,) = [line for line in lines if "group" in line]
    assert head.split() == ["class", "group", "train", "test", "CE", "SAMN", "taken", "for"]
    assert sum(bool(re.match(r" *class \d", line)) for line in lines) == min(num_classes, 10)


def test_rows_are_those_of_a_csv_file():
    file = io.StringIO()
    rows = make_table().rows()
    writer = csv.DictWriter(file, rows[0])
    writer.writerows(rows)
    assert rows[1]["taken_for_samn"] == "class 0 (40.0 %)" and rows[1]["training_images"] == 20


def test_a_table_in_a_notebook():
    table = make_table(classes=["<b>a", "b", "c"])
    html = table._repr_html_()
    assert "&lt;b&gt;a" in html and "<b>a" not in html and ">SAMN takes it for<" in html
    assert repr(table) == "ClassTable of 3 classes: CE; SAMN"
