"""A stage 1 that leaves the backbone as it is, and trains a linear classifier on its features."""

import time
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.posthoc.class_rows import class_means, fit_logistic, some_of_each
from ltlearn.posthoc.linear import new_linear, warn_without_images
from ltlearn.posthoc.temperature import fit_temperature
from ltlearn.training.collectives import copy_from_first
from ltlearn.training.history import head_norms
from ltlearn.training.plan import ProbePlan
from ltlearn.training.scaled_features import ScaledFeatures, Scaling
from ltlearn.training.stage import record_stage, set_checkpoint_facts
from ltlearn.training.stage2 import callbacks_of, on_features
from ltlearn.utils import ranks

__all__ = ["run_probe"]

# The most images of the logistic regression. As a start it may be rough, and must take seconds.
_MAX_PER_CLASS, _MAX_IMAGES = 100, 20_000
_LOGISTIC_ITERATIONS = 50
_LOGISTIC_C = 10.0
_ROWS = 4096  # images that decide the temperature of the class means


def run_probe(learn: Learner, plan: ProbePlan) -> None:
    """Train a new linear classifier on cached features; record the stage in the learner.

    Args:
        learn: An `LTLearner`.
        plan: The plan of the stage.

    Raises:
        UserError: If training diverges; the head is then the one before.
    """
    began, before = time.perf_counter(), learn.model.head
    if ranks.world() > 1:
        # As a fit of the whole model begins: each rank computes a part of the features.
        ranks.start()
        copy_from_first(learn.model.state_dict().values())
    train = learn.features("train", plan.views, plan.view_seed)
    scaling = Scaling.of(train)
    parts = scaling.apply(train), scaling.apply(learn.features("valid"))
    learn.model.head, learn.opt = _first_head(learn, plan, parts[0]), None
    set_checkpoint_facts(learn, plan)
    callbacks = callbacks_of(plan, "stage 1")
    options: dict[str, Any] = {"stage": "stage 1", "start": False}
    options["norms"] = lambda model: head_norms(scaling.unscaled(model.head))
    try:
        with on_features(learn, plan, callbacks, parts, **options) as (fitted, trajectory, cbs):
            fitted.fit(plan.epochs, plan.lr, plan.weight_decay, cbs, reset_opt=True)
    except UserError:
        # A head that diverged, or was not trained at all, is of no use.
        learn.model.head, learn.opt = before, None
        raise
    finally:
        # The learner gets the trained head also after an interruption.
        if learn.model.head is not before:
            learn.model.head = scaling.unscaled(learn.model.head)
    record_stage(
        learn, plan, trajectory, callbacks, began,
        stage="stage 1", trained="head", bn="frozen", on=plan.on, head="new",
    )  # fmt: skip


def _first_head(learn: Learner, plan: ProbePlan, features: ScaledFeatures) -> nn.Linear:
    """Return the classifier over scaled features that the training begins with."""
    width, n_classes = features.views[0].shape[1], learn.dls.c
    like = nn.utils.skip_init(nn.Linear, width, n_classes, device=learn.dls.device)
    weight, bias = torch.zeros(n_classes, width), torch.zeros(n_classes)
    if plan.start == "class_means":
        weight, bias = _class_means(features, n_classes, plan.seed)
    elif plan.start == "logistic":
        weight, bias = _logistic_regression(features, n_classes, plan.seed)
    return new_linear(like, weight, bias)


def _class_means(features: ScaledFeatures, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the classifier by the nearest class mean, with likely logits.

    Logits are half the negative squared distances, up to a term that all classes share, over a
    temperature that makes the training images as likely as possible.
    """
    targets, scaling = features.targets, features.scaling
    counts = torch.bincount(targets, minlength=n_classes)
    warn_without_images(counts, "the weights of the probe begin at zero there")
    means = class_means(features.views[0], targets, n_classes)
    weight = scaling.scale_(means).float()
    weight[counts == 0] = 0
    bias = -0.5 * weight.square().sum(1)
    bias[counts == 0] = bias.min()
    index = np.random.RandomState(seed).permutation(len(targets))[:_ROWS]
    x, y = features.get_batch(np.sort(index))
    temperature = fit_temperature(torch.addmm(bias, x, weight.T), y)
    return weight / temperature, bias / temperature


def _logistic_regression(
    features: ScaledFeatures, n_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a logistic regression on equally many images of each class."""
    most = max(1, min(_MAX_PER_CLASS, _MAX_IMAGES // n_classes))
    x, y = features.get_batch(some_of_each(features.targets.numpy(), most, seed))
    return fit_logistic(x, y, n_classes, C=_LOGISTIC_C, max_iter=_LOGISTIC_ITERATIONS)
