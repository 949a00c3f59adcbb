import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.metrics.paired import difference_interval, paired_difference


def data(n=400, num_classes=6, seeds=None, seed=0, sizes=None):
    rng = np.random.default_rng(seed)
    if sizes is None:
        targets = rng.integers(num_classes, size=n)
    else:
        targets = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    shape = targets.shape if seeds is None else (seeds, len(targets))
    easy = 0.2 + 0.6 * rng.random(len(targets))
    a = rng.random(shape) < easy + 0.08
    b = rng.random(shape) < easy
    return a, b, targets


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("sizes", [None, [150, 60, 40, 30, 30, 30]])
def test_with_many_images_it_equals_the_textbook_interval(balanced, sizes):
    a, b, targets = data(n=6000, sizes=None if sizes is None else [20 * n for n in sizes])
    got = paired_difference(a, b, targets, 6, level=0.9, balanced=balanced)
    d = a.astype(int) - b
    if balanced:
        of_classes = [d[targets == c] for c in range(6)]
        error = np.sqrt(sum(own.var(ddof=1) / len(own) for own in of_classes)) / 6
    else:
        error = d.std(ddof=1) / np.sqrt(len(d))
    assert got.low == pytest.approx(got.estimate - 1.645 * error, abs=0.02 * error)
    assert got.high == pytest.approx(got.estimate + 1.645 * error, abs=0.02 * error)
    assert (got.n_images, got.n_seeds, got.reason) == (len(targets), 1, "")


@pytest.mark.parametrize(
    ("counts", "deciding"),
    [
        ([30] * 10, 300),
        ([3] * 200, 600),
        ([1] * 200, 200),
        ([30], 30),
        ([29], 29),
        ([1] * 10, 10),
        ([60, 36, 22, 13, 8, 5, 3, 2, 1, 1], 5.1),
    ],
)
def test_there_is_no_interval_where_few_images_have_most_of_the_weight(counts, deciding):
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    a, b = rng.random((2, len(labels))) < 0.5
    got = paired_difference(a, b, labels, len(counts))
    assert got.n_deciding == pytest.approx(deciding, rel=0.01)
    if deciding < 30:
        assert (got.low, got.high, got.excludes_zero) == (None, None, False)
        assert f"{round(deciding)} of the {sum(counts)} images" in got.reason
        assert "30" in got.reason
    else:
        assert got.low < got.estimate < got.high and got.reason == ""
    per_class = [a[labels == c].mean() - b[labels == c].mean() for c in range(len(counts))]
    assert got.estimate == pytest.approx(np.mean(per_class))


