"""A fit that is killed and resumed, compared with one that is not."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn import Checkpoint
from ltlearn.training.fit_callback import FitCallback
from tests.callbacks.helpers import make_dls, make_lt_learner

EPOCHS = 5


class Killed(Exception):
    pass


class Kill(FitCallback):
    """End a fit after a step of an epoch, later than its first batch; stage 2 needs no event."""

    order = 100
    uses_weights_alone = True

    def __init__(self, epoch=3):
        self.at = epoch

    def after_step(self):
        if self.learn.epoch == self.at and self.learn.iter >= 1:
            raise Killed("here")


class WithDropout(nn.Sequential):
    """A CIFAR ResNet and dropout, with the layer groups that timm asks for."""

    def group_matcher(self, coarse=False):
        return {"stem": r"^0\.(conv1|bn1)", "blocks": r"^0\.layer(\d+)"}


def learner(precision="fp32", **kwargs):
    learn = make_lt_learner(make_dls([20, 6, 4]), precision=precision, **kwargs)
    # Where draws matter in each step.
    learn.model.backbone = WithDropout(learn.model.backbone, nn.Dropout(0.3))
    return learn


def seed_all(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def outcome(learn):
    record = {k: v for k, v in learn.trajectory.items() if k != "seconds"}
    draws = [torch.rand(3).tolist(), np.random.rand(), random.random()]
    return dict(learn.model.state_dict()), json.dumps(record), draws, learn.dls.train.epoch


def assert_same(one, two):
    assert one[0].keys() == two[0].keys()
    assert [k for k, v in one[0].items() if not torch.equal(v, two[0][k])] == []
    assert one[1:] == two[1:]


def check_resumed(train, folder, make=learner, at=3, cbs=list, **options):
    """Compare a fit in one go with one that ends in the middle of an epoch and goes on."""
    learn = make()
    seed_all()
    train(learn, cbs=cbs())
    whole = outcome(learn)
    learn = make()
    seed_all()
    with pytest.raises(Killed):
        train(learn, cbs=[*cbs(), Kill(at), Checkpoint(folder, min_seconds=0, **options)])
    learn = make()
    seed_all(77)  # another process
    checkpoint = Checkpoint(folder, resume=True, min_seconds=0, **options)
    watch = Kill(-1)
    train(learn, cbs=[*cbs(), watch, checkpoint])
    assert learn.first_epoch in (0, at) or options
    assert checkpoint.last_ is not None
    assert_same(whole, outcome(learn))
    checkpoint.clear()
    assert not folder.exists()
    return learn


def stage1(learn, cbs, **kwargs):
    learn.fit_stage1(EPOCHS, 0.05, cbs=cbs, **kwargs)


def stage2(learn, cbs, **kwargs):
    learn.retrain_classifier(EPOCHS, 0.05, bs=8, cbs=cbs, **kwargs)
