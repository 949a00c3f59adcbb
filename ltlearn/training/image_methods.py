"""Which trainings need images, where the data are features that the user has."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastai.callback.core import Callback

from ltlearn.data.needs_images import check_arguments, has_features
from ltlearn.errors import UserError, spell, spell_call
from ltlearn.methods import Method
from ltlearn.names import PROBE
from ltlearn.training.fit_callback import mixes_images

__all__ = ["check_for_features", "warn_about_rate", "warn_without_stage1"]

_log = logging.getLogger("ltlearn")


def check_for_features(
    dls, given: Mapping[str, Any], callbacks: Sequence[Callback], row: Method | None
) -> None:
    """Refuse a training that needs images if the data are features.

    Args:
        dls: The data.
        given: The arguments of the stage by name.
        callbacks: Callbacks of the method, and those given.
        row: The method. None: no named method.

    Raises:
        UserError: If an argument or a callback concerns images, or the method adapts a network.
    """
    if not has_features(dls):
        return
    check_arguments(dls, given)
    needs = [f"{type(cb).__name__} mixes images" for cb in callbacks if mixes_images(cb)]
    if row is not None and row.trains == "all" and (row.pretrained or row.head == "experts"):
        needs.append(f"{row.label} trains a network on images")
    if needs:
        raise UserError(
            f"{needs[0]}, but the data are features; take {spell('method', PROBE)}, or a method "
            "that consists of a loss."
        )


def warn_about_rate(dls, lr: float) -> None:
    """Log a warning if stage 1 on features takes the learning rate of a network on images.

    Args:
        dls: The data.
        lr: The usual learning rate.
    """
    if has_features(dls):
        _log.warning(
            "the learning rate %g is the usual one of a network on images, and may be far too low "
            "or too high on features; give %s, or take %s, which scales the features",
            lr, spell("lr"), spell("method", PROBE),
        )  # fmt: skip


def warn_without_stage1(learn) -> None:
    """Log a warning if stage 2 on features begins, and no stage 1 is recorded.

    Args:
        learn: An `LTLearner`.
    """
    if has_features(learn) and not learn.stages:
        _log.warning(
            "no stage 1 is recorded for this classifier; if it is not trained, stage 2 begins with "
            "random weights: call %s first",
            spell_call("fit_stage1", method=PROBE),
        )
