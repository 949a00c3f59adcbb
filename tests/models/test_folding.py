"""A network with folded batch normalisation returns the same, and is unchanged afterwards."""

import pytest
import timm
import torch
from torch import nn

from ltlearn.models.folding import folded_batch_norm
from ltlearn.models.pretrained import create_lt_model


def with_statistics(network):
    """Give the batch normalisations statistics and weights, as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


def norms_in(network):
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


NETWORKS = {
    "ours": lambda: create_lt_model("resnet20_cifar", 3, False, width=4).backbone,
    # Its normalisations include the activation.
    "timm": lambda: timm.create_model("lcnet_050", num_classes=0),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@torch.inference_mode()
def test_outputs_are_equal_and_the_modules_come_back(make):
    network = with_statistics(make())
    modules, state = list(network.modules()), network.state_dict()
    x = torch.randn(5, 3, 32, 32)
    expected = network(x)
    with pytest.raises(KeyboardInterrupt), folded_batch_norm(network) as run:
        out, again = run(x), run(x[2:])
        assert norms_in(network) == []
        raise KeyboardInterrupt
    scale = float(expected.abs().max())
    assert 0 < float((out - expected).abs().max()) < 1e-5 * scale  # folded from the first call on
    torch.testing.assert_close(again, expected[2:], rtol=0, atol=1e-5 * scale)
    assert all(a is b for a, b in zip(network.modules(), modules, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(network(x), expected)


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return (self.norm(x) + x).mean((2, 3))


class CalledTwice(UsedTwice):
    def forward(self, x):
        return (self.norm(self.conv(x)) + self.norm(self.conv(x.flip(2)))).mean((2, 3))


@pytest.mark.parametrize("make", [UsedTwice, CalledTwice])
@torch.inference_mode()
def test_a_network_that_cannot_be_folded_runs_as_it_is(make):
    network, x = with_statistics(make()), torch.randn(3, 3, 8, 8)
    expected = network(x)
    with folded_batch_norm(network) as run:
        assert torch.equal(run(x), expected)
        assert len(norms_in(network)) == 1
