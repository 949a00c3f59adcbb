"""The two steps of the built-in post-hoc methods: choose a strength, and apply it."""

import copy

import numpy as np
import torch
from torch import nn

from ltlearn.errors import UserError
from ltlearn.heads.experts import ExpertHead
from ltlearn.heads.nearest_mean import NearestClassMean
from ltlearn.posthoc import (
    logit_adjustment,
    nearest_mean,
    prior_matching,
    tau_norm,
    temperature,
)
from ltlearn.posthoc.choose import TauChoice
from ltlearn.posthoc.data import PosthocData

__all__ = [
    "apply_expert",
    "apply_logit_adjustment",
    "apply_nearest_mean",
    "apply_prior_matching",
    "apply_tau_norm",
    "apply_temperature",
    "choose_logit_adjustment",
    "choose_tau_norm",
    "choose_temperature",
]


def choose_tau_norm(data: PosthocData, keep_bias: bool = True) -> TauChoice:
    """Choose tau by the class-balanced accuracy on the validation images."""
    return tau_norm.choose_tau_norm(data.linear, data.features, data.targets, keep_bias)


def apply_tau_norm(data: PosthocData, tau: float, keep_bias: bool = True) -> nn.Linear:
    """Divide the weights of each class by their norm to the power tau."""
    return tau_norm.tau_normalize(data.linear, tau, keep_bias)


def choose_logit_adjustment(data: PosthocData) -> TauChoice:
    """Choose tau by the class-balanced accuracy on the validation images."""
    return logit_adjustment.choose_logit_adjustment(
        data.linear, data.features, data.targets, data.class_counts
    )


def apply_logit_adjustment(data: PosthocData, tau: float) -> nn.Linear:
    """Subtract tau times the log share of each class from its logit."""
    return logit_adjustment.adjust_logits(data.linear, data.class_counts, tau)


def choose_temperature(data: PosthocData) -> TauChoice:
    """Find the temperature with the smallest NLL on the validation images."""
    linear = data.linear
    x = torch.from_numpy(np.asarray(data.features)).to(linear.weight)
    with torch.no_grad():
        return TauChoice(temperature.fit_temperature(linear(x), data.targets), [])


def apply_temperature(data: PosthocData, value: float) -> nn.Linear:
    """Divide the logits by the temperature."""
    return temperature.scale_temperature(data.linear, value)


def apply_expert(data: PosthocData, _: None, expert: int) -> ExpertHead:
    """Take one expert alone, by its number from 1."""
    head = data.head
    if not isinstance(head, ExpertHead) or head.experts < expert:
        found = f"{head.experts}" if isinstance(head, ExpertHead) else f"a {type(head).__name__}"
        raise UserError(
            f"expert_{expert} needs a classifier of {max(expert, 2)} or more experts, got {found}; "
            "train stage 1 with balpoe or sade."
        )
    head = copy.deepcopy(head)
    head.set_weights([float(e == expert - 1) for e in range(head.experts)])
    return head


def apply_nearest_mean(data: PosthocData, _: None) -> NearestClassMean:
    """Make a classifier of the mean training feature of each class."""
    return nearest_mean.nearest_class_mean(data.features, data.targets, data.num_classes)


def apply_prior_matching(data: PosthocData, _: None) -> nn.Linear:
    """Shift the logits until every class is predicted equally often on the validation images."""
    if data.features is None:  # too few images: the shift of logit adjustment with tau 1
        return logit_adjustment.adjust_logits(data.linear, data.class_counts)
    return prior_matching.match_prior(data.linear, data.features, data.targets, data.class_counts)
