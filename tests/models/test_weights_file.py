"""Where a file keeps the weights, for the programs that write such files."""

import argparse
import datetime
import pathlib

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ltlearn import UserError
from ltlearn.models import create_lt_model
from ltlearn.models.weights_file import read_weights_file

ARCH, WIDTH = "resnet20_cifar", 4


def below(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model(ARCH, width=WIDTH, num_classes=3).eval()


def load(content, tmp_path, **options):
    torch.save(content, tmp_path / "w.pth")
    options = {"keep_head": True, **options}
    return create_lt_model(ARCH, 3, tmp_path / "w.pth", width=WIDTH, **options).eval()


def assert_same(cut, model):
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), model(x))


CONTAINERS = {
    "plain": lambda s: s,
    "DataParallel": lambda s: below("module.", s),
    "compiled": lambda s: below("module._orig_mod.", s),
    "Lightning": lambda s: {"state_dict": below("model.", s), "pytorch-lightning_version": "2.5"},
    "Lightning, net": lambda s: {"state_dict": below("net.", s), "epoch": 3},
    "Lightning, inside": lambda s: {"state_dict": below("net.model.", s)},
    "Lightning, with a loss": lambda s: {
        "state_dict": {**below("model.", s), "criterion.weight": torch.ones(3)}
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.3},
    "net": lambda s: {"net": below("module.", s), "acc": 91.2},
    "model": lambda s: {"model": s},
    "average alone": lambda s: {"model_ema": s},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(3), **below("module.", s)},
    "equal average": lambda s: {"state_dict": s, "state_dict_ema": {k: v for k, v in s.items()}},
    "NumPy and Python objects": lambda s: {
        "state_dict": s, "best_acc1": np.float64(0.5), "curve": np.zeros(3), "n": np.int64(3),
        "args": argparse.Namespace(lr=0.1), "path": pathlib.Path("x"),
        "date": datetime.datetime(2026, 1, 1),
    },
    "optimiser": lambda s: {
        "state_dict": s,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_weights_are_found(kind, model, tmp_path):
    assert_same(load(CONTAINERS[kind](model.state_dict()), tmp_path), model)


def split_model(model):
    state = model.state_dict()
    head = {k.removeprefix("fc."): v for k, v in state.items() if k.startswith("fc.")}
    return {k: v for k, v in state.items() if not k.startswith("fc.")}, head


def test_backbone_and_classifier_side_by_side(model, tmp_path):
    backbone, head = split_model(model)
    feat, fc = below("module.", backbone), below("module.fc.", head)
    # classifier-balancing, MiSLAS, and a Lightning module of two parts.
    for content in (
        {"state_dict_best": {"feat_model": feat, "classifier": fc}, "best_acc": np.float64(1)},
        {"state_dict_model": feat, "state_dict_classifier": fc},
        {"state_dict": {**below("encoder.", backbone), **below("linear.", head)}},
    ):
        assert_same(load(content, tmp_path), model)
    lws = {"learned_norm": torch.rand(1, 3)}
    content = {"state_dict_model": feat, "state_dict_classifier": fc, "state_dict_lws_model": lws}
    with pytest.raises(UserError, match=r"learned_norm beside the backbone.*keep_head"):
        load(content, tmp_path)
    load(content, tmp_path, keep_head=False)
    neck = {"neck.weight": torch.rand(64), "neck.bias": torch.rand(64)}
    with pytest.raises(UserError, match=r"2 tensors such as neck\.weight beside"):
        load({**below("encoder.", backbone), **below("head.", head), **neck}, tmp_path)


def test_of_several_sets_the_user_chooses(model, tmp_path):
    state = model.state_dict()
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {"state_dict": state, "state_dict_ema": zeros}
    with pytest.raises(UserError, match=r"state_dict, state_dict_ema.*weights_key='state_dict_ema"):
        load(content, tmp_path)
    assert_same(load(content, tmp_path, weights_key="state_dict"), model)
    averaged = load(content, tmp_path, weights_key="state_dict_ema")
    assert not any(p.any() for p in averaged.parameters())
    with pytest.raises(UserError, match=r"weights_key='ema' names no weights.*state_dict_ema"):
        load(content, tmp_path, weights_key="ema")
    inside = {"state_dict": {**below("model.", state), **below("ema.module.", zeros)}}
    with pytest.raises(UserError, match=r"state_dict\.model, state_dict\.ema\.module"):
        load(inside, tmp_path)
    assert_same(load(inside, tmp_path, weights_key="model"), model)
    with pytest.raises(UserError, match=r"weights_key='x'.*weights file.*False"):
        create_lt_model(ARCH, 3, False, width=WIDTH, weights_key="x")


@pytest.mark.parametrize("with_opt", [True, False])
def test_files_of_fastai(model, tmp_path, with_opt):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    data = [(torch.zeros(3, 8, 8), 0)] * 4
    learn = Learner(
        DataLoaders.from_dsets(data, data, bs=2, device="cpu"), model,
        loss_func=nn.CrossEntropyLoss(), path=tmp_path,
    )  # fmt: skip
    learn.create_opt()
    learn.save("fastai", with_opt=with_opt)
    file = tmp_path / "models/fastai.pth"
    cut = create_lt_model(ARCH, 3, file, keep_head=True, width=WIDTH)
    assert_same(cut.eval(), model)


def test_a_vision_learner_gives_its_backbone_alone(model, tmp_path):
    backbone, _ = split_model(model)
    layers = {
        "1.2.weight": torch.rand(16), "1.2.running_mean": torch.rand(16),
        "1.4.weight": torch.rand(8, 16), "1.8.weight": torch.rand(3, 8),
    }  # fmt: skip
    content = {"model": {**below("0.model.", backbone), **layers}}
    with pytest.raises(UserError, match=r"several \(1\.4, 1\.8\).*vision_learner.*keep_head"):
        load(content, tmp_path)
    cut = load(content, tmp_path, keep_head=False)
    assert torch.equal(cut.backbone.conv1.weight, model.conv1.weight)
    with pytest.raises(UserError, match="numbers for names.*vision_learner"):
        load({"0.0.weight": torch.rand(4, 3, 3, 3)}, tmp_path)


class Danger:
    def __reduce__(self):
        return print, ("this code ran",)


def test_no_object_of_a_file_is_made(tmp_path, capsys):
    file = tmp_path / "w.pth"
    weights = {"weight": torch.zeros(2, 2)}
    torch.save({"state_dict": weights, "best": np.float64(0.5), "dtype": np.dtype("O")}, file)
    content = read_weights_file(file)
    # A dtype from a file could alias memory, so not even that is one.
    assert type(content["best"]).__name__ == type(content["dtype"]).__name__ == "_StandIn"
    torch.save({"state_dict": weights, "extra": Danger()}, file)
    with pytest.raises(UserError, match="could run code"):
        read_weights_file(file)
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(UserError, match=r"state_dict\(\)"):
        read_weights_file(file)
    assert "this code ran" not in capsys.readouterr().out
    torch.save([torch.zeros(2)], file)
    with pytest.raises(UserError, match="holds a list"):
        read_weights_file(file)
