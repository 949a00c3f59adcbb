"""Read a recipe from a TOML file, and change its values."""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ltlearn.errors import UserError, check_choice, check_number, spell
from ltlearn.experiments.recipe import COMMAND_LINE, Recipe
from ltlearn.experiments.sections import SECTIONS, Expected, MethodSection, Variant
from ltlearn.methods import METHODS, Method, find_method, find_methods, stage1_methods
from ltlearn.utils.system_errors import unreadable
from ltlearn.utils.text import short_repr, validation_reason

__all__ = [
    "apply_override",
    "check_recipe",
    "load_recipe",
    "look_up",
    "put",
    "recipe_folder",
    "recipe_names",
    "validate_recipe",
]

_MAX_BYTES = 1_000_000  # of a recipe; ours have at most 10,000
_MAX_OPTION = 1e12
_MAX_BITS = 1000  # of an integer, so that it can become a float
_TOO_LONG = "a number in it has too many digits"
_SOURCES = ("paper", "code", "own", "dataset")


def recipe_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the recipes are missing from this installation of ltlearn")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the library."""
    return sorted(p.stem for p in recipe_folder().glob("*.toml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_file: A name of `recipe_names()`, or the path of a TOML file.
        overrides: "section.key=value", the value as in TOML; a bare word is a string.

    Raises:
        UserError: If there is no such recipe or file, the file is no TOML, a key is unknown, or a
            value is impossible or has no source.

    Example:
        >>> load_recipe("digits_lt", ["stage1.epochs=2"]).stage1.epochs
        2
    """
    is_file = name_or_file.endswith(".toml") or os.sep in name_or_file
    path = Path(name_or_file).expanduser() if is_file else recipe_folder() / f"{name_or_file}.toml"
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; give a recipe file (.toml).")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"{path} is no recipe: it has more than {_MAX_BYTES:,} bytes.")
        raw = _parse_toml(content.decode())
    except FileNotFoundError:
        if is_file:
            raise UserError(f"there is no recipe file {path}.") from None
        raise UserError(
            f"there is no recipe {name_or_file!r}; {_suggest(name_or_file, recipe_names())}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not a TOML file: {e}.") from None
    except _Unreadable as e:
        raise UserError(f"{path} cannot be used: {e}.") from None
    except OSError as e:
        raise unreadable(path, e) from None
    given = {apply_override(raw, override) for override in overrides}
    where = str(path) if is_file else f"recipe {name_or_file}"
    _apply_variants(raw, given, path.name, where)
    return check_recipe(raw, where, path.name)


class _Unreadable(Exception):
    """TOML that is right, and too large to use."""


def _parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; raise `_Unreadable` where Python's parser raises something of its own."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise _Unreadable("its brackets are nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise _Unreadable(_TOO_LONG) from None
    waiting: list[Any] = [raw]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:  # hexadecimal ones
            raise _Unreadable(_TOO_LONG)
    return raw


def check_recipe(raw: dict[str, Any], where: str, file: str) -> Recipe:
    """Check the values of a file or a command line, as far as that needs no images.

    Args:
        raw: The tables of the recipe.
        where: What the values are from, for messages about a value.
        file: The name of the file, for messages about the file.

    Raises:
        UserError: If a key is unknown, or a value is impossible or has no source.
    """
    recipe = validate_recipe(raw, where)
    for key in _given_keys(raw):
        if recipe.provenance.get(key, "").split(":")[0] not in (*_SOURCES, COMMAND_LINE):
            raise UserError(
                f"{file}: {key} has no source; add it to [provenance], as "
                f'"{key}" = "..." beginning with {", ".join(_SOURCES)}.'
            )
    find_methods(recipe.methods, recipe.stage1.method)
    if len(set(recipe.methods)) < len(recipe.methods):
        raise UserError(f"{file}: methods has a name twice: {', '.join(recipe.methods)}.")
    for e in recipe.expected:
        _check_when(e.when, file)
    recipe.settled()  # refuses contradictions before anything is trained
    return recipe


def _given_keys(raw: dict[str, Any]) -> Iterator[str]:
    for section in SECTIONS:
        yield from (f"{section}.{key}" for key in raw.get(section, {}))
    for name, own in raw.get("method", {}).items():
        yield from (f"method.{name}.{key}" for key in own)


def validate_recipe(raw: dict[str, Any], where: str, recorded: bool = False) -> Recipe:
    """Check the keys and the range of each value of a recipe.

    Args:
        raw: The tables of the recipe.
        where: What the values are from, for messages.
        recorded: Whether the values are those of an earlier run, and not of the running command.

    Raises:
        UserError: If a key is unknown or missing, or a value is outside its range.
    """
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as e:
        raise UserError(_describe(e.errors()[0], raw, where, recorded)) from None
    _check_stage1_options(recipe, where)
    for name in recipe.method:
        _check_method_options(recipe, name, where)
    return recipe


def _describe(error: Mapping[str, Any], raw: dict[str, Any], where: str, recorded: bool) -> str:
    """Return the sentence for a validation error of pydantic."""
    keys = [str(k) for k in error["loc"]]
    # The members of a union add their type to the location.
    key = ".".join(k for k in keys if k not in ("bool", "str", "int"))
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown_key(key, list(_fields_at(keys[:-1])))}"
    if error["type"] == "missing":
        return f"{where}: the key {key} is missing."
    assignment = f"{key} = {short_repr(error['input'])}"
    provenance = None if recorded else raw.get("provenance")
    if isinstance(provenance, dict) and provenance.get(key) == COMMAND_LINE:
        assignment = spell(key, error["input"])
    return f"{where}: {assignment} is not possible; {validation_reason(error)}."


def _unknown_key(key: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    hint = f"did you mean {close[0]}? Allowed are" if close else "allowed are"
    return f"unknown key {key}; {hint} {', '.join(allowed)}."


def _fields_at(keys: list[str]) -> dict[str, Any]:
    inner = {"expected": Expected, "method": MethodSection}
    model: Any = Recipe
    for key in keys:
        if key in model.model_fields:  # an index in a list, or a method's name, is no field
            model = inner.get(key, model.model_fields[key].annotation)
    return model.model_fields


def _stage1_options() -> dict[str, list[str]]:
    """Return the methods of stage 1 that have an option, by the option's name."""
    owners: dict[str, list[str]] = {}
    for name in stage1_methods():
        for key in METHODS[name].options:
            owners.setdefault(key, []).append(name)
    return owners


def _check_stage1_options(recipe: Recipe, where: str) -> None:
    stage1 = recipe.stage1
    options, owners = METHODS[stage1.method].options, _stage1_options()
    for key, value in stage1.options().items():
        if key in options:
            if key in METHODS[stage1.method].choices:
                check_choice(f"{where}: stage1.{key}", value, METHODS[stage1.method].choices[key])
            converted = _convert_option(f"{where}: stage1.{key}", value, options[key])
            stage1.set_option(key, converted)
        elif key in owners:
            raise UserError(
                f"{where}: stage1.{key} is an option of {', '.join(owners[key])}, but "
                f"stage1.method is {stage1.method!r}; leave it out."
            )
        else:
            allowed = [*type(stage1).model_fields, *options]
            raise UserError(f"{where}: {_unknown_key(f'stage1.{key}', allowed)}")


def _check_method_options(recipe: Recipe, name: str, where: str) -> None:
    section, row = recipe.method[name], find_method(name)
    given, allowed = section.model_dump(exclude_none=True), _method_keys(row)
    if given and not allowed:
        raise UserError(f"{where}: {name} takes no values from [method.{name}]; leave it out.")
    for key, value in given.items():
        if key not in allowed:
            raise UserError(f"{where}: {_unknown_key(f'method.{name}.{key}', allowed)}")
        if key in row.recipe_options:
            label = f"{where}: method.{name}.{key}"
            converted = _convert_option(label, value, row.recipe_options[key])
            if row.kind == "post hoc":
                check_number(label, converted, 0)
            section.set_option(key, converted)


def _method_keys(row: Method) -> list[str]:
    """Return the keys that the table [method.NAME] can have."""
    if row.kind == "stage 1":
        return []
    trained = MethodSection.model_fields if row.kind == "stage 2" else ()
    return [*trained, *row.recipe_options]


def _convert_option(name: str, value: Any, default: Any) -> Any:
    """Return an option in the type of its default; a number may be written without a point."""
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{name} must be a number, got {short_repr(value)}.")
    if is_number and not -_MAX_OPTION <= value <= _MAX_OPTION:  # false for not-a-number, too
        raise UserError(
            f"{name} must be a number of at most {_MAX_OPTION:g}, got {short_repr(value)}."
        )
    return float(value) if isinstance(default, float) and is_number else value


def _check_when(when: dict[str, Any], file: str) -> None:
    """Raise a `UserError` if a condition names a key that no recipe has."""
    for key in when:
        section, _, name = key.partition(".")
        field = Recipe.model_fields.get(section)
        inside = [*getattr(field.annotation, "model_fields", ())] if field else []
        inside += _stage1_options() if section == "stage1" else ()
        if section == "method":
            inside = [f"{m}.{k}" for m, row in METHODS.items() for k in _method_keys(row)]
        if field is None or (name not in inside if name else inside):
            raise UserError(f"{file}: `when` names {key}, which is no key of a recipe.")


def _apply_variants(raw: dict[str, Any], given: set[str], file: str, where: str) -> None:
    """Remove the variants from a recipe, and set the values of those that apply."""
    try:
        variants = [Variant.model_validate(v) for v in raw.pop("variant", [])]
    except (ValidationError, TypeError):
        raise UserError(
            f"{file}: a [[variant]] has two tables, `when` and `set`, of keys such as "
            '"data.imbalance_factor".'
        ) from None
    # Conditions hold for validated values, so that defaults count and "50" equals 50.
    before = validate_recipe(raw, where) if variants else None
    for variant in variants:
        _check_when(variant.when, file)
        if all(before.value(key) == value for key, value in variant.when.items()):
            for key, value in variant.set.items():
                if key not in given:
                    put(raw, key.split("."), value)


def look_up(raw: Any, key: str) -> Any:
    """Return the value of a dotted key; None if there is none.

    Args:
        raw: The tables of a recipe.
        key: The key, such as "stage1.lr".
    """
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def put(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set the value of a nested key.

    Args:
        raw: The tables of a recipe; they are changed.
        parts: The key, in parts, such as ["stage1", "lr"].
        value: Its value.

    Raises:
        UserError: If a part names a value that is no table.
    """
    for i, part in enumerate(parts[:-1]):
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(
                f"{'.'.join(parts)} cannot be set: {'.'.join(parts[: i + 1])} is not a section; "
                f"the sections are {', '.join(SECTIONS)}, method.NAME."
            )
    raw[parts[-1]] = value


def apply_override(raw: dict[str, Any], text: str) -> str:
    """Set a value that is given as text; return its key.

    Args:
        raw: The tables of a recipe; they are changed.
        text: "key=value" or "section.key=value", the value as in TOML.

    Raises:
        UserError: If the text has another form.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > (3 if parts[0] == "method" else 2):
        raise UserError(
            f"{spell('overrides')} takes key=value or section.key=value, such as stage1.epochs=2, "
            f"got {text!r}."
        )
    try:
        parsed: Any = _parse_toml(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except _Unreadable as e:
        raise UserError(f"{spell('overrides')} cannot set {key}: {e}.") from None
    put(raw, parts, parsed)
    provenance = raw.setdefault("provenance", {})
    if isinstance(provenance, dict):  # otherwise validation reports it
        provenance[key] = COMMAND_LINE
    return key


def _suggest(name: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=3)
    return f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(allowed)}."
