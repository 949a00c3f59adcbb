"""The facts that pages of methods and recipes share: the data file, recipes, measured results."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ltlearn.experiments.measured import MeasuredResult, measured_results
from ltlearn.experiments.read_recipe import load_recipe, recipe_names
from ltlearn.experiments.recipe import Recipe

_FACTS = Path(__file__).with_name("methods.toml")
GROUPS = ("stage 1", "sampler", "loss", "head", "post hoc")


@dataclass(frozen=True)
class Paper:
    """A publication.

    Args:
        title: Its title.
        authors: Its authors.
        venue: Conference and year.
        arxiv: Its number at arXiv.
    """

    title: str
    authors: str
    venue: str
    arxiv: str


@dataclass(frozen=True)
class Published:
    """A published accuracy that no recipe holds.

    Args:
        data: Dataset.
        backbone: Network.
        accuracy: Top-1 accuracy in %.
        source: Where it was published, and how it was measured.
    """

    data: str
    backbone: str
    accuracy: float
    source: str


@dataclass(frozen=True)
class MethodFacts:
    """What the page of a method states beyond its row in the table of methods.

    Args:
        group: One of `GROUPS`.
        summary: Two sentences on what it does.
        formula: TeX.
        trains: Which numbers it trains, C classes and D features.
        use: When to use it.
        avoid: When not to.
        papers: Keys of papers.
        related: Other methods.
        api: Public names that it is made of.
        symbols: What the formula's symbols mean, where they are not the usual ones.
        cost: What it costs, if that was measured or is not obvious.
        published: Published figures.
        arch: The architecture that the code of the page trains.
        epochs: The epochs of stage 1 in that code.
    """

    group: str
    summary: str
    formula: str
    trains: str
    use: str
    avoid: str
    papers: list[str]
    related: list[str]
    api: list[str]
    symbols: str = ""
    cost: str = ""
    published: list[Published] = field(default_factory=list)
    arch: str = "resnet50"
    epochs: int = 90


@cache
def _facts() -> dict:
    return tomllib.loads(_FACTS.read_text(encoding="utf-8"))


def papers() -> dict[str, Paper]:
    """Return the publications by key."""
    return {key: Paper(**values) for key, values in _facts()["papers"].items()}


def method_facts() -> dict[str, MethodFacts]:
    """Return the facts of each method."""
    found = {}
    for name, values in _facts()["methods"].items():
        figures = [Published(**figure) for figure in values.get("published", ())]
        found[name] = MethodFacts(**{**values, "published": figures})
    return found


@cache
def measured() -> list[MeasuredResult]:
    """Return what runs and comparisons of recipes reached here."""
    return measured_results()


def measured_runs() -> list[MeasuredResult]:
    """Return what runs of recipes reached here, without comparisons."""
    return [result for result in measured() if result.kind == "run"]


@cache
def recipes() -> dict[str, Recipe]:
    """Return the recipes by name."""
    return {name: load_recipe(name) for name in recipe_names()}
