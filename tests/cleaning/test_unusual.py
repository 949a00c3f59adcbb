import numpy as np
import torch

from ltlearn.cleaning.unusual import MAX_SCORE, judge_distances
from ltlearn.training.features import Features


def features_of(counts, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(9).normal(size=(len(counts), 32))
    x = centres[targets] + noise * rng.normal(size=(len(targets), 32))
    return x.astype(np.float32), targets


def test_images_far_from_their_class_are_found():
    x, targets = features_of([300, 60, 12])
    odd = [5, 120, 310, 365]
    x[odd] = 3 * np.random.default_rng(1).normal(size=(4, 32))
    found = judge_distances(Features([x], torch.from_numpy(targets)), 3)
    assert found.found[odd].all()
    assert found.found.sum() <= len(odd) + 2
    assert (found.score[odd] > MAX_SCORE).all()


def test_a_class_of_few_images_is_not_judged():
    x, targets = features_of([50, 4, 1])
    found = judge_distances(Features([x], torch.from_numpy(targets)), 4)
    assert np.isnan(found.score[targets > 0]).all() and not found.found[targets > 0].any()
    assert np.isfinite(found.score[targets == 0]).all()


def test_equal_features_have_no_unusual_image():
    found = judge_distances(Features([np.ones((20, 3), np.float32)], torch.zeros(20).long()), 1)
    assert not found.found.any() and np.isfinite(found.score).all()


def test_a_wide_class_does_not_hide_behind_a_narrow_one():
    """The spread is the class's own where it has many images."""
    narrow, targets = features_of([200, 200], noise=0.1)
    wide, _ = features_of([200, 200], seed=3, noise=0.6)
    x = np.where((targets == 0)[:, None], narrow, wide)
    found = judge_distances(Features([x], torch.from_numpy(targets)), 2)
    assert found.found[targets == 1].mean() < 0.05
