import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from ltlearn.data.samplers import (
    SAMPLERS,
    ClassBalancedSampler,
    InstanceSampler,
    ProgressiveSampler,
    SquareRootSampler,
    make_sampler,
)
from ltlearn.errors import UserError
from ltlearn.names import SAMPLER_NAMES

# Class 2 has no image, class 4 a single one.
COUNTS = np.array([400, 90, 0, 10, 1])
TARGETS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


def drawn_counts(sampler, epochs, total=None):
    """Count how often each class is drawn in that many epochs."""
    out = np.zeros(len(COUNTS), dtype=int)
    for epoch in range(epochs):
        sampler.set_epoch(epoch if total is None else total, total)
        out += np.bincount(TARGETS[list(sampler)], minlength=len(COUNTS))
    return out


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_and_epoch_decide_the_draw(name):
    def draw(seed, epoch):
        sampler = make_sampler(name, TARGETS, seed)
        sampler.set_epoch(epoch, 10)
        return list(sampler)

    assert draw(3, 4) == draw(3, 4)
    assert draw(3, 4) != draw(3, 5)
    assert draw(3, 4) != draw(4, 4)
    assert draw(-1, 0) == draw(-1, 0)
    torch.manual_seed(0), np.random.seed(0)
    first = draw(0, 0)
    torch.manual_seed(1), np.random.seed(1)
    assert draw(0, 0) == first


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_is_as_long_as_the_set_and_draws_no_empty_class(name):
    sampler = make_sampler(name, TARGETS)
    for epoch in range(3):
        sampler.set_epoch(epoch, 3)
        order = list(sampler)
        assert len(order) == len(sampler) == len(TARGETS)
        assert all(isinstance(i, int) and 0 <= i < len(TARGETS) for i in order)
        share = sampler.class_probabilities()
        assert np.isfinite(share).all() and share[2] == 0 and share.sum() == pytest.approx(1)


def test_instance_shows_each_image_once():
    assert sorted(InstanceSampler(TARGETS)) == list(range(len(TARGETS)))


@pytest.mark.parametrize(
    ("sampler", "share", "total"),
    [
        (ClassBalancedSampler(TARGETS), (COUNTS > 0) / 4, None),
        (SquareRootSampler(TARGETS), np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(), None),
        (ProgressiveSampler(TARGETS), (COUNTS > 0) / 4, 40),
    ],
    ids=["class_balanced", "square_root", "progressive at its end"],
)
def test_classes_are_drawn_as_often_as_their_probabilities(sampler, share, total):
    seen = drawn_counts(sampler, 1 if total else 40, total)
    present = share > 0
    assert (seen[~present] == 0).all()
    assert chisquare(seen[present], share[present] * seen.sum()).pvalue > 1e-3
    wrong = COUNTS / COUNTS.sum()
    assert chisquare(seen[present], wrong[present] * seen.sum()).pvalue < 1e-6


def test_progressive_moves_from_instance_to_class_balanced():
    sampler = ProgressiveSampler(TARGETS)
    instance, balanced = COUNTS / COUNTS.sum(), (COUNTS > 0) / 4
    for epoch in range(10):
        sampler.set_epoch(epoch, 10)
        want = (1 - epoch / 10) * instance + epoch / 10 * balanced
        np.testing.assert_allclose(sampler.class_probabilities(), want)


def test_progressive_past_its_last_epoch_stays_class_balanced():
    # A pass after the training once got negative probabilities.
    sampler = ProgressiveSampler(TARGETS)
    sampler.set_epoch(7, 3)
    np.testing.assert_allclose(sampler.class_probabilities(), (COUNTS > 0) / 4)
    assert len(list(sampler)) == len(TARGETS)


def test_progressive_without_the_number_of_epochs_warns_once(caplog):
    sampler = ProgressiveSampler(TARGETS)
    for _ in range(4):
        seen = np.bincount(TARGETS[list(sampler)], minlength=5)
    assert seen[0] > 300
    assert [r for r in caplog.messages if "call set_epoch(epoch, epochs)" in r] == caplog.messages
    assert len(caplog.messages) == 1


def test_images_of_a_class_come_once_before_any_comes_again():
    sampler = ClassBalancedSampler(TARGETS, seed=2)
    order = np.array(list(sampler))
    for c in (0, 1, 3, 4):
        times = np.bincount(order, minlength=len(TARGETS))[TARGETS == c]
        assert times.max() - times.min() <= 1
    head = order[TARGETS[order] == 0]
    assert len(set(head)) == len(head) > 50


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "instance"])
def test_the_draw_equals_a_search_for_each_class(name):
    # The search took classes x images operations; its draws are recorded in runs.
    sampler = make_sampler(name, TARGETS, seed=5)
    sampler.set_epoch(2, 4)
    want, rng = np.empty(len(TARGETS), dtype=int), np.random.default_rng([5, 2])
    drawn = rng.choice(5, size=len(TARGETS), p=sampler.class_probabilities())
    for c in np.unique(drawn):
        positions, images = np.flatnonzero(drawn == c), np.flatnonzero(TARGETS == c)
        rounds = -(-len(positions) // len(images))
        order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
        want[positions] = order[: len(positions)]
    assert list(sampler) == want.tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_a_plain_torch_loader_each_epoch_has_a_draw_of_its_own(name):
    data = TensorDataset(torch.arange(len(TARGETS)))

    def epochs():
        loader = DataLoader(data, 32, sampler=make_sampler(name, TARGETS, 1))
        return [torch.cat([b for (b,) in loader]).tolist() for _ in range(2)]

    first, second = epochs()
    assert len(first) == len(TARGETS)
    assert first != second
    assert epochs() == [first, second]


def test_the_samplers_have_the_names_of_the_options():
    assert tuple(SAMPLERS) == SAMPLER_NAMES


def test_torch_targets_and_lists_are_taken():
    orders = [
        list(ClassBalancedSampler(t)) for t in (TARGETS, TARGETS.tolist(), torch.tensor(TARGETS))
    ]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("sampler", ["balanced", ["instance"], None, 3, InstanceSampler])
def test_an_unknown_sampler_is_refused(sampler):
    with pytest.raises(UserError, match=r"sampler.*instance, .*progressive.*got"):
        make_sampler(sampler, TARGETS)


def test_a_torch_sampler_goes_through():
    sampler = SequentialSampler(range(3))
    assert make_sampler(sampler, TARGETS) is sampler


@pytest.mark.parametrize("targets", [[], [[0, 1]], 3])
def test_a_sampler_needs_a_target_per_image(targets):
    with pytest.raises(UserError, match=r"ClassBalancedSampler.*target.*got shape"):
        ClassBalancedSampler(targets)


def test_negative_targets_are_refused():
    with pytest.raises(UserError, match=r"class indices.*got -1"):
        InstanceSampler([0, -1])
