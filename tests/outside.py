"""Toy methods that tests register as a package from outside the library would."""

from contextlib import contextmanager

import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn import functional as F

from ltlearn import Method
from ltlearn.callbacks.install import install_head
from ltlearn.heads import Foldable, register_head, unregister_head
from ltlearn.methods import registered_method
from ltlearn.posthoc import adjust_logits, choose_logit_adjustment

SOURCE = "a package from outside"


class PowerLoss(nn.Module):
    """Cross-entropy to a power."""

    used = []

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, logits, targets):
        self.used.append(self.power)
        return (F.cross_entropy(logits, targets, reduction="none") ** self.power).mean()


class GainLinear(Foldable):
    """A linear layer with one gain for all classes."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.in_features, self.out_features = in_features, num_classes
        self.weight = nn.Parameter(torch.zeros(num_classes, in_features))
        self.gain = nn.Parameter(torch.ones(()))

    def effective(self):
        return self.gain * self.weight, None

    def forward(self, x):
        return F.linear(x, *self.effective())

    @classmethod
    def from_linear(cls, linear):
        head = cls(linear.in_features, linear.out_features)
        head.weight.data.copy_(linear.weight.data)
        return head

    @classmethod
    def from_state(cls, state):
        return cls(*reversed(state["weight"].shape))


class GainHead(Callback):
    """Train a `GainLinear` with a gain that is limited."""

    order = 5
    head_type = GainLinear
    leaves_prior = False

    def __init__(self, limit):
        self.limit = limit

    def before_fit(self):
        if not self.learn.lock.locked():
            install_head(self.learn, GainLinear, GainLinear.from_linear)

    def after_step(self):
        self.learn.model.head.gain.data.clamp_(max=self.limit)


def apply_shift(data, tau):
    return adjust_logits(data.linear, data.prior, tau)


def choose_shift(data):
    return choose_logit_adjustment(data.linear, data.features, data.targets, data.prior)


HEAD = Method(
    "gain", "stage 2", SOURCE, "own", callbacks=lambda **options: [GainHead(**options)],
    callback_options={"limit": 1.5}, values={"epochs": 2, "lr": 0.05},
)  # fmt: skip


@contextmanager
def registered_gain():
    """Register the method "gain" and its head inside the block."""
    register_head(GainLinear, lambda keys: set(keys) == {"weight", "gain"}, GainLinear.from_state)
    try:
        with registered_method("gain", HEAD):
            yield
    finally:
        unregister_head(GainLinear)
