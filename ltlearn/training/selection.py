"""Whether the validation set is large enough to select on, and what it holds."""

import logging

from ltlearn.names import MIN_VALID_IMAGES

__all__ = ["default_select", "is_too_small_to_select", "selects_on", "tested_part"]

_log = logging.getLogger("ltlearn")


def selects_on(dls) -> str:
    """Return what the validation loader holds: "validation" or "test"."""
    split = getattr(dls, "split", None)
    return "test" if split is not None and split.valid_from == "test set" else "validation"


def tested_part(dls) -> str:
    """Return the part that is tested: "test", or "valid" without a test set.

    The command line lets the validation loader stand in for a test loader, so that `dls.test` alone
    does not decide.

    Args:
        dls: The data.
    """
    split = getattr(dls, "split", None)
    return "valid" if dls.test is None or (split is not None and split.test is None) else "test"


def is_too_small_to_select(dls, consequence: str) -> bool:
    """Return whether the validation set is too small to select on; log a warning if it is.

    Args:
        dls: The data.
        consequence: What happens instead, for the warning.
    """
    n, classes = dls.valid.n, dls.c
    too_small = n < max(MIN_VALID_IMAGES, classes)
    if too_small:
        _log.warning(
            "%d validation images of %d classes are too few to choose on: %s", n, classes,
            consequence,
        )  # fmt: skip
    return too_small


def default_select(dls) -> str:
    """Return the default of `select` in stage 2: "best", or "last" with a warning.

    It is "last" if the validation set is too small to select on. That does not apply to selection
    on the test set, as published code does it.
    """
    if selects_on(dls) == "test":
        return "best"
    return "last" if is_too_small_to_select(dls, "stage 2 keeps its last epoch") else "best"
