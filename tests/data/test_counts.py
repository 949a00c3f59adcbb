from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ltlearn.data.counts import (
    count_classes,
    find_class_counts,
    imbalance_factor_of,
    long_tail_counts,
)
from ltlearn.errors import UserError

# IF: total, smallest class, and how many classes have more than 100, 20 to 100, fewer than 20.
CIFAR10 = {
    10: (20_431, 500, (10, 0, 0)),
    20: (17_023, 250, (10, 0, 0)),
    50: (13_996, 100, (9, 1, 0)),
    100: (12_406, 50, (8, 2, 0)),
    200: (11_203, 25, (7, 3, 0)),
}
CIFAR100 = {
    10: (19_573, 50, (69, 31, 0)),
    20: (15_907, 25, (53, 47, 0)),
    50: (12_608, 10, (41, 41, 18)),
    100: (10_847, 5, (35, 35, 30)),
    200: (9_502, 2, (30, 31, 39)),
}
CIFAR10_LISTS = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
}


@pytest.mark.parametrize(
    ("n_max", "classes", "factor", "facts"),
    [(5000, 10, f, x) for f, x in CIFAR10.items()]
    + [(500, 100, f, x) for f, x in CIFAR100.items()],
)
def test_the_published_cifar_counts(n_max, classes, factor, facts):
    counts = np.array(long_tail_counts(n_max, classes, factor))
    total, smallest, shots = facts
    assert (counts.sum(), counts.min(), counts.max()) == (total, smallest, n_max)
    assert ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum()) == shots[:2]
    assert (counts < 20).sum() == shots[2]
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("factor", CIFAR10_LISTS)
def test_the_published_cifar10_lists(factor):
    assert long_tail_counts(5000, 10, factor) == CIFAR10_LISTS[factor]


@pytest.mark.parametrize("factor", [10, 20, 50, 100, 200])
def test_exponential_is_the_generator_of_ldam(factor):
    mu = 1 / factor
    assert long_tail_counts(500, 100, factor) == [int(500 * mu ** (c / 99.0)) for c in range(100)]


def test_step_keeps_the_first_half_and_cuts_the_second():
    assert long_tail_counts(5000, 10, 100, "step") == [5000] * 5 + [50] * 5
    assert long_tail_counts(90, 3, 3, "step") == [90, 90, 30]


def test_factor_one_keeps_every_class_alike():
    assert long_tail_counts(7, 4, 1) == [7] * 4
    assert long_tail_counts(7, 1, 5) == [7]


@pytest.mark.parametrize("factor", [0.99, -3, float("nan"), float("inf"), "100", None])
def test_a_factor_below_one_is_refused(factor):
    with pytest.raises(UserError, match=rf"imbalance_factor.*1, got {factor!r}"):
        long_tail_counts(100, 10, factor)


@pytest.mark.parametrize("profile", ["exponential", "step"])
def test_a_factor_that_empties_a_class_is_refused(profile):
    with pytest.raises(UserError, match=r"imbalance_factor 101 .*at most 100"):
        long_tail_counts(100, 10, 101, profile)
    assert min(long_tail_counts(100, 10, 100, profile)) == 1


def test_an_unknown_profile_is_refused():
    with pytest.raises(UserError, match=r"profile.*exponential, step, got 'pareto'"):
        long_tail_counts(100, 10, 10, "pareto")


@pytest.mark.parametrize("n_max", [0, -1, 2.5, True])
def test_n_max_is_a_positive_whole_number(n_max):
    with pytest.raises(UserError, match=rf"n_max.*at least 1, got {n_max}"):
        long_tail_counts(n_max, 10, 1)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_counts_come_from_the_targets(kind):
    counts = count_classes(kind([2, 0, 2, 2]), 5)
    assert counts.tolist() == [1, 0, 3, 0, 0]
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("targets", [[0, 3], [-1, 0]])
def test_a_target_outside_the_classes_is_refused(targets):
    with pytest.raises(UserError, match=r"targets.* 0 \.\.\. 2, .*3 classes"):
        count_classes(targets, 3)


def test_the_imbalance_factor_leaves_empty_classes_out():
    assert imbalance_factor_of(torch.tensor([100, 0, 4])) == 25
    assert imbalance_factor_of(torch.tensor([0, 0])) == 1


def test_counts_are_found_in_other_dataloaders():
    def loaders(dataset, **attributes):
        return SimpleNamespace(train=SimpleNamespace(dataset=dataset), **attributes)

    torchvision = loaders(SimpleNamespace(targets=[0, 1, 1]))
    assert find_class_counts(torchvision).tolist() == [1, 2]
    assert find_class_counts(loaders(SimpleNamespace(targets=[0]), c=3)).tolist() == [1, 0, 0]
    fastai = loaders(SimpleNamespace(tls=[["a.png", "b.png"], [1, 1]]), vocab=["cat", "dog"])
    assert find_class_counts(fastai).tolist() == [0, 2]
    assert find_class_counts(loaders(object(), class_counts=[3, 1])).tolist() == [3, 1]
    assert find_class_counts(loaders(object())) is None
