import pytest
import timm
import torch
from torch import nn

from ltlearn import AdaptFormer, UserError
from tests.callbacks.helpers import make_dls, make_lt_learner, make_vit_learner


def test_activations_are_computed_again_with_the_same_result():
    calls, states = [], []
    for switch in (False, True):
        learn = make_vit_learner(make_dls([20, 6, 4]))
        block, count = learn.model.backbone.blocks[1].mlp, [0]
        block.register_forward_hook(
            lambda m, *_, count=count: count.append(torch.is_grad_enabled() and m.fc1.weight.ndim)
        )
        learn.fit_stage1(1, 0.05, cbs=AdaptFormer(), grad_checkpointing=switch)
        calls.append(sum(map(bool, count)))
        states.append(list(learn.model.state_dict().values()))
        assert learn.model.backbone.grad_checkpointing is False
    assert calls[1] == 2 * calls[0] > 0
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_model_without_the_switch_gets_one_sentence():
    learn = make_lt_learner()
    learn.model.backbone = nn.Sequential(learn.model.backbone)
    with pytest.raises(UserError, match="grad_checkpointing=True.*Sequential"):
        learn.fit_stage1(1, 0.05, grad_checkpointing=True)
    learn.model.backbone = timm.create_model("resnet20_cifar", num_classes=0, width=4)
    with pytest.raises(UserError, match="grad_checkpointing=True.*CifarResNet"):
        learn.fit_stage1(1, 0.05, grad_checkpointing=True)
