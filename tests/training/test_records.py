import re
from dataclasses import dataclass

import pandas as pd
import pytest

from ltlearn.training.records import (
    CorrectionRecord,
    PosthocRecord,
    Record,
    TrajectoryRecord,
    describe_selection,
)


def correction(value: float | None, chosen_on: str) -> dict:
    return {"stage": "post hoc", "method": "tau_norm", "value": value, "chosen_on": chosen_on}


def test_a_selection_names_the_epoch_and_the_strength():
    trained = TrajectoryRecord(epoch=[0, 1, 2], chosen=2)
    stages = [{"stage": "stage 2"}, correction(0.7, "validation")]
    assert describe_selection([], None) == "stage 1"
    assert describe_selection(stages[:1], trained) == "epoch 2 on validation"
    expected = "epoch 2 on validation, tau 0.7, chosen on validation"
    assert describe_selection(stages, trained) == expected


def test_a_correction_has_a_strength_and_no_epoch():
    assert describe_selection([correction(1.3, "test")], None) == "tau 1.3, selected on test"
    assert describe_selection([correction(1.0, "not chosen")], None) == "tau 1, not chosen"
    assert describe_selection([correction(None, "not chosen")], None) == "nothing to choose"


def make_trajectory(epochs=200, classes=100):
    rows = list(range(epochs + 1))
    return TrajectoryRecord(
        epoch=rows, loss=[None, *[0.5] * epochs], all=[0.5] * len(rows),
        balanced=[0.25] * len(rows), many=[0.75] * len(rows), medium=[0.5] * len(rows),
        few=[None] * len(rows), norms=[[1.0] * classes] * len(rows),
        seconds=[float(e) for e in rows], chosen=7,
    )  # fmt: skip


def test_a_trajectory_prints_in_short_however_long_it_is():
    record = make_trajectory()
    assert repr(record) == (
        "TrajectoryRecord: 200 epochs, kept: epoch 7 on validation; validation accuracy in %: "
        "all 50.0, balanced 25.0, many 75.0, medium 50.0"
    )
    html = record._repr_html_()
    first = re.findall(r"<tr[^>]*><td[^>]*>([^<]*)", html)
    assert first == ["0 (before the first step)", "7 (kept)", "200"]
    assert "font-weight: bold" in html.split("7 (kept)")[0].split("<tr")[-1]
    assert repr(TrajectoryRecord()) == "TrajectoryRecord: no epoch trained"
    assert "no epoch" in TrajectoryRecord()._repr_html_()


def test_a_trajectory_becomes_a_table_of_pandas():
    table = pd.DataFrame(make_trajectory(3).to_dict())
    assert table.balanced.tolist() == [0.25] * 4 and table.epoch.tolist() == [0, 1, 2, 3]


def test_records_print_in_short():
    record = PosthocRecord(
        method="ncm", value=None, chosen_on="not chosen", precision="fp32", seconds=0.5
    )
    assert "method=ncm" in repr(record) and "value" not in repr(record)
    record.method = "<x>" * 100
    assert len(repr(record)) < 200
    assert "&lt;x&gt;" in record._repr_html_() and "<x>" not in record._repr_html_()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (CorrectionRecord("temperature", 1.25, "validation"),
         "temperature 1.25, chosen on validation"),
        (CorrectionRecord("tau_norm", 0.7, "test"), "tau 0.7, selected on test"),
        (CorrectionRecord("logit_adjustment", 1.0), "tau 1, not chosen"),
        (CorrectionRecord("ncm"), "nothing to choose"),
        (CorrectionRecord("no longer installed", 2.0), "no longer installed 2, not chosen"),
    ],
)  # fmt: skip
def test_a_correction_names_its_strength_and_where_it_was_chosen(record, expected):
    assert record.describe() == expected
    assert expected in repr(record) and expected in record._repr_html_()
    assert record["value"] == record.value and dict(record)["curve"] == []


def test_a_record_of_another_module_prints_in_short_too():
    @dataclass(eq=False)
    class Own(Record):
        counts: list[int]
        name: str

    assert repr(Own([1] * 1000, "n" * 500)).startswith("Own(counts=1000 values, name=nnn")
    assert len(repr(Own([1] * 1000, "n" * 500))) < 120