def coverage(counts, only_a, only_b, draws, seed=0):
    """Return the share of intervals that hold the true difference, over random test sets."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    a, b = np.asarray(only_a)[labels], np.asarray(only_b)[labels]
    truth, held = np.mean(np.subtract(only_a, only_b)), 0
    for _ in range(draws):
        u = rng.random(len(labels))
        got = difference_interval(((u < a).astype(int) - (u > 1 - b))[None], labels)
        held += got.low <= truth <= got.high
    return held / draws


RISING = np.linspace(0, 1, 200)
COVERED = {
    "10 x 30, equal": ([30] * 10, [0.25] * 10, [0.25] * 10),
    "10 x 30, equal, agree on 95 %": ([30] * 10, [0.025] * 10, [0.025] * 10),
    "10 x 30, by turns": ([30] * 10, [0.4, 0.05] * 5, [0.05, 0.4] * 5),
    "200 x 3, equal": ([3] * 200, [0.25] * 200, [0.25] * 200),
    "200 x 3, equal, agree on 95 %": ([3] * 200, [0.025] * 200, [0.025] * 200),
    "200 x 3, the tail gains": ([3] * 200, 0.05 + 0.4 * RISING, [0.1] * 200),
    "200 x 1, equal": ([1] * 200, [0.25] * 200, [0.25] * 200),
    "60 to 5, the tail gains": (
        [60, 50, 40, 30, 20, 10, 8, 6, 5, 5], np.linspace(0.05, 0.4, 10), [0.05] * 10,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERED)
def test_the_interval_holds_the_true_difference_in_95_percent(case):
    """A bootstrap within each class once missed it in 12 to 84 % of the sets of small classes."""
    assert 0.92 <= coverage(*COVERED[case], 2000) <= 0.98


def test_the_interval_holds_the_true_difference_of_small_classes():
    assert 0.92 <= coverage([3] * 60, [0.25] * 60, [0.25] * 60, 300) <= 0.98


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    targets = np.arange(600) % 6
    easy = rng.random(600)
    shift = np.array([-0.15, 0.0, 0.1])[:, None]
    a, b = easy < 0.6 + shift, np.stack([easy < 0.55] * 3)
    got = paired_difference(a, b, targets, 6)
    of_seeds = (a.mean(1) - b.mean(1)).std(ddof=1) / np.sqrt(3)
    assert got.n_seeds == 3
    # 4.303 is Student's t with 2 degrees of freedom.
    assert (got.high - got.low) / 2 == pytest.approx(4.303 * of_seeds, rel=0.05)
    alone = paired_difference(a[1], b[1], targets, 6)
    assert got.high - got.low > 3 * (alone.high - alone.low)
    # Seeds that agree on each image add nothing.
    alike = paired_difference(np.stack([a[1]] * 3), b, targets, 6)
    assert (alike.low, alike.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 20])
@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_with_seeds_the_interval_holds_the_difference_of_new_trainings(seeds, spread):
    rng = np.random.default_rng(0)
    labels, held = np.repeat(np.arange(10), 30), 0
    for _ in range(1000):
        level = rng.uniform(0.3, 0.7, 300) + rng.normal(0, spread, (2, seeds, 1))
        right = rng.random((2, seeds, 300)) < level
        got = difference_interval(right[0].astype(int) - right[1], labels)
        held += got.low <= 0 <= got.high
    assert held >= 930


@pytest.mark.parametrize("seeds", [None, 2])
def test_the_estimate_is_the_difference_of_the_accuracies(seeds):
    a, b, targets = data(seeds=seeds, sizes=[150, 60, 40, 9, 9, 1])
    plain = paired_difference(a, b, targets, 6, balanced=False)
    assert plain.estimate == pytest.approx(a.mean() - b.mean())

    def balanced_accuracy(hits):
        hits = np.atleast_2d(hits)
        return np.mean([[row[targets == c].mean() for c in range(6)] for row in hits])

    balanced = paired_difference(a, b, targets, 6)
    assert balanced.estimate == pytest.approx(balanced_accuracy(a) - balanced_accuracy(b))
    assert balanced.balanced and not plain.balanced


def test_the_interval_of_equal_classifiers_has_a_width():
    a, _, targets = data()
    for balanced in (True, False):
        got = paired_difference(a, a, targets, 6, balanced=balanced)
        assert got.estimate == 0 and got.excludes_zero is False
        # One image in 400 is 0.0025; a rate of 0.009 shows no image in 2.5 % of the test sets.
        assert -0.015 < got.low < -0.0025 and got.low == pytest.approx(-got.high)


def test_always_better_excludes_zero():
    targets = np.arange(30) % 3
    right, wrong = np.ones(30, bool), np.zeros(30, bool)
    got = paired_difference(right, wrong, targets, 3)
    assert (got.estimate, got.high, got.excludes_zero) == (1, 1, True) and 0.5 < got.low < 1
    assert paired_difference(wrong, right, targets, 3).excludes_zero


def test_swapping_turns_the_sign_and_a_higher_level_is_wider():
    a, b, targets = data()
    one = paired_difference(a, b, targets, 6)
    other = paired_difference(b, a, targets, 6)
    assert (other.estimate, other.low) == (-one.estimate, pytest.approx(-one.high))
    wide = paired_difference(a, b, targets, 6, level=0.99)
    assert wide.low < one.low and wide.high > one.high


@pytest.mark.parametrize("counts", [[40] * 3, [7] * 40, [50, 30, 20, 9, 9, 9]])
def test_the_balanced_difference_does_not_depend_on_the_order(counts):
    a, b, targets = data(sizes=counts, num_classes=len(counts))
    order = np.random.default_rng(0).permutation(len(targets))
    one = paired_difference(a, b, targets, len(counts))
    other = paired_difference(a[order], b[order], len(counts) - 1 - targets[order], len(counts))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_pairing_narrows_the_interval():
    a, b, targets = data(n=2000)
    b = a.copy()
    b[:40] = ~b[:40]
    alone = paired_difference(a, np.zeros_like(a), targets, 6)
    both = paired_difference(a, b, targets, 6)
    assert both.high - both.low < (alone.high - alone.low) / 3


def test_tensors_arrays_and_numbers_are_alike():
    a, b, targets = data(seeds=2)
    expected = paired_difference(a, b, targets, 6)
    assert paired_difference(torch.tensor(a), torch.tensor(b), torch.tensor(targets), 6) == (
        expected
    )
    assert paired_difference(a.astype(float), b.astype(np.int8), targets, 6) == expected


def test_classes_without_test_images_are_left_out():
    a, b, targets = data()
    assert paired_difference(a, b, targets, 6) == paired_difference(a, b, targets, 9)


A, B, Y = data(n=20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_difference(A[:5], B, Y, 6),
            r"correct_a has shape \(1, 5\) and correct_b \(1, 20\)",
        ),
        (
            lambda: paired_difference(np.stack([A, A]), B, Y, 6),
            r"correct_a has shape \(2, 20\) and correct_b \(1, 20\)",
        ),
        (lambda: paired_difference(A, B, Y[:5], 6), "correct_a has 20 rows but targets has 5"),
        (lambda: paired_difference(A, B, Y, 3), "targets is .* with 3 classes"),
        (lambda: paired_difference(A + 1, B, Y, 6), "correct_a must hold True and False"),
        (lambda: paired_difference(A, B * 0.5, Y, 6), "correct_b must hold True and False"),
        (lambda: paired_difference([], [], [], 6), "correct_a has shape .* not empty"),
        (lambda: paired_difference(A[None, None], B, Y, 6), "must be .images,. or .seeds, images."),
        (lambda: paired_difference(A, B, Y, 6, level=95), "level must be .* below 1, got 95"),
        (lambda: paired_difference(A, B, Y, 0), "num_classes must be a whole number"),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()
