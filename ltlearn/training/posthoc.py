"""Post-hoc correction of a learner's classifier."""

import logging
import time
from dataclasses import replace

import numpy as np
import torch
from fastai.learner import Learner

from ltlearn.heads.normalized import NormalizedFeatureHead
from ltlearn.heads.registry import as_linear_over_features
from ltlearn.methods import METHODS
from ltlearn.metrics.priors import prior_vector
from ltlearn.posthoc.data import PosthocData
from ltlearn.training.plan import PosthocPlan
from ltlearn.training.records import CorrectionRecord, PosthocRecord
from ltlearn.training.selection import is_too_small_to_select, selects_on
from ltlearn.training.stage import make_trajectory

__all__ = ["run_posthoc"]

_log = logging.getLogger("ltlearn")


def run_posthoc(learn: Learner, plan: PosthocPlan) -> CorrectionRecord:
    """Correct the classifier; record the correction and its trajectory in the learner.

    Args:
        learn: An `LTLearner`.
        plan: The plan of the correction.

    Returns:
        The strength, where it was chosen, and the values that were tried.

    Raises:
        UserError: If the classifier cannot be corrected.
    """
    began, row = time.perf_counter(), METHODS[plan.method]
    head, around = learn.model.head, None
    if not (row.uses_features_only or row.head == "experts"):
        head = as_linear_over_features(head)
        if isinstance(head, NormalizedFeatureHead):
            head, around = head.inner, head
    data = PosthocData(
        head=head,
        class_counts=learn.dls.class_counts,
        prior=prior_vector(learn.assumed_prior, learn.dls.class_counts),
    )
    if row.uses_features_only:
        train = learn.features("train", plan.views, plan.seed)
        data = replace(data, features=train.views[0], targets=train.targets)
    result = CorrectionRecord(plan.method, plan.value)
    if row.uses_validation and not is_too_small_to_select(
        learn.dls, f"{plan.method} takes the shifts of logit adjustment with tau 1"
    ):
        data = _with_validation(learn, data, around)
        result = replace(result, chosen_on=selects_on(learn.dls))
    if row.choose is not None and plan.value is None:
        result = _choose(learn, plan.method, data, around)
    head = row.apply(data, result.value)
    if around is not None:
        head = NormalizedFeatureHead(head, around.length.item())
    learn.model.head, learn.opt = head.to(learn.dls.device), None
    trajectory = make_trajectory(learn, "last", "post hoc", predict=learn.predict_logits)
    trajectory.learn = learn
    trajectory.before_fit()
    learn.trajectory = trajectory.record
    record = PosthocRecord(
        method=plan.method,
        value=result.value,
        chosen_on=result.chosen_on or "not chosen",
        precision=learn.precision,
        seconds=round(time.perf_counter() - began, 2),
    )
    learn.stages.append(record)
    _log.info("%s", record)
    return result


def _choose(
    learn: Learner, method: str, data: PosthocData, around: NormalizedFeatureHead | None
) -> CorrectionRecord:
    """Choose the strength on the validation images, if there are enough."""
    row = METHODS[method]
    if is_too_small_to_select(learn.dls, f"{method} takes its published value"):
        return CorrectionRecord(method, row.published_value)
    value, curve = row.choose(_with_validation(learn, data, around))
    return CorrectionRecord(method, value, selects_on(learn.dls), curve)


def _with_validation(
    learn: Learner, data: PosthocData, around: NormalizedFeatureHead | None
) -> PosthocData:
    """Add the features of the validation images, as the classifier gets them."""
    valid = learn.features("valid")
    features = valid.views[0]
    if around is not None:
        rows = torch.from_numpy(np.asarray(features, dtype=np.float32))
        features = around.scaled(rows.to(around.length.device)).cpu()
    return replace(data, features=features, targets=valid.targets)
