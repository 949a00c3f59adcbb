from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from ltlearn import UserError
from ltlearn.training.sync_norm import SyncBatchNorm
from ltlearn.utils import ranks
from tests.callbacks.helpers import make_lt_learner


def kinds(model):
    return [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__]


def test_one_rank_keeps_its_layers():
    learn = make_lt_learner()
    trajectory = learn.fit_stage1(1, 0.01, sync_bn=True)
    assert trajectory["epoch"] == [1]
    assert set(kinds(learn.model)) == {"BatchNorm2d"}
    assert "SyncBatchNorm" in learn.stages[-1].callbacks


def test_the_layers_are_replaced_and_put_back(monkeypatch):
    model = timm.create_model("efficientnet_b0", num_classes=0)  # layers with an activation
    before, state = kinds(model), model.state_dict()
    parameters = list(model.parameters())
    model.train()
    callback = SyncBatchNorm()
    monkeypatch.setattr(ranks, "world", lambda: 2)
    device = torch.device("cuda")
    fake = SimpleNamespace(modules=model.modules, parameters=lambda: iter([on(device)]))
    callback.learn = SimpleNamespace(model=fake)
    callback.begin()
    assert set(kinds(model)) == {"SyncBatchNormAct"}
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == state.keys()
    model.bn1.running_mean += 1
    model.eval()
    callback.end()
    assert kinds(model) == before
    assert (model.bn1.running_mean == 1).all() and not model.bn1.training
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def on(device):
    return SimpleNamespace(device=device)


def test_ranks_on_a_cpu_are_refused(monkeypatch):
    callback = SyncBatchNorm()
    callback.learn = SimpleNamespace(model=nn.BatchNorm2d(3))
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(UserError, match=r"sync_bn=True.*CUDA.*2 ranks.*CPU"):
        callback.begin()
