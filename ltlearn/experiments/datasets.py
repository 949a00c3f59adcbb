"""The names of the datasets that a recipe may have. Imports nothing heavy."""

__all__ = ["dataset_names", "is_listed"]

_CUT = ("digits_lt", "cifar10_lt", "cifar100_lt", "tiny_imagenet_lt")
_LISTED = ("imagenet_lt", "places_lt", "inat2018")


def dataset_names() -> tuple[str, ...]:
    """Return the names that `LTDataLoaders.from_dataset` takes."""
    return (*_CUT, *_LISTED)


def is_listed(name: str) -> bool:
    """Return whether a dataset is published as lists, which are long-tailed already.

    Args:
        name: The dataset.
    """
    return name in _LISTED
