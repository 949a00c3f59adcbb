"""Read the files of earlier versions, whose keys had other names."""

from collections.abc import Mapping
from typing import Any

__all__ = ["with_todays_keys"]

# 0.1.0 wrote the first name, later versions write the second.
_RENAMED = {"pictures": "images", "skipped_pictures": "skipped_images"}


def with_todays_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with today's keys.

    Args:
        record: A manifest, the record of a stage, or the facts of a checkpoint.

    Example:
        >>> with_todays_keys({"skipped_pictures": []})
        {'skipped_images': []}
    """
    return {_RENAMED.get(key, key): value for key, value in record.items()}
