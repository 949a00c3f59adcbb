from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD, Adam
from torch import nn

from ltlearn import CosineHead, LayerDecay, UserError
from ltlearn.callbacks.adapters import AdaptFormer
from tests.callbacks.helpers import make_dls, make_learner, make_vit_learner


class Rates(Callback):
    """Record the learning rate of each parameter in the first step of each epoch."""

    def __init__(self):
        self.seen = []

    def before_step(self):
        if self.learn.iter == 0:
            names = {id(p): n for n, p in self.learn.model.named_parameters()}
            groups = zip(self.learn.opt.param_lists, self.learn.opt.hypers, strict=True)
            self.seen.append({names[id(p)]: h["lr"] for ps, h in groups for p in ps})


def small(**kwargs):
    return make_vit_learner(make_dls([20, 6, 4]), **kwargs)


@pytest.mark.parametrize("opt_func", [None, partial(SGD, mom=0.9), Adam])
def test_each_layer_has_its_rate_and_follows_the_schedule(opt_func):
    learn, rates = small(), Rates()
    cbs = [LayerDecay(0.5), CosineHead(), rates, AdaptFormer()]
    learn.fit_stage1(2, [0.01, 0.1], opt_func=opt_func, cbs=cbs)
    first, second = rates.seen
    assert first.keys() == dict(learn.model.named_parameters()).keys()
    assert second == pytest.approx({k: v / 2 for k, v in first.items()})
    assert first["head.weight"] == 0.1 and first["backbone.norm.weight"] == 0.01
    for name, layers in (("blocks.1.", 0), ("blocks.0.", 1), ("patch_embed.", 2)):
        found = {v for k, v in first.items() if k.startswith(f"backbone.{name}")}
        assert list(found) == pytest.approx([0.01 * 0.5**layers])


def test_with_a_decay_of_1_nothing_changes():
    learns = [small(), small()]
    for learn, cbs in zip(learns, ([], [LayerDecay(1.0)]), strict=True):
        learn.fit_stage1(2, [0.01, 0.1], cbs=cbs)
    for a, b in zip(*(learn.model.state_dict().values() for learn in learns), strict=True):
        assert torch.equal(a, b)


def test_the_groups_of_the_learner_come_back():
    learn = small()
    learn.fit(1, 0.05, cbs=[LayerDecay(), CosineHead(), AdaptFormer()])
    ids = [{id(p) for p in group} for group in learn.opt.param_lists]
    parts = learn.model.backbone, learn.model.head
    assert ids == [{id(p) for p in part.parameters()} for part in parts]
    assert [h["lr"] for h in learn.opt.hypers] == [0.05, 0.05]


def test_momenta_go_on():
    learn = small()
    learn.fit(1, 0.05)
    momenta = {p: s["momentum_buffer"].clone() for p, s in learn.opt.opt.state.items()}
    learn.fit(1, 0.05, cbs=LayerDecay())
    state = learn.opt.opt.state
    assert state.keys() == momenta.keys()
    assert any(not state[p]["momentum_buffer"].equal(m) for p, m in momenta.items())


def test_refusals():
    with pytest.raises(UserError, match="layer_decay must be .*, got 0"):
        LayerDecay(0)
    with pytest.raises(UserError, match="LayerDecay.*Sequential"):
        make_learner(nn.Sequential(nn.Linear(6, 3))).fit(1, 0.1, cbs=LayerDecay())
