"""Recipes: a benchmark as a validated TOML file in which each value says where it is from."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from ltlearn.errors import UserError

__all__ = ["Recipe", "load_recipe", "recipe_names"]

_SECTIONS = ("data", "model", "stage1", "stage2")
_SOURCES = ("paper", "code", "own", "dataset")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class DataSection(_Section):
    """Which pictures."""

    dataset: Literal["digits_lt", "cifar10_lt", "cifar100_lt", "tiny_imagenet_lt"]
    imbalance_factor: float = Field(100, ge=1)
    profile: Literal["exponential", "step"] = "exponential"
    split: Literal["first_n", "shuffle_seed0"] = "first_n"
    valid_pct: float = Field(0.1, gt=0, lt=1)
    few: Literal["<20", "<=20"] = "<20"
    n_max: int | None = Field(None, ge=1)
    test_per_class: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=1)  # None: the pictures' own


class ModelSection(_Section):
    """Which network."""

    arch: str
    pretrained: bool | str = False
    width: int | None = Field(None, ge=1)


class _Stage(_Section):
    epochs: int = Field(ge=0)
    lr: float = Field(gt=0)
    batch_size: int = Field(64, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    # None: what the protocol says. clean: last in stage 1, best on validation in stage 2. paper:
    # best on test.
    select: Literal["best", "last"] | None = None


class Stage1Section(_Stage):
    """How the representation is trained."""

    warmup_epochs: int = Field(0, ge=0)
    sampler: Literal["instance", "class_balanced", "square_root", "progressive"] = "instance"


class Stage2Section(_Stage):
    """How the classifier is retrained."""

    # None: what the protocol says. clean: cached features of a frozen backbone. paper: images, BN
    # in training mode.
    views: int | None = Field(None, ge=0)
    bn: Literal["frozen", "train"] | None = None


class Expected(_Section):
    """A published figure."""

    method: str
    all: Annotated[float, Field(ge=0, le=100)]  # top-1 in %
    protocol: Literal["clean", "paper"]
    tolerance: float = Field(gt=0)
    source: str


class Recipe(_Section):
    """A benchmark: data, model, both stages, methods, and what was published."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str
    protocol: Literal["clean", "paper"] = "clean"
    seeds: int = Field(1, ge=1, le=100)
    methods: list[str] = Field(min_length=1)
    data: DataSection
    model: ModelSection
    stage1: Stage1Section
    stage2: Stage2Section
    provenance: dict[str, str] = {}
    expected: list[Expected] = []
    _smoke: bool = PrivateAttr(False)

    def is_smoke(self) -> bool:
        """Tell whether this is what `smoke` returned."""
        return self._smoke

    def settled(self) -> "Recipe":
        """Return the recipe with everything filled in: by its protocol, or as ltlearn's default.

        Raises:
            UserError: If values do not go together.
        """
        recipe = self.model_copy(deep=True)
        paper = recipe.protocol == "paper"
        s1, s2 = recipe.stage1, recipe.stage2
        open_before = {
            f"{name}.{key}"
            for name, stage in (("stage1", s1), ("stage2", s2))
            for key in type(stage).model_fields
            if getattr(stage, key) is None
        }
        s1.select = s1.select or ("best" if paper else "last")
        s2.select = s2.select or "best"
        s2.bn = s2.bn or ("train" if paper else "frozen")
        if s2.views is None:
            s2.views = 0 if paper or s2.bn == "train" else 1
        if paper and "last" in (s1.select, s2.select):
            raise UserError(
                "the paper protocol keeps the best epoch on the test set: leave stage1.select and "
                "stage2.select out, or use the clean protocol."
            )
        if s2.views and (paper or s2.bn == "train"):
            why = "the paper protocol averages over mirrored images" if paper else "bn is 'train'"
            raise UserError(
                f"stage2.views = {s2.views} caches features, which cannot be as {why}; set "
                "stage2.views=0."
            )
        for section in _SECTIONS:
            for key in type(getattr(recipe, section)).model_fields:
                name = f"{section}.{key}"
                default = f"protocol: {recipe.protocol}" if name in open_before else "default"
                recipe.provenance.setdefault(name, default)
        return recipe

    def changes(self) -> list[str]:
        """Return the keys that a command line, or `smoke`, has changed."""
        return [k for k, v in self.provenance.items() if v in ("command line", "smoke run")]

    def smoke(self) -> "Recipe":
        """Return the recipe shrunk to seconds: the same steps, on a handful of pictures."""
        recipe = self.model_copy(deep=True)
        recipe._smoke = True
        recipe.seeds = 1
        recipe.stage1.epochs, recipe.stage2.epochs = (
            min(2, self.stage1.epochs),
            min(2, self.stage2.epochs),
        )
        recipe.stage1.warmup_epochs = 0
        if self.data.dataset != "digits_lt":
            recipe.data.n_max = max(20, int(self.data.imbalance_factor))
            recipe.data.test_per_class = 10
        if self.model.width:
            recipe.model.width = min(8, self.model.width)
        for section in _SECTIONS:
            new, old = getattr(recipe, section), getattr(self, section)
            for key in type(new).model_fields:
                if getattr(new, key) != getattr(old, key):
                    recipe.provenance[f"{section}.{key}"] = "smoke run"
        return recipe


def _folder() -> Path:
    """Return the folder of the recipes: in the installed package, or beside it in a source tree."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the recipes are missing from this installation of ltlearn")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the library."""
    return sorted(p.stem for p in _folder().glob("*.toml"))


def load_recipe(name_or_file: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_file: A name of `recipe_names()`, or the path of a TOML file.
        overrides: "section.key=value", the value as in TOML (a bare word is a string).

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
    for override in overrides:
        _override(raw, override)
    recipe = _validate(raw, str(path) if is_file else f"recipe {name_or_file}")
    for section in _SECTIONS:
        for key in raw.get(section, {}):
            source = recipe.provenance.get(f"{section}.{key}", "")
            if source.split(":")[0] not in (*_SOURCES, "command line"):
                raise UserError(
                    f"{path.name}: {section}.{key} does not say where it is from; add it to "
                    f'[provenance], as "{section}.{key}" = "..." beginning with '
                    f"{', '.join(_SOURCES)}."
                )
    from ltlearn.methods import find_method

    for method in recipe.methods:
        find_method(method)
    if len(set(recipe.methods)) < len(recipe.methods):
        raise UserError(f"{path.name}: methods names one twice: {', '.join(recipe.methods)}.")
    recipe.settled()  # what cannot be is said now, and not after stage 1
    return recipe


def _override(raw: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > 2:
        raise UserError(
            f"--set takes key=value or section.key=value, such as stage1.epochs=2, got {text!r}."
        )
    try:
        parsed: Any = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    target = raw
    if len(parts) == 2:
        target = raw.setdefault(parts[0], {})
        if not isinstance(target, dict):
            raise UserError(
                f"--set {text}: {parts[0]} is not a section; the sections are "
                f"{', '.join(_SECTIONS)}."
            )
    provenance = raw.setdefault("provenance", {})
    if isinstance(provenance, dict):  # if not, validation says so
        provenance[key.strip()] = "command line"
    target[parts[-1]] = parsed


def _validate(raw: dict, where: str) -> Recipe:
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
        raise UserError(f"{where}: {key} = {first['input']!r} is not possible; {said}.") from None


def _fields_at(keys: list[str]) -> dict:
    model: Any = Recipe
    for key in keys:
        if key.isdigit():
            continue
        annotation = model.model_fields[key].annotation
        model = Expected if key == "expected" else annotation
    return model.model_fields
