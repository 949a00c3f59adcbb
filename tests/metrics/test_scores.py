import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.metrics import ClassScores, class_scores, shot_report
from ltlearn.metrics.accuracy import mean_class_accuracy, per_class_accuracy
from ltlearn.metrics.scores import mean_scores


def loop_scores(labels, predictions, num_classes):
    """Precision, recall and F1 in plain Python; None where a denominator is 0."""
    rows = []
    for c in range(num_classes):
        pairs = list(zip(labels, predictions, strict=True))
        hits = sum(y == p == c for y, p in pairs)
        false = sum(p == c != y for y, p in pairs)
        missed = sum(y == c != p for y, p in pairs)
        tops = (hits, hits, 2 * hits)
        bottoms = (hits + false, hits + missed, 2 * hits + false + missed)
        rows.append([t / b if b else np.nan for t, b in zip(tops, bottoms, strict=True)])
    return np.array(rows).T


def test_scores_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, 60), rng.integers(1, 8, 60)
    scores = class_scores(labels, predictions, 9)
    expected = loop_scores(labels.tolist(), predictions.tolist(), 9)
    for values, own in zip(expected, (scores.precision, scores.recall, scores.f1), strict=True):
        assert own.shape == (9,) and own.dtype == np.float64
        np.testing.assert_allclose(own, values, atol=1e-12)
    accuracy = per_class_accuracy(torch.tensor(predictions), torch.tensor(labels), 9)
    np.testing.assert_allclose(scores.recall, accuracy.numpy(), atol=1e-12)
    assert scores.mean().recall == pytest.approx(mean_class_accuracy(predictions, labels, 9))


def test_what_is_undefined_is_nan():
    # 0: right. 1: has images, never predicted. 2: predicted, no image. 3: neither.
    scores = class_scores([0, 1, 1], [0, 2, 0], ["a", "b", "c", "d"])
    np.testing.assert_array_equal(scores.precision, [0.5, np.nan, 0, np.nan])
    np.testing.assert_array_equal(scores.recall, [1, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores.f1, [2 / 3, 0, 0, np.nan])


def test_a_class_that_is_never_predicted_lowers_the_mean_precision():
    scores = class_scores([0, 1, 1], [0, 2, 0], 4)
    mean = scores.mean()
    assert (mean.precision, mean.recall, mean.f1) == pytest.approx((0.25, 0.5, 1 / 3))
    few = scores.mean(np.array([False, True, True, True]))
    assert (few.precision, few.recall, few.f1) == (0, 0, 0)
    assert scores.mean([0]).precision == 0.5, "indices, too"
    assert scores.mean(torch.tensor([True, False, False, False])).recall == 1
    assert scores.mean([2, 3]) is None, "no image"
    assert isinstance(scores, ClassScores)


@pytest.mark.parametrize(
    "labels, predictions, message",
    [
        ([0, 1], [0], "predictions has 1 rows but labels has 2"),
        ([], [], "predictions is empty"),
        ([0, 3], [0, 1], "labels is 3 in row 1"),
        ([0, 1], [0, -1], "predictions is -1 in row 1"),
    ],
)
def test_wrong_labels(labels, predictions, message):
    with pytest.raises(UserError, match=message):
        class_scores(labels, predictions, 3)


def test_the_mean_over_seeds_needs_the_class_in_each_of_them():
    a, b = class_scores([0, 1, 1], [0, 1, 1], 2), class_scores([0, 1, 1], [0, 0, 0], 2)
    mean = mean_scores([a, b])
    np.testing.assert_allclose(mean.precision, [(1 + 1 / 3) / 2, np.nan])
    np.testing.assert_allclose(mean.recall, [1, 0.5])
    np.testing.assert_allclose(mean.f1, [0.75, 0.5])


def report_of_tail(**options):
    """Classes of 500, 50, 5 and 4 training images; the last has no test image."""
    predictions = torch.tensor([0, 0, 1, 1, 0, 2])
    return shot_report(predictions, [0, 0, 1, 1, 2, 2], [500, 50, 5, 4], **options)


def test_a_report_has_scores_by_class_and_group():
    report = report_of_tail(classes=["ant", "bee", "cat", "dog"])
    assert report.scores.precision.tolist()[:3] == [2 / 3, 1, 1]
    groups = report.group_scores
    assert list(groups) == ["all", "many", "medium", "few"]
    assert groups["few"].recall == report.few == 0.5
    assert groups["few"].f1 == pytest.approx(2 / 3) and groups["few"].precision == 1
    assert groups["all"].recall == pytest.approx(report.balanced)
    assert groups["all"].precision == pytest.approx((2 / 3 + 1 + 1) / 3)
    frame = report.to_frame()
    assert frame.loc[2, "f1"] == pytest.approx(2 / 3) and frame.loc[1, "name"] == "bee"
    assert frame.precision.isna().tolist() == [False, False, False, True]
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["group_scores"]["few"]["recall"] == 0.5
    html = report._repr_html_()
    assert "F1 %" in html and "66.7" in html
    assert "F1" not in str(report), "only when asked"


def test_a_group_without_test_images_and_a_report_without_predictions_have_no_scores():
    report = shot_report(torch.tensor([0, 1]), [0, 1], [500, 50, 5])
    assert report.group_scores["few"] is None and report.few is None
    old = replace(report, labels=None, predictions=None)
    assert old.scores is None and set(old.group_scores.values()) == {None}
    assert old.rows()[0]["precision"] is None and old.rows()[0]["accuracy"] == 1
    assert old.to_dict()["group_scores"]["all"] is None and "<table" in old._repr_html_()
