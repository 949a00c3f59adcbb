import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.metrics.paired import paired_difference


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


def naive(a, b, targets, n_resamples, balanced, seed=1):
    """Draw image by image."""
    rng = np.random.default_rng(seed)
    d = np.atleast_2d(a).mean(0) - np.atleast_2d(b).mean(0)
    if not balanced:
        return d[rng.integers(len(d), size=(n_resamples, len(d)))].mean(1)
    of_classes = []
    for c in np.unique(targets):
        mine = d[targets == c]
        of_classes.append(mine[rng.integers(len(mine), size=(n_resamples, len(mine)))].mean(1))
    return np.mean(of_classes, axis=0)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("seeds", [None, 1, 3])
@pytest.mark.parametrize("sizes", [None, [150, 60, 40, 9, 9, 1]])
def test_it_equals_a_naive_bootstrap(balanced, seeds, sizes):
    a, b, targets = data(seeds=seeds, sizes=sizes)
    got = paired_difference(a, b, targets, 6, 20_000, balanced=balanced, level=0.9)
    sample = naive(a, b, targets, 20_000, balanced)
    # The spread of a quantile over two runs of 20,000 is about 0.02 standard deviations.
    near = 0.08 * sample.std()
    assert got.low == pytest.approx(np.quantile(sample, 0.05), abs=near)
    assert got.high == pytest.approx(np.quantile(sample, 0.95), abs=near)
    assert (got.n_images, got.n_seeds) == (len(targets), seeds or 1)


@pytest.mark.parametrize("seeds", [None, 2])
def test_the_estimate_is_the_difference_of_the_accuracies(seeds):
    a, b, targets = data(seeds=seeds, sizes=[150, 60, 40, 9, 9, 1])
    plain = paired_difference(a, b, targets, 6, 10, balanced=False)
    assert plain.estimate == pytest.approx(a.mean() - b.mean())

    def balanced_accuracy(hits):
        hits = np.atleast_2d(hits)
        return np.mean([[row[targets == c].mean() for c in range(6)] for row in hits])

    balanced = paired_difference(a, b, targets, 6, 10)
    assert balanced.estimate == pytest.approx(balanced_accuracy(a) - balanced_accuracy(b))
    assert balanced.balanced and not plain.balanced


def test_many_small_classes_taken_together_have_the_right_spread():
    # 600 classes of 3 images: only the sums over classes of one kind are drawn.
    a, b, targets = data(num_classes=600, sizes=[3] * 600)
    got = paired_difference(a, b, targets, 600, 20_000)
    sample = naive(a, b, targets, 5_000, True)
    assert (got.high - got.low) / (2 * 1.96) == pytest.approx(sample.std(), rel=0.05)
    assert got.estimate == pytest.approx(sample.mean(), abs=5 * sample.std() / 70)


def test_the_same_classifier_twice():
    a, _, targets = data()
    for balanced in (True, False):
        got = paired_difference(a, a, targets, 6, 100, balanced=balanced)
        assert (got.estimate, got.low, got.high) == (0, 0, 0)
        assert got.excludes_zero is False


def test_always_better_excludes_zero():
    targets = np.arange(30) % 3
    right, wrong = np.ones(30, bool), np.zeros(30, bool)
    got = paired_difference(right, wrong, targets, 3, 100)
    assert (got.estimate, got.low, got.high, got.excludes_zero) == (1, 1, 1, True)
    assert paired_difference(wrong, right, targets, 3, 100).excludes_zero


def test_an_end_at_zero_does_not_exclude_it():
    # One image of seven decides, and is missing from a third of the resamples: rounding in the
    # sums over classes of 7 and 3 images must not make its absence a difference.
    targets = np.repeat([0, 1], [7, 3])
    a = np.zeros(10, bool)
    a[0] = True
    got = paired_difference(a, np.zeros(10, bool), targets, 2, 2000)
    assert got.low == 0 and got.high > 0 and not got.excludes_zero


def test_swapping_turns_the_sign_and_a_seed_repeats():
    a, b, targets = data()
    one, again, other = (paired_difference(a, b, targets, 6, 500, seed=s) for s in (3, 3, 4))
    assert one == again and one != other
    assert paired_difference(b, a, targets, 6, 500).estimate == -one.estimate
    wide = paired_difference(a, b, targets, 6, 500, seed=3, level=0.99)
    assert wide.low < one.low and wide.high > one.high


def test_pairing_narrows_the_interval():
    a, b, targets = data(n=2000)
    b = a.copy()
    b[:40] = ~b[:40]
    alone = paired_difference(a, np.zeros_like(a), targets, 6, 2000)
    both = paired_difference(a, b, targets, 6, 2000)
    assert both.high - both.low < (alone.high - alone.low) / 3


def test_tensors_arrays_and_numbers_are_alike():
    a, b, targets = data(seeds=2)
    expected = paired_difference(a, b, targets, 6, 200)
    assert paired_difference(torch.tensor(a), torch.tensor(b), torch.tensor(targets), 6, 200) == (
        expected
    )
    assert paired_difference(a.astype(float), b.astype(np.int8), targets, 6, 200) == expected


def test_classes_without_test_images_are_left_out():
    a, b, targets = data()
    assert paired_difference(a, b, targets, 6, 200) == paired_difference(a, b, targets, 9, 200)


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
        (lambda: paired_difference(A, B, Y, 6, 0), "n_resamples must be a whole number"),
        (lambda: paired_difference(A, B, Y, 6, seed=-1), "seed must be a whole number"),
        (lambda: paired_difference(A, B, Y, 0), "num_classes must be a whole number"),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()
