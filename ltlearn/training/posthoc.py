"""Post-hoc correction of a learner's classifier."""

import logging
import time
from dataclasses import replace

from fastai.learner import Learner

from ltlearn.heads.registry import as_linear
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
    as_it_is = row.uses_features_only or row.head == "experts"
    data = PosthocData(
        head=learn.model.head if as_it_is else as_linear(learn.model.head),
        class_counts=learn.dls.class_counts,
        prior=prior_vector(learn.assumed_prior, learn.dls.class_counts),
    )
    if row.uses_features_only:
        train = learn.features("train", plan.views, plan.seed)
        data = replace(data, features=train.views[0], targets=train.targets)
    result = CorrectionRecord(plan.method, plan.value)
    if row.choose is not None and plan.value is None:
        result = _choose(learn, plan.method, data)
    head = row.apply(data, result.value)
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


def _choose(learn: Learner, method: str, data: PosthocData) -> CorrectionRecord:
    """Choose the strength on the validation images, if there are enough."""
    valid, row = learn.features("valid"), METHODS[method]
    if is_too_small_to_select(learn.dls, f"{method} takes its published value"):
        return CorrectionRecord(method, row.published_value)
    value, curve = row.choose(replace(data, features=valid.views[0], targets=valid.targets))
    return CorrectionRecord(method, value, selects_on(learn.dls), curve)
