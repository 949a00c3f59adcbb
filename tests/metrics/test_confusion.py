import numpy as np
import pytest

from ltlearn.errors import UserError
from ltlearn.metrics.confusion import block_confusion, mistaken_classes


def test_mistakes_equal_a_plain_loop():
    draw = np.random.default_rng(0)
    target, predicted = draw.integers(0, 6, (2, 300))
    found = mistaken_classes(target, predicted, 7)
    for c in range(7):
        counts = {o: int(((target == c) & (predicted == o)).sum()) for o in range(7) if o != c}
        expected = sorted(((o, n) for o, n in counts.items() if n), key=lambda pair: -pair[1])
        assert found[c] == expected


def test_no_mistake():
    assert mistaken_classes([0, 1], [0, 1], 2) == [[], []]


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [([0, 2], [0, 0], "target.*2"), ([0], [2], "predicted.*2"), ([0, 1], [0], "predicted.*1.*2")],
)
def test_impossible_labels(target, predicted, message):
    with pytest.raises(UserError, match=message):
        mistaken_classes(target, predicted, 2)


@pytest.mark.parametrize("normalize", [True, False])
def test_blocks_equal_a_plain_loop(normalize):
    draw = np.random.default_rng(0)
    target, predicted = draw.integers(0, 6, (2, 300))
    target[target == 4] = 5  # a class without images
    blocks = [0, 1, 1, 0, 2, 2, 3]  # the last block has no image
    expected = np.zeros((4, 4))
    for block in range(4):
        own = [c for c in range(7) if blocks[c] == block and (target == c).any()]
        for c in own:
            for other in predicted[target == c]:
                share = len(own) * (target == c).sum() if normalize else 1
                expected[block, blocks[other]] += 1 / share
    if normalize:
        expected[3] = np.nan
    np.testing.assert_allclose(block_confusion(target, predicted, blocks, normalize), expected)
