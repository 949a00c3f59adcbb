import math

import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import CrossEntropy, LabelAwareSmoothingLoss
from ltlearn.methods import METHODS
from tests.losses.helpers import COUNTS, assert_reductions, make_batch, plain_softmax, rows_of

# The shapes as the reference writes them, from head (a) and tail (b) smoothing.
FORMULAS = {
    "concave": lambda a, b, v: b + (a - b) * math.sin(math.pi * v / 2),
    "linear": lambda a, b, v: b + (a - b) * v,
    "convex": lambda a, b, v: a + (a - b) * math.sin(3 * math.pi / 2 + math.pi * v / 2),
    "power": lambda a, b, v: b + (a - b) * v**3,
}


@pytest.mark.parametrize("head, tail", [(0.3, 0.0), (0.4, 0.1)])
@pytest.mark.parametrize("shape", FORMULAS)
def test_against_a_plain_loop(shape, head, tail):
    logits, target = make_batch()
    power, plain = 3 if shape == "power" else None, []
    for z, y in rows_of(logits, target):
        log_p = [math.log(p) for p in plain_softmax(z)]
        v = (COUNTS[y] - min(COUNTS)) / (max(COUNTS) - min(COUNTS))
        e = FORMULAS[shape](head, tail, v)
        plain.append(-(1 - e) * log_p[y] - e * sum(log_p) / 4)

    def make(reduction):
        return LabelAwareSmoothingLoss(COUNTS, head, tail, shape, power, reduction)

    assert_reductions(make, logits, target, plain)


def test_the_loss_of_los_against_a_plain_loop():
    """Every label gets .98 / C, and the class of the image .02 more."""
    logits, target = make_batch()
    plain = []
    for z, y in rows_of(logits, target):
        labels = [0.98 / 4 + (0.02 if c == y else 0) for c in range(4)]
        plain.append(-sum(t * math.log(p) for t, p in zip(labels, plain_softmax(z), strict=True)))
    made = METHODS["los"].arguments()
    loss = made["loss"]
    loss.set_class_counts(COUNTS)
    assert loss(logits, target).item() == pytest.approx(sum(plain) / len(plain), rel=1e-6)
    torchs = torch.nn.CrossEntropyLoss(label_smoothing=0.98)
    torch.testing.assert_close(loss(logits, target), torchs(logits, target), check_dtype=False)
    assert made["reset"] and made["sampler"] == "instance" and not made["cbs"]
    assert METHODS["los"].arguments(smoothing=0.5)["loss"].tail_smoothing == 0.5


@pytest.mark.parametrize("shape", FORMULAS)
def test_smoothing_goes_from_tail_to_head(shape):
    power = 3 if shape == "power" else None
    loss = LabelAwareSmoothingLoss([1, 51, 101], 0.4, 0.1, shape, power)
    tail, middle, head = loss.smoothing.tolist()
    assert (tail, head) == (pytest.approx(0.1), pytest.approx(0.4))
    assert {"concave": middle > 0.25, "linear": middle == pytest.approx(0.25)}.get(
        shape, middle < 0.25
    )


@pytest.mark.parametrize("shape", FORMULAS)
def test_equal_counts_have_the_smoothing_of_the_tail(shape):
    power = 3 if shape == "power" else None
    loss = LabelAwareSmoothingLoss([5, 5, 5], 0.4, 0.1, shape, power)
    assert loss.smoothing.tolist() == pytest.approx([0.1] * 3, rel=1e-6)


@pytest.mark.parametrize("shape", FORMULAS)
def test_a_class_without_images_has_the_smoothing_of_the_tail(shape):
    power = 3 if shape == "power" else None
    loss = LabelAwareSmoothingLoss([9, 0, 2], 0.4, 0.1, shape, power)
    assert loss.smoothing.tolist() == pytest.approx([0.4, 0.1, 0.1], rel=1e-6)


def test_without_smoothing_it_is_cross_entropy():
    logits, target = make_batch()
    torch.testing.assert_close(
        LabelAwareSmoothingLoss(COUNTS, 0, 0)(logits, target), CrossEntropy()(logits, target)
    )


def test_alike_for_all_it_is_the_label_smoothing_of_torch():
    logits, target = make_batch()
    torch.testing.assert_close(
        LabelAwareSmoothingLoss(COUNTS, 0.2, 0.2)(logits, target),
        torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.2),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"head_smoothing": 1}, "head_smoothing must be .*, got 1"),
        ({"head_smoothing": -0.1}, "head_smoothing must be .*, got -0.1"),
        ({"tail_smoothing": 1.5}, "tail_smoothing must be .*, got 1.5"),
        ({"shape": "round"}, "shape must be one of concave, linear, convex, power, got 'round'"),
        ({"shape": "power"}, "power must be .*, got None"),
        ({"shape": "power", "power": 0}, "power must be .*, got 0"),
        ({"power": 2}, "power must be None with shape 'concave', got 2"),
    ],
)
def test_values_out_of_range(kwargs, message):
    with pytest.raises(UserError, match=message):
        LabelAwareSmoothingLoss(COUNTS, **kwargs)
