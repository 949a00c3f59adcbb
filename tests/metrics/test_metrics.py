import json
import math
import random

import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.metrics.accuracy import mean_class_accuracy, per_class_accuracy
from ltlearn.metrics.calibration import expected_calibration_error, negative_log_likelihood
from ltlearn.metrics.report import ShotReport, mean_and_sd, shot_report
from ltlearn.metrics.shots import shot_groups, shot_thresholds_text

COUNTS = [500, 101, 100, 60, 21, 20, 19, 5, 1]


def data(n=400, num_classes=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, num_classes, generator=generator)
    target = torch.randint(num_classes, (n,), generator=generator)
    return logits, target


def loop_softmax(row):
    exps = [math.exp(z - max(row)) for z in row]
    return [e / sum(exps) for e in exps]


def loop_report(logits, target, counts, few):
    """Every number of a report in plain Python."""
    rows, labels = logits.double().tolist(), target.tolist()
    hits, total = [0] * len(counts), [0] * len(counts)
    nll, pairs = 0.0, []
    for row, y in zip(rows, labels, strict=True):
        p = loop_softmax(row)
        guess = row.index(max(row))
        total[y] += 1
        hits[y] += guess == y
        nll -= math.log(p[y])
        pairs.append((p[guess], guess == y))
    accuracy = {c: hits[c] / total[c] for c in range(len(counts)) if total[c]}

    def mean(classes):
        values = [accuracy[c] for c in classes if c in accuracy]
        return sum(values) / len(values) if values else None

    def is_few(n):
        return n < 20 if few == "<20" else n <= 20

    every = range(len(counts))
    return {
        "all": sum(hits) / len(rows),
        "balanced": mean(every),
        "many": mean([c for c in every if counts[c] > 100]),
        "medium": mean([c for c in every if counts[c] <= 100 and not is_few(counts[c])]),
        "few": mean([c for c in every if is_few(counts[c])]),
        "ece": loop_ece(pairs, 15),
        "nll": nll / len(rows),
    }


