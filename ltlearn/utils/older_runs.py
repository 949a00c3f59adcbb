"""Read the records in a run's files, which an earlier version or a stranger may have written."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from ltlearn.errors import UserError
from ltlearn.utils.text import clean, short_repr, validation_reason

__all__ = ["checked_fields", "known_fields", "with_todays_keys"]

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


def known_fields(record_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a record has fields for, with today's keys.

    Runs of other versions may lack fields, or have more.

    Args:
        record_class: A dataclass.
        values: What the file of a run holds.
    """
    names = {f.name for f in fields(record_class)}
    return {key: value for key, value in with_todays_keys(values).items() if key in names}


def checked_fields(record_class: type, values: Any) -> dict[str, Any]:
    """Return the values that a record has fields for, and check each against its annotation.

    The annotations are the schema of the file. Numbers must be finite. A field that is a record
    itself is not checked.

    Args:
        record_class: A dataclass.
        values: What the file of a run holds.

    Raises:
        UserError: If the values are no mapping, a field without a default is missing, or a value
            does not fit. The message names the field; the caller names the file.
    """
    from pydantic import ValidationError

    if not isinstance(values, Mapping):
        raise UserError(f"it holds a {type(values).__name__} in place of keys and values.")
    values, checks = known_fields(record_class, values), _checks(record_class)
    for name, (check, is_needed) in checks.items():
        if name not in values:
            if is_needed:
                raise UserError(f"the key {name} is missing.")
            continue
        try:
            check.validate_python(values[name])
        except ValidationError as e:
            error = e.errors(include_url=False)[0]
            key = clean(".".join([name, *map(str, error["loc"])]))[:200]
            reason = validation_reason(error)
            raise UserError(
                f"{key} = {short_repr(error['input'])} is not possible; {reason}."
            ) from None
    return values


@cache
def _checks(record_class: type) -> dict[str, tuple[Any, bool]]:
    """Return, by field, the check of its value and whether the field has no default."""
    from pydantic import ConfigDict, TypeAdapter

    hints = get_type_hints(record_class, include_extras=True)
    config = ConfigDict(strict=True, allow_inf_nan=False)
    return {
        f.name: (
            TypeAdapter(hints[f.name], config=config),
            f.default is MISSING and f.default_factory is MISSING,
        )
        for f in fields(record_class)
        if not is_dataclass(hints[f.name])
    }
