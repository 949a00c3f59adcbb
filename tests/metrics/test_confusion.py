import numpy as np
import pytest

from ltlearn.errors import UserError
from ltlearn.metrics.confusion import mistaken_classes


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