def loop_ece(pairs, n_bins):
    error = 0.0
    for b in range(n_bins):
        inside = [(p, ok) for p, ok in pairs if b / n_bins < p <= (b + 1) / n_bins]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(ok for _, ok in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(accuracy - confidence)
    return error


def assert_equals_loop(report, expected):
    for name, value in expected.items():
        got = getattr(report, name)
        assert (got is None) == (value is None), name
        if value is not None:
            assert got == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("few", ["<20", "<=20"])
@pytest.mark.parametrize("as_array", [False, True])
def test_report_equals_a_plain_loop(few, as_array):
    logits, target = data()
    args = (logits.numpy(), target.numpy(), np.array(COUNTS)) if as_array else (logits, target)
    report = shot_report(*args[:2], args[2] if as_array else torch.tensor(COUNTS), few=few)
    assert_equals_loop(report, loop_report(logits, target, COUNTS, few))
    assert report.n_images == 400
    assert report.per_class_total.sum() == 400


def test_blocks_do_not_change_the_report(monkeypatch):
    logits, target = data()
    whole = shot_report(logits, target, COUNTS).to_dict()
    monkeypatch.setattr("ltlearn.metrics.rows._BLOCK_NUMBERS", 60)  # 6 rows at a time
    parts = shot_report(logits, target, COUNTS).to_dict()
    assert parts == whole


def test_class_with_exactly_twenty_images():
    under, up_to = shot_groups(torch.tensor(COUNTS)), shot_groups(torch.tensor(COUNTS), "<=20")
    assert under["many"].tolist() == [True, True] + 7 * [False]
    assert under["medium"].tolist() == 2 * [False] + 4 * [True] + 3 * [False]
    assert up_to["medium"].tolist() == 2 * [False] + 3 * [True] + 4 * [False]
    assert up_to["few"].tolist() == 5 * [False] + 4 * [True]
    for groups in (under, up_to):
        assert groups["many"].dtype == torch.bool
        assert (sum(mask.int() for mask in groups.values()) == 1).all()


@pytest.mark.parametrize(
    ("factor", "under", "up_to"),
    [
        (10, [69, 31, 0], [69, 31, 0]),
        (50, [41, 41, 18], [41, 40, 19]),
        (100, [35] * 2 + [30], None),
    ],
)
def test_group_sizes_of_cifar100_lt(factor, under, up_to):
    counts = torch.tensor([int(500 * factor ** (-c / 99) + 1e-9) for c in range(100)])
    assert [int(mask.sum()) for mask in shot_groups(counts).values()] == under
    if up_to:
        assert [int(mask.sum()) for mask in shot_groups(counts, "<=20").values()] == up_to


def test_a_report_states_on_how_many_images_each_group_rests():
    target = torch.tensor([0] * 40 + [1] * 5 + [2] * 3)
    report = shot_report(target, target, [500, 10, 10, 10])
    assert {name: (g.classes, g.images) for name, g in report.groups.items()} == {
        "many": (1, 40), "medium": (0, 0), "few": (2, 8),
    }  # fmt: skip
    assert report.groups["few"].step == pytest.approx(1 / 6)
    assert [report.groups[name].is_small for name in ("many", "medium", "few")] == [
        False,
        False,
        True,
    ]
    assert "evaluated images: many 40 in 1 class, few 8 in 2 classes" in str(report)
    assert "few rests on 8 images; one image can change its accuracy by 16.7 points" in str(report)
    assert report.to_dict()["group_images"] == {"many": 40, "medium": 0, "few": 8}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_detected(dtype, caplog):
    """Probabilities taken as logits once gave a calibration error of 45 % for 3 %."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 5, generator=generator)
    probs, target = logits.softmax(1).to(dtype), torch.arange(500) % 5
    with caplog.at_level("INFO", "ltlearn"):
        found = shot_report(probs, target, COUNTS5)
        assert "probabilities=False" in caplog.text and len(caplog.records) == 1
        given = shot_report(probs, target, COUNTS5, probabilities=True)
        from_logits = shot_report(logits, target, COUNTS5)
        assert len(caplog.records) == 1
    assert (found.ece, found.nll) == (given.ece, given.nll)
    near = 0.02 if dtype.itemsize == 2 else 1e-6
    assert found.nll == pytest.approx(from_logits.nll, rel=near)
    wrong = shot_report(probs, target, COUNTS5, probabilities=False)
    assert wrong.nll != pytest.approx(given.nll, rel=0.1) and wrong.all == given.all
    assert shot_report(probs.float().numpy(), target, COUNTS5).nll == pytest.approx(
        given.nll, rel=near
    )


def test_logits_near_probabilities_stay_logits():
    target = torch.tensor([0, 1, 1])
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    for logits in (probs.log(), probs - 1, 2 * probs, probs * torch.tensor([[1], [1], [1.1]])):
        found = shot_report(logits, target, [9, 9])
        assert found.nll == shot_report(logits, target, [9, 9], probabilities=False).nll


COUNTS5 = [200, 90, 40, 18, 6]


def test_empty_group_is_none_and_prints_as_a_dash():
    logits, target = data(num_classes=3)
    report = shot_report(logits, target, [500, 300, 200])
    assert report.medium is None and report.few is None
    lines = str(report).splitlines()
    assert [line.split() for line in lines if line.startswith(("medium", "few"))] == [
        ["medium", "–"],
        ["few", "–"],
    ]
    assert "many >100 (3 classes), medium 20-100 (0), few <20 (0)" in lines[-1]
    assert "nan" not in str(report).lower()


def test_text_states_thresholds_and_one_decimal():
    pred = torch.tensor([0, 0, 1, 2])
    report = shot_report(pred, torch.tensor([0, 0, 0, 2]), [500, 30, 2], few="<=20")
    text = str(report)
    assert "all        75.0" in text
    assert "balanced   83.3" in text
    assert "many >100 (1 class), medium 21-100 (1), few <=20 (1)" in text
    assert "ECE" not in text and "\x1b" not in text
    assert "1 of them without an image" in text
    assert shot_thresholds_text() == "many >100, medium 20-100, few <20"


def test_class_without_a_test_image_is_left_out():
    logits, target = data()
    keep = (target != 3) & (target != 8)
    logits, target = logits[keep], target[keep]
    report = shot_report(logits, target, COUNTS)
    assert np.flatnonzero(np.isnan(report.per_class)).tolist() == [3, 8]
    assert_equals_loop(report, loop_report(logits, target, COUNTS, "<20"))
    only_many = shot_report(logits[target < 2], target[target < 2], COUNTS)
    assert only_many.few is None and only_many.group_sizes["few"] == 3


def test_class_without_a_training_image_is_few_shot():
    assert shot_groups([50, 0])["few"].tolist() == [False, True]


def test_to_dict_and_rows_are_json_ready():
    logits, target = data()
    keep = target != 3
    report = shot_report(logits[keep], target[keep], COUNTS, classes=list("abcdefghi"))
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["per_class"][3] is None
    assert record["few_rule"] == "<20" and record["classes"][0] == "a"
    assert record["all"] == report.all
    rows = json.loads(json.dumps(report.rows(), allow_nan=False))
    assert [row["shot"] for row in rows] == ["many"] * 2 + ["medium"] * 4 + ["few"] * 3
    assert rows[3] == {
        "label": 3,
        "name": "d",
        "shot": "medium",
        "train_images": 60,
        "test_images": 0,
        "accuracy": None,
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,
    }


def test_two_classes():
    report = shot_report(
        torch.tensor([[1.0, 0], [0, 1], [2, 0]]), torch.tensor([0, 1, 1]), [200, 3]
    )
    assert (report.all, report.balanced) == (pytest.approx(2 / 3), 0.75)
    assert (report.many, report.medium, report.few) == (1.0, None, 0.5)


def test_predictions_have_no_calibration():
    logits, target = data()
    from_logits, from_pred = (
        shot_report(output, target, COUNTS) for output in (logits, logits.argmax(1).numpy())
    )
    assert from_pred.ece is None and from_pred.nll is None
    assert from_pred.all == from_logits.all
    np.testing.assert_array_equal(from_pred.per_class, from_logits.per_class)


def test_probabilities_equal_logits():
    logits, target = data()
    a = shot_report(logits, target, COUNTS)
    b = shot_report(logits.double().softmax(1), target, COUNTS, probabilities=True)
    assert (a.ece, a.nll) == (pytest.approx(b.ece), pytest.approx(b.nll))
    assert (a.all, a.balanced, a.few) == (b.all, b.balanced, b.few)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    logits, target = data()
    logits = logits.to(dtype)
    report = shot_report(logits, target, COUNTS)
    assert_equals_loop(report, loop_report(logits, target, COUNTS, "<20"))
    shot_report(logits.softmax(1), target, COUNTS, probabilities=True)


def test_large_logits_stay_finite():
    report = shot_report(torch.tensor([[1e30, 0], [-1e30, 0]]), torch.tensor([0, 0]), [9, 9])
    assert math.isfinite(report.nll) and report.ece == pytest.approx(0.5)


def test_logits_with_a_gradient_and_read_only_arrays():
    logits, target = data()
    expected = shot_report(logits, target, COUNTS).nll
    assert shot_report(logits.clone().requires_grad_(), target, COUNTS).nll == expected
    array = logits.numpy().copy()
    array.setflags(write=False)
    assert shot_report(array, target, COUNTS).nll == expected


def test_expected_calibration_error_by_hand():
    # 2 bins of (0, 1/2] and (1/2, 1]: the second has confidences .9 .8 .6 with one hit of three,
    # the first .5 with a hit.
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    target = torch.tensor([0, 0, 1, 0])
    expected = 3 / 4 * abs(1 / 3 - 2.3 / 3) + 1 / 4 * abs(1 - 0.5)
    assert expected_calibration_error(probs, target, 2) == pytest.approx(expected)


@pytest.mark.parametrize("n_bins", [1, 7, 15, 100])
def test_expected_calibration_error_equals_a_loop(n_bins):
    logits, target = data(seed=3)
    probs = logits.double().softmax(1)
    pairs = [
        (max(row), row.index(max(row)) == y)
        for row, y in zip(probs.tolist(), target.tolist(), strict=True)
    ]
    got = expected_calibration_error(probs, target, n_bins)
    assert got == pytest.approx(loop_ece(pairs, n_bins), abs=1e-12)


def test_perfectly_confident_and_right():
    assert expected_calibration_error(torch.eye(4), torch.arange(4)) == 0
    assert negative_log_likelihood(torch.eye(4), torch.arange(4)) == 0


def test_negative_log_likelihood_of_a_zero_is_finite():
    nll = negative_log_likelihood(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 0]))
    assert nll == pytest.approx((708.396418532264 + math.log(2)) / 2)


def test_per_class_accuracy_equals_a_loop():
    rng = random.Random(0)
    target = [rng.randrange(5) for _ in range(60)]
    pred = [rng.randrange(6) for _ in range(60)]
    got = per_class_accuracy(torch.tensor(pred), torch.tensor(target), 6)
    for c in range(5):
        mine = [p == c for p, y in zip(pred, target, strict=True) if y == c]
        assert float(got[c]) == pytest.approx(sum(mine) / len(mine))
    assert got[5].isnan()
    expected = sum(got[:5].tolist()) / 5
    assert mean_class_accuracy(torch.tensor(pred), torch.tensor(target), 6) == pytest.approx(
        expected
    )


def report_with(**values) -> ShotReport:
    base = shot_report(*data(), COUNTS)
    fields = {name: getattr(base, name) for name in ShotReport.__dataclass_fields__}
    return ShotReport(**{**fields, **values})


def test_mean_and_sd_over_seeds():
    reports = [report_with(all=a, few=None) for a in (0.5, 0.6, 0.7)]
    result = mean_and_sd(reports)
    assert result["all"] == (pytest.approx(0.6), pytest.approx(0.1))
    assert result["few"] is None
    assert list(result) == ["all", "balanced", "many", "medium", "few", "ece", "nll"]
    assert mean_and_sd(reports[:1])["all"] == (0.5, None)
    mixed = [report_with(ece=None), report_with()]
    assert mean_and_sd(mixed)["ece"] is None


LOGITS, TARGET = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
BAD = LOGITS.clone()
BAD[2, 1] = float("nan")
INFINITE = LOGITS.clone()
INFINITE[3, 0] = float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shot_groups(COUNTS, "<30"), "few must be .*<20, <=20.* got '<30'"),
        (lambda: shot_groups([5, -1]), "class_counts is -1 for class 1"),
        (lambda: shot_groups([]), "class_counts is empty"),
        (lambda: shot_groups([1.5, 2]), "class_counts is 1.5 at index 0"),
        (lambda: shot_groups([[1, 2]]), r"class_counts has shape \(1, 2\)"),
        (lambda: shot_groups(["a", "b"]), "must hold whole numbers"),
        (lambda: shot_report(LOGITS, TARGET, [9, 9]), "output has 3 columns .* 2 classes"),
        (
            lambda: shot_report(LOGITS[:3], TARGET, [9] * 3),
            "output has 3 rows but target has 4",
        ),
        (
            lambda: shot_report(TARGET[:3], TARGET, [9] * 3),
            "output has 3 rows but target has 4",
        ),
        (lambda: shot_report(LOGITS, TARGET + 1, [9] * 3), "target is 3 in row 2; .* 0 to 2"),
        (lambda: shot_report(LOGITS, TARGET - 1, [9] * 3), "target is -1 in row 0"),
        (lambda: shot_report(TARGET + 1, TARGET, [9] * 3), "output is 3 in row 2"),
        (lambda: shot_report(LOGITS[:0], TARGET[:0], [9] * 3), "no image to evaluate"),
        (lambda: shot_report(TARGET[:0], TARGET[:0], [9] * 3), "no image to evaluate"),
        (lambda: shot_report([], [], [9] * 3), "no image to evaluate"),
        (lambda: shot_report(BAD, TARGET, [9] * 3), "output is nan in row 2, column 1"),
        (lambda: shot_report(INFINITE, TARGET, [9] * 3), "output is inf in row 3, column 0"),
        (lambda: shot_report(BAD.numpy(), TARGET, [9] * 3), "nan in row 2"),
        (lambda: shot_report(LOGITS[:, 0], TARGET, [9] * 3), "vector of floats"),
        (lambda: shot_report(LOGITS[None], TARGET, [9] * 3), r"shape \(1, 4, 3\)"),
        (
            lambda: shot_report(LOGITS, TARGET, [9] * 3, probabilities=True),
            "row 0 sums to 0 .* probabilities",
        ),
        (
            lambda: shot_report(torch.tensor([[1.5, -0.5]]), [0], [9, 9], probabilities=True),
            "smallest number -0.5",
        ),
        (lambda: shot_report(LOGITS, TARGET, [9] * 3, classes=["a"]), "classes has 1 names"),
        (lambda: shot_report(LOGITS, TARGET, [9] * 3, few="20"), "few must be .* got '20'"),
        (lambda: shot_thresholds_text("<21"), "few must be .* got '<21'"),
        (lambda: expected_calibration_error(torch.eye(2), [0, 1], 0), "n_bins must be .* got 0"),
        (lambda: expected_calibration_error(LOGITS, TARGET), "probs row 0 sums to 0"),
        (lambda: negative_log_likelihood(TARGET, TARGET), r"probs has shape \(4,\)"),
        (lambda: per_class_accuracy(TARGET, TARGET[:2], 3), "pred has 4 rows but target has 2"),
        (lambda: mean_class_accuracy(TARGET[:0], TARGET[:0], 3), "no image to evaluate"),
        (lambda: mean_and_sd([]), "reports is empty"),
        (
            lambda: mean_and_sd([report_with(), report_with(few_rule="<=20")]),
            "mix the few-shot rules <20 and <=20",
        ),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_report_in_a_notebook_names_the_classes():
    names = ["<b>", *(f"class {c}" for c in range(1, 25))]
    target = torch.arange(24)  # the last class has no image
    logits = torch.eye(25)[torch.where(target < 3, target, 0)]
    report = shot_report(logits, target, [500 - c for c in range(25)], classes=names)
    assert repr(report).startswith("ShotReport: all 12.5, balanced 12.5, many 12.5 in % over 24")
    html = report._repr_html_()
    assert "<b></td>" not in html and "the 20 classes with the lowest accuracy" in html
    assert ">class 3<" in html and ">class 24<" not in html and ">&lt;b&gt;<" not in html
    small = shot_report(torch.eye(2), torch.arange(2), [500, 5], classes=["<b>", "c"])
    assert ">&lt;b&gt;<" in small._repr_html_() and "accuracy of each class" in small._repr_html_()


def test_a_report_of_predictions_has_no_calibration_in_a_notebook():
    report = shot_report(torch.arange(2), torch.arange(2), [500, 5])
    assert "ECE" not in report._repr_html_() and ">class 1<" in report._repr_html_()
