"""Two batches in one pass equal two passes."""

import pytest
import torch
from torch import nn

from ltlearn.models.halves import can_run_by_halves, running_by_halves


def make(affine=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU(), nn.BatchNorm2d(4)
    ).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_one_pass_equals_two(training, affine):
    one, two = make(affine).train(training), make(affine).train(training)
    x = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([two(half) for half in x.chunk(2)])
    with running_by_halves(one):
        joint = one(x)
    torch.testing.assert_close(joint, apart)
    for out in (joint, apart):
        out.square().sum().backward()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    assert one.state_dict().keys() == two.state_dict().keys()
    for key, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[key], value)
    assert int(one[1].num_batches_tracked) == 2 * training


def test_the_layers_are_as_before_after_an_error():
    model = make()
    with pytest.raises(RuntimeError), running_by_halves(model):
        model(torch.zeros(2, 1, 6, 6))
    assert [type(m) for m in (model[1], model[3])] == [nn.BatchNorm2d] * 2


class Own(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("layer", "can"),
    [(nn.BatchNorm2d(4), True), (nn.GroupNorm(2, 4), True), (Own(4), False),
     (nn.BatchNorm1d(4), False), (nn.SyncBatchNorm(4), False)],
)  # fmt: skip
def test_only_plain_batch_normalisation_runs_by_halves(layer, can):
    assert can_run_by_halves(nn.Sequential(nn.Conv2d(3, 4, 3), layer)) == can
