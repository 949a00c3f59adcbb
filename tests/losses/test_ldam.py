import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.losses import LDAMLoss
from tests.losses.helpers import COUNTS, assert_reductions, make_batch, plain_cross_entropy, rows_of

WEIGHTS = [0.5, 2, 1, 3]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("max_margin, scale", [(0.5, 30.0), (0.2, 5.0), (0, 1)])
def test_against_a_plain_loop(max_margin, scale, weights):
    logits, target = make_batch()
    cosines = logits.tanh()
    w, plain = [1.0 if weights is None else weights[y] for y in target.tolist()], []
    for z, y in rows_of(cosines, target):
        margin = max_margin * (COUNTS[y] / min(COUNTS)) ** -0.25
        row = [scale * (z[c] - margin * (c == y)) for c in range(4)]
        plain.append(plain_cross_entropy(row, y))
    plain = [v * loss for v, loss in zip(w, plain, strict=True)]

    def make(reduction):
        return LDAMLoss(COUNTS, max_margin, scale, weights, reduction)

    assert_reductions(make, scale * cosines, target, plain, sum(w))


def test_the_gradients_are_those_of_a_loss_that_scales_the_cosines_itself():
    cosines, target = make_batch()
    cosines = cosines.tanh().requires_grad_()
    margins = torch.tensor([0.5 * (n / min(COUNTS)) ** -0.25 for n in COUNTS]).double()
    margin = torch.nn.functional.one_hot(target, 4) * margins
    expected = torch.nn.functional.cross_entropy(30 * (cosines - margin), target)
    value = LDAMLoss(COUNTS)(30 * cosines, target)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(v, cosines)[0] for v in (value, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_margins():
    assert LDAMLoss([16, 1]).margins.tolist() == [0.25, 0.5]
    assert LDAMLoss([7, 7], max_margin=0.3).margins.tolist() == pytest.approx([0.3, 0.3])
    assert LDAMLoss([16, 0, 1]).margins.tolist() == [0.25, 0, 0.5]


def test_without_margin_it_is_cross_entropy():
    logits, target = make_batch()
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(LDAMLoss(COUNTS, max_margin=0)(logits, target), expected)


def test_the_logits_are_logits():
    """They were once bare cosines, of which a plain softmax made nonsense."""
    logits, _ = make_batch()
    loss = LDAMLoss(COUNTS, scale=4.0)
    torch.testing.assert_close(loss.activation(logits), logits.softmax(1))


def test_the_logits_are_left_as_they_are():
    logits, target = make_batch()
    before = logits.clone()
    LDAMLoss(COUNTS)(logits, target)
    assert torch.equal(logits, before)


def test_values_out_of_range():
    with pytest.raises(UserError, match="max_margin must be .*, got"):
        LDAMLoss(COUNTS, max_margin=-0.5)
    with pytest.raises(UserError, match="scale must be .*, got 0"):
        LDAMLoss(COUNTS, scale=0)
    with pytest.raises(UserError, match="weights must not be 0 for all 4 classes"):
        LDAMLoss(COUNTS, weights=[0, 0, 0, 0])
