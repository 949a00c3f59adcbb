import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltlearn.data.digests import digest_image
from ltlearn.data.splits import carve_validation, fingerprint, select_long_tail
from ltlearn.errors import UserError

COUNTS = [40, 12, 4]


@pytest.fixture
def targets():
    return np.random.default_rng(5).permutation(np.repeat([0, 1, 2], 50))


def test_first_n_keeps_the_first_of_each_class_in_file_order(targets):
    kept = select_long_tail(targets, COUNTS, "first_n")
    want = [
        i for c, n in enumerate(COUNTS) for i in [j for j, t in enumerate(targets) if t == c][:n]
    ]
    assert kept.tolist() == want


def test_shuffle_seed0_is_the_published_generator(targets):
    np.random.seed(0)
    want = []
    for c, n in enumerate(COUNTS):
        index = np.where(targets == c)[0]
        np.random.shuffle(index)
        want.extend(index[:n])
    assert select_long_tail(targets, COUNTS, "shuffle_seed0").tolist() == want
    assert sorted(want) != sorted(select_long_tail(targets, COUNTS))


def test_the_global_generator_changes_nothing(targets):
    first = select_long_tail(targets, COUNTS, "shuffle_seed0")
    np.random.seed(99)
    assert (select_long_tail(targets, COUNTS, "shuffle_seed0") == first).all()
    before = np.random.get_state()[1].copy()
    select_long_tail(targets, COUNTS, "shuffle_seed0")
    carve_validation(targets)
    assert (np.random.get_state()[1] == before).all()


def test_an_unknown_split_and_a_short_class_are_refused(targets):
    with pytest.raises(UserError, match=r"split.*first_n, shuffle_seed0, got 'random'"):
        select_long_tail(targets, COUNTS, "random")
    with pytest.raises(UserError, match=r"class 1 has 50 images.*51"):
        select_long_tail(targets, [50, 51, 1])


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda c: max(c) > 1),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_carving_is_stratified_and_empties_no_class(counts, fraction, seed):
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    train, valid = carve_validation(targets, fraction, seed)
    assert sorted([*train, *valid]) == list(range(len(targets)))
    for c, n in enumerate(counts):
        carved = (targets[valid] == c).sum()
        if n < 2:
            assert carved == 0
        else:
            assert 1 <= carved <= n - 1
            assert carved == np.clip(round(n * fraction), 1, n - 1)


def test_carving_follows_the_seed(targets):
    again = carve_validation(targets, 0.2, 1)
    assert all(
        (a == b).all() for a, b in zip(carve_validation(targets, 0.2, 1), again, strict=True)
    )
    assert (carve_validation(targets, 0.2, 2)[1] != again[1]).any()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), "0.2"])
def test_a_fraction_outside_zero_to_one_is_refused(targets, fraction):
    with pytest.raises(UserError, match=rf"fraction.*above 0 and below 1, got {fraction!r}"):
        carve_validation(targets, fraction)


def test_nothing_to_carve_from_is_refused():
    with pytest.raises(UserError, match=r"no class has two"):
        carve_validation(np.array([0, 1, 2]))


def test_a_fingerprint_names_content_and_labels_and_no_order():
    def of(contents, labels):
        return fingerprint(map(digest_image, contents, labels))

    contents, labels = [b"aa", b"bb", b"cc"], [0, 1, 1]
    name = of(contents, labels)
    assert name == "fa19ada33367", "earlier versions gave this name"
    assert of([b"cc", b"aa", b"bb"], [1, 0, 1]) == name
    assert of([b"aa", b"bb", b"cd"], labels) != name
    assert of(contents, [0, 1, 0]) != name
    assert of(contents[:2], labels[:2]) != name
    assert of([*contents, b"cc"], [*labels, 1]) != name


def test_an_array_of_digests_has_the_same_fingerprint():
    digests = np.random.default_rng(0).integers(0, 256, (300, 32), dtype=np.uint8)
    digests[::3, -2:], digests[::5, :2] = 0, 255
    digests[7] = digests[9]
    for rows in (digests, digests[:0]):
        assert fingerprint(rows) == fingerprint(row.tobytes() for row in rows)


def test_carving_equals_a_search_for_each_class():
    targets = np.random.default_rng(3).permutation(np.repeat([0, 2, 3, 7], [30, 1, 5, 12]))
    rng, want = np.random.RandomState(4), []
    for c in np.unique(targets):
        index = np.flatnonzero(targets == c)
        n = min(max(1, round(len(index) * 0.25)), len(index) - 1)
        want += rng.permutation(index)[:n].tolist()
    assert carve_validation(targets, 0.25, 4)[1].tolist() == sorted(want)
