import copy

import pytest
import timm
import torch
from fastai.callback.core import Callback
from torch import nn

from ltlearn import UserError
from ltlearn.callbacks import LastBlock
from ltlearn.losses import CrossEntropy
from ltlearn.models.last_block import last_block
from tests.callbacks.helpers import make_lt_learner

BLOCKS = {
    "resnet10t": "layer4.0.",
    "resnet20_cifar": "layer3.2.",
    "vit_tiny_patch16_224": "blocks.11.",
    "convnext_atto": "stages.3.blocks.1.",
}


@pytest.mark.parametrize("arch", BLOCKS)
def test_the_last_block_is_timms(arch):
    found = last_block(timm.create_model(arch, num_classes=0))
    names = [name for name in found if not name.startswith(("norm", "head."))]
    assert names and all(f"{name}.".startswith(BLOCKS[arch]) for name in names)


def test_a_model_that_timm_does_not_group():
    with pytest.raises(UserError, match="Sequential has no layer groups"):
        last_block(nn.Sequential(nn.Linear(2, 2)))


def states(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_only_the_block_and_the_head_move_statistics_included(wd):
    learn = make_lt_learner()
    before = states(learn)
    stage = learn.fit_stage1(2, 0.05, wd=wd, cbs=LastBlock())
    assert stage["epoch"] and learn.stages[-1]["trained"] == "last block + head"
    names = set(last_block(learn.model.backbone))
    moved = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k for k in moved if k.startswith("head.")} == {"head.weight", "head.bias"}
    inside = {k for k in before if k.removeprefix("backbone.").rpartition(".")[0] in names}
    assert moved - {"head.weight", "head.bias"} == inside and any("running" in k for k in inside)
    assert all(p.requires_grad for p in learn.model.parameters())
    # And without it, everything moves again.
    learn.fit_stage1(1, 0.05)
    assert not torch.equal(states(learn)["backbone.conv1.weight"], before["backbone.conv1.weight"])


def test_what_was_frozen_steps_like_a_new_parameter():
    # torch's fused SGD fails where some parameters of a group have momentum and others do not.
    from ltlearn.training.loop import _SGD

    def make():
        return [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))]

    fused, plain = make(), make()
    opts = _SGD(fused, 0.1, momentum=0.9), torch.optim.SGD(plain, 0.1, momentum=0.9, fused=False)
    for step in range(4):
        for params, opt in zip((fused, plain), opts, strict=True):
            for p in params[: 1 if step < 2 else 2]:
                p.grad = p.detach() * (step + 1)
            opt.step()
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_it_equals_a_plain_loop_over_what_trains():
    learn = make_lt_learner()
    model = copy.deepcopy(learn.model)
    block = list(last_block(model.backbone).values())
    trained = [p for m in block for p in m.parameters(recurse=False)]
    trained += list(model.head.parameters())
    opt = torch.optim.SGD(trained, 0.05, momentum=0.9, weight_decay=5e-4)
    batches = []

    class Keep(Callback):
        def before_batch(self):
            if self.training:
                batches.append((self.x.clone(), self.y.clone()))

    learn.fit_stage1(1, 0.05, wd=5e-4, schedule="constant", cbs=[LastBlock(), Keep()])
    model.eval()
    for m in block:
        m.training = True
    for x, y in batches:
        opt.zero_grad()
        CrossEntropy()(model(x), y).backward()
        opt.step()
    for (name, a), b in zip(
        learn.model.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_a_new_block_begins_at_random_and_the_same_for_a_seed():
    learn = make_lt_learner(arch="resnet20_cifar")
    before = states(learn)
    weights = []
    for seed in (0, 0, 1):
        learn.model.load_state_dict(before)
        learn.fit_stage1(0, 0.05, cbs=LastBlock(new=True, seed=seed))
        weights.append(states(learn)["backbone.layer3.2.conv1.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], before["backbone.layer3.2.conv1.weight"])
    assert torch.equal(
        states(learn)["backbone.layer3.1.conv1.weight"], before["backbone.layer3.1.conv1.weight"]
    )


def test_what_is_refused():
    with pytest.raises(UserError, match="new must be True or False, got 1"):
        LastBlock(new=1)
    with pytest.raises(UserError, match="seed must be .*, got -1"):
        LastBlock(seed=-1)


def test_stage_2_shifts_the_statistics_of_the_block_alone():
    learn = make_lt_learner(arch="resnet20_cifar")
    before = states(learn)
    learn.retrain_classifier(2, method="crt", bn="last_block")
    moved = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    outside = {k for k in moved if not k.startswith(("head.", "backbone.layer3.2."))}
    assert not outside and any(k.startswith("backbone.layer3.2.bn1.running") for k in moved)
    assert not any(k.endswith("conv1.weight") for k in moved)
    with pytest.raises(UserError, match="views must be 0 with bn='last_block'"):
        learn.retrain_classifier(1, bn="last_block", views=1)
