"""Which trainings need images, where the data are features that the user has."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastai.callback.core import Callback

from ltlearn.data.needs_images import check_arguments, has_features
from ltlearn.errors import UserError, spell
from ltlearn.methods import Method
from ltlearn.names import PROBE
from ltlearn.training.fit_callback import mixes_images

__all__ = ["check_for_features"]


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
