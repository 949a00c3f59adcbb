"""Tiny learners for the tests of callbacks, features and the LTLearner."""

from functools import partial

import fastai.callback.schedule  # noqa: F401  (gives Learner its fit_one_cycle)
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam, OptimWrapper
from timm.models import VisionTransformer, build_model_with_cfg, get_pretrained_cfg, register_model
from torch import nn
from torch.utils.data import Dataset

from ltlearn import LTDataLoaders, SAMNLinear, lt_learner
from ltlearn.models.backbone import find_head
from ltlearn.models.cifar_resnet import CifarResNet

COUNTS = [40, 12, 4]


@register_model
def resnet8_cifar(pretrained=False, **kwargs):
    """The CIFAR ResNet with one block a stage, which trains in half the time of ResNet-20."""
    kwargs = {"depth": 8, "feature_cfg": {"out_indices": (0, 1, 2)}, **kwargs}
    kwargs["pretrained_cfg"] = get_pretrained_cfg("resnet20_cifar")
    return build_model_with_cfg(CifarResNet, "resnet8_cifar", pretrained, **kwargs)


@register_model
def vit_two_blocks(pretrained=False, **kwargs):
    """A vision transformer of 2 x 2 tokens, for images of 8 pixels."""
    kwargs = {
        "img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2, **kwargs,
    }  # fmt: skip
    kwargs["pretrained_cfg"] = get_pretrained_cfg("vit_tiny_patch16_224")
    return build_model_with_cfg(VisionTransformer, "vit_two_blocks", pretrained, **kwargs)


def make_images(counts=COUNTS, side=8, seed=0):
    """Images whose brightness tells the class, with noise."""
    generator = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    images = generator.integers(0, 120, (len(targets), side, side, 3))
    images += (targets * 100 // max(1, len(counts) - 1))[:, None, None, None]
    return images.astype(np.uint8), targets


def make_dls(counts=COUNTS, side=8, bs=8, **kwargs):
    valid, test = make_images([4] * len(counts), side, 1), make_images([3] * len(counts), side, 2)
    kwargs = {"valid": valid, "test": test, "device": "cpu", **kwargs}
    return LTDataLoaders.from_arrays(*make_images(counts, side), bs=bs, **kwargs)


def make_lt_learner(dls=None, seed=0, arch="resnet8_cifar", **kwargs):
    torch.manual_seed(seed)
    kwargs = {"precision": "fp32", "pretrained": False, **kwargs}
    if str(arch).endswith("_cifar"):
        kwargs.setdefault("width", 4)
    return lt_learner(dls or make_dls(), arch, **kwargs)


VIT = {
    "arch": "vit_tiny_patch16_224", "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2,
}  # fmt: skip


def model_of(method):
    """Return arguments of `make_lt_learner` for a network that a method of stage 1 can train."""
    return VIT if method in ("adaptformer", "lora") else {}


def make_vit_learner(dls=None, seed=0, **kwargs):
    return make_lt_learner(dls, seed, **{**VIT, **kwargs})


class Stop(Callback):
    """Stop a training before one of its steps."""

    order = 95

    def __init__(self, error, steps):
        self.error, self.left = error, steps

    def before_batch(self):
        if self.learn.training:
            self.left -= 1
            if self.left < 0:
                raise self.error


class Second(Callback):
    """Change something before the second epoch."""

    def __init__(self, change):
        self.change = change

    def before_epoch(self):
        if self.learn.epoch == 1:
            self.change(self.learn)


class Points(Dataset):
    """Three clouds of 40, 12 and 4 points; `targets` only where asked for."""

    n_inp = 1

    def __init__(self, shape=(6,), tell=True):
        generator = np.random.default_rng(0)
        y = np.repeat([0, 1, 2], COUNTS)
        x = generator.normal(size=(len(y), *shape)).astype(np.float32)
        x += y.reshape(-1, *[1] * len(shape))
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        if tell:
            self.targets = self.y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def assert_monotone(head):
    assert isinstance(head, SAMNLinear)
    for raw in (head.raw_norm_weight, head.raw_norm_bias):
        assert raw is None or (raw[head.rank_to_class].diff() >= 0).all()


class Spy(Callback):
    """Look at the head after every step, and stop a fit at a given step."""

    order = 90

    def __init__(self, stop=None, at="before_batch", after=2):
        self.steps, self.stop, self.at, self.after = 0, stop, at, after

    def _maybe_stop(self, event):
        if self.stop is not None and event == self.at and self.steps == self.after:
            raise self.stop

    def before_batch(self):
        if self.learn.training:
            self._maybe_stop("before_batch")

    def before_backward(self):
        self._maybe_stop("before_backward")

    def after_step(self):
        self.steps += 1
        head = find_head(self.learn.model)[1]
        assert_monotone(head)
        assert all(p.grad is not None for p in head.parameters() if p.requires_grad)


def make_learner(model=None, shape=(6,), opt_func=SGD, tell=True, tmp_path=".", **kwargs):
    torch.manual_seed(0)
    np.random.seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = Points(shape, tell)
    dls = DataLoaders.from_dsets(data, data, bs=8, device="cpu", num_workers=0)
    kwargs = {"loss_func": CrossEntropyLossFlat(), **kwargs}
    learn = Learner(dls, model, opt_func=opt_func, path=tmp_path, **kwargs)
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name == "progress"))
    learn.logger = lambda *_: None
    return learn


def two_groups(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


torch_sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)
OPTIMIZERS = {
    "SGD": partial(SGD, mom=0.9),
    "Adam": Adam,
    "torch SGD": torch_sgd,
    "torch AdamW": partial(OptimWrapper, opt=torch.optim.AdamW),
}
