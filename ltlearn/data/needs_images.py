"""One rule for calls that need images, where the data are features."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from ltlearn.data.feature_rows import GivenFeatures
from ltlearn.errors import UserError, spell

__all__ = ["check_arguments", "has_features", "needs_images"]

_Method = TypeVar("_Method", bound=Callable[..., Any])
# Arguments that concern images, with the values that ask for nothing.
_ABOUT_IMAGES = {"views": (None, 1), "flip": (False,), "crops": (1,), "bn": ("frozen",)}


def has_features(owner) -> bool:
    """Return whether the data are features that the user has, instead of images.

    Args:
        owner: An interpretation, a learner, loaders, or one loader.
    """
    for name in ("learn", "dls", "train"):
        owner = getattr(owner, name, owner)
    return isinstance(getattr(owner, "dataset", None), GivenFeatures)


def needs_images(method: _Method) -> _Method:
    """Make a method of a learner, of loaders or of one loader refuse data that are features.

    Args:
        method: The method.
    """

    @wraps(method)
    def checked(self, *args, **kwargs):
        if has_features(self):
            raise UserError(
                f"{method.__name__} needs images, but the data are features; call it on data that "
                "was made from images, such as by from_folder."
            )
        return method(self, *args, **kwargs)

    return checked


def check_arguments(owner, given: Mapping[str, Any]) -> None:
    """Refuse arguments that concern images if the data are features.

    Args:
        owner: As for `has_features`.
        given: The arguments by name; others may be among them.

    Raises:
        UserError: If one asks for something that only images have.
    """
    if not has_features(owner):
        return
    for name, plain in _ABOUT_IMAGES.items():
        if name in given and given[name] not in plain:
            raise UserError(
                f"{spell(name, given[name])} needs images, but the data are features; leave it out."
            )
