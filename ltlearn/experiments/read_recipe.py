"""Read a recipe from a TOML file and a command line."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ltlearn.errors import UserError
from ltlearn.experiments.recipe import SECTIONS, Expected, MethodSection, Recipe, Variant

__all__ = [
    "recipe_names",
    "load_recipe",
    "check_recipe",
    "look_up",
    "put",
    "apply_override",
    "validate_recipe",
]

_SOURCES = ("paper", "code", "own", "dataset")


def _folder() -> Path:
    """Return the folder of the recipes: in the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the recipes are missing from this installation of ltlearn")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the library."""
    return sorted(p.stem for p in _folder().glob("*.toml"))


def load_recipe(
    name_or_file: str,
    overrides: list[str] | tuple[str, ...] = (),
    flags: Mapping[str, str] | None = None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_file: A name of `recipe_names()`, or the path of a TOML file.
        overrides: "section.key=value", the value as in TOML (a bare word is a string).
        flags: The options of a command line that keys among those came from, for messages.

    Raises:
        UserError: If there is no such recipe or file, it is no TOML, a key is unknown, a value
            impossible or without its source; the message names the key, the value and what is
            allowed.
    """
    is_file = name_or_file.endswith(".toml") or os.sep in name_or_file
    path = Path(name_or_file).expanduser() if is_file else _folder() / f"{name_or_file}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_file:
            raise UserError(f"there is no recipe file {path}.") from None
        close = difflib.get_close_matches(name_or_file, recipe_names(), n=3)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else f"there is {', '.join(recipe_names())}."
        )
        raise UserError(f"there is no recipe {name_or_file!r}; {hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not a TOML file: {e}.") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}).") from None
    given = {apply_override(raw, override) for override in overrides}
    where = str(path) if is_file else f"recipe {name_or_file}"
    _apply_variants(raw, given, path.name, where, flags)
    return check_recipe(raw, where, path.name, flags)


def check_recipe(
    raw: dict, where: str, file: str, flags: Mapping[str, str] | None = None
) -> Recipe:
    """Validate what a file or a command line says, to the last thing that can be known by now.

    `flags` are the options of the command line that keys came from, for messages.
    """
    recipe = validate_recipe(raw, where, flags)
    keys = [f"{section}.{key}" for section in SECTIONS for key in raw.get(section, {})]
    keys += [f"method.{name}.{key}" for name, own in raw.get("method", {}).items() for key in own]
    for key in keys:
        if recipe.provenance.get(key, "").split(":")[0] not in (*_SOURCES, "command line"):
            raise UserError(
                f"{file}: {key} does not say where it is from; add it to [provenance], as "
                f'"{key}" = "..." beginning with {", ".join(_SOURCES)}.'
            )
    from ltlearn.methods import find_methods

    find_methods(recipe.methods, recipe.stage1.method)
    for method, own in recipe.method.items():
        _check_method(method, own, file)
    if len(set(recipe.methods)) < len(recipe.methods):
        raise UserError(f"{file}: methods names one twice: {', '.join(recipe.methods)}.")
    for e in recipe.expected:
        _check_when(e.when, file)
    recipe.settled()  # what cannot be is said now, and not after stage 1
    return recipe


def _check_method(name: str, own: MethodSection, where: str) -> None:
    """Raise a `UserError` where a method does not take what a recipe has for it."""
    from ltlearn.methods import find_method

    method, given = find_method(name), own.model_dump(exclude_none=True)
    if given and method.kind != "stage 2":
        raise UserError(f"{where}: {name} trains no classifier, so [method.{name}] has no meaning.")
    for key in given:
        if key in ("head_smoothing", "tail_smoothing", "head_lr_factor"):
            if key not in method.options:
                raise UserError(f"{where}: method.{name}.{key}: {method.label} has no such option.")


def _check_when(when: dict[str, Any], file: str) -> None:
    """Raise a `UserError` where a condition is on a key that no recipe has."""
    for key in when:
        section, _, name = key.partition(".")
        field = Recipe.model_fields.get(section)
        inside = getattr(field.annotation, "model_fields", {}) if field else {}
        if field is None or (name not in inside if name else inside):
            raise UserError(f"{file}: `when` asks for {key}, which is no value of a recipe.")


def _apply_variants(
    raw: dict, given: set[str], file: str, where: str, flags: Mapping[str, str] | None = None
) -> None:
    """Take the variants of a recipe out, and set the values of those that hold."""
    try:
        variants = [Variant.model_validate(v) for v in raw.pop("variant", [])]
    except (ValidationError, TypeError):
        raise UserError(
            f"{file}: a [[variant]] has two tables, `when` and `set`, of keys such as "
            '"data.imbalance_factor".'
        ) from None
    # On the values as they are understood, defaults included.
    before = validate_recipe(raw, where, flags) if variants else None
    for variant in variants:
        _check_when(variant.when, file)
        if all(before.value(key) == value for key, value in variant.when.items()):
            for key, value in variant.set.items():
                if key not in given:
                    put(raw, key.split("."), value)


def look_up(raw: Any, key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def put(raw: dict, parts: list[str], value: Any) -> None:
    """Set the value of a nested key."""
    for i, part in enumerate(parts[:-1]):
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(
                f"{'.'.join(parts)} cannot be set: {'.'.join(parts[: i + 1])} is not a section; "
                f"the sections are {', '.join(SECTIONS)}, method.NAME."
            )
    raw[parts[-1]] = value


def apply_override(raw: dict, text: str) -> str:
    """Set what a command line gives; return its key."""
    key, equals, value = text.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > (3 if parts[0] == "method" else 2):
        raise UserError(
            f"--set takes key=value or section.key=value, such as stage1.epochs=2, got {text!r}."
        )
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    put(raw, parts, parsed)
    provenance = raw.setdefault("provenance", {})
    if isinstance(provenance, dict):  # if not, validation says so
        provenance[key] = "command line"
    return key


def validate_recipe(raw: dict, where: str, flags: Mapping[str, str] | None = None) -> Recipe:
    """Validate the values of a recipe; raise a `UserError` that names the key."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        keys = [str(k) for k in first["loc"]]
        # Union members put their type into the location.
        key = ".".join(k for k in keys if k not in ("bool", "str", "int"))
        if first["type"] == "extra_forbidden":
            allowed = list(_fields_at(keys[:-1]))
            close = difflib.get_close_matches(keys[-1], allowed, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"{where}: unknown key {key}; {hint}Allowed are {', '.join(allowed)}."
            ) from None
        if first["type"] == "missing":
            raise UserError(f"{where}: the key {key} is missing.") from None
        said = first["msg"].replace("Input should be", "it must be")
        what = f"{where}: {key} = {first['input']!r}"
        if flags and key in flags:
            what = f"{flags[key]} {first['input']}"
        raise UserError(f"{what} is not possible; {said}.") from None


def _fields_at(keys: list[str]) -> dict:
    inner = {"expected": Expected, "method": MethodSection}
    model: Any = Recipe
    for key in keys:
        if key in model.model_fields:  # not the number or the name of one of several
            model = inner.get(key, model.model_fields[key].annotation)
    return model.model_fields
