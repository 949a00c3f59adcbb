"""The pretended CUDA device behaves as the real one, where the tests rely on it."""

import pytest
import torch
from torch import nn

from tests.device.simcuda import Sim, SimCuda


@pytest.fixture
def sim():
    with SimCuda() as state:
        yield state


def test_values_and_gradients_are_those_of_the_cpu(sim):
    torch.manual_seed(0)
    here = nn.Linear(4, 2)
    x = torch.randn(3, 4)
    here(x).relu().sum().backward()
    torch.manual_seed(0)
    there = nn.Linear(4, 2).to("cuda")
    there(x.to("cuda")).relu().sum().backward()
    assert isinstance(there.weight, Sim) and there.weight.grad.device.type == "cuda"
    assert torch.equal(there.weight.grad.cpu(), here.weight.grad)


def test_mixed_devices_are_refused(sim):
    with pytest.raises(RuntimeError, match="same device.*cuda:0 and cpu"):
        nn.Linear(4, 2).to("cuda")(torch.randn(3, 4))
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).sum().item() == 6  # a CPU scalar may


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.view(1)[x.view(1) > 0],
        lambda x: torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: torch.equal(x, x),
    ],
)
def test_a_wait_is_counted_by_its_line(sim, wait):
    x = torch.ones((), device="cuda")
    sim.reset()
    wait(x)
    ((_, where),) = sim.syncs
    assert sim.syncs.total() == 1 and "test_simcuda.py" in where


def test_what_waits_for_nothing_is_not_counted(sim):
    x = torch.ones(3, 3, device="cuda")
    torch.ones(3).to("cuda", non_blocking=True)
    assert sim.async_h2d.total() == 1
    x.t().add_(1).mm(x).softmax(0).zero_()
    assert not sim.syncs and sim.launches["mm"] == 1 and sim.launches["_softmax"] == 1


def test_a_graph_repeats_the_capture_in_place(sim):
    x, total = torch.zeros(3, device="cuda"), torch.zeros((), device="cuda")
    weight = torch.ones(3, device="cuda", requires_grad=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = (weight * x.view(1, 3)).square().sum()
        (grad,) = torch.autograd.grad(loss, weight)
        total.add_(loss.detach())
    assert total.item() == 0  # a capture computes nothing
    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
    assert (loss.item(), total.item(), grad.tolist()) == (12, 15, [8, 8, 8])
    with pytest.raises(RuntimeError, match="previous error during capture") as error:
        with torch.cuda.graph(graph):
            total.item()
    assert "_local_scalar_dense" in str(error.value.__cause__)


def test_the_device_is_gone_after_the_block():
    with SimCuda():
        pass
    assert torch.zeros(1).device.type == "cpu" and not isinstance(torch.zeros(1), Sim)
    assert torch.cuda.CUDAGraph.__module__.startswith("torch")


def test_a_module_of_the_cpu_keeps_its_parameters():
    with SimCuda():
        layer = torch.nn.Linear(2, 3)
        own = list(layer.parameters())
        assert all(a is b for a, b in zip(layer.to("cpu").double().parameters(), own, strict=True))
        assert layer.to("cuda").weight.is_cuda
