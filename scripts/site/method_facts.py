"""The facts that pages of methods and recipes share: the data file, recipes, measured tables."""

import json
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ltlearn.experiments.read_recipe import load_recipe, recipe_names
from ltlearn.experiments.recipe import Recipe

_FACTS = Path(__file__).with_name("methods.toml")
_RESULTS = Path(__file__).resolve().parents[2] / "nbs" / "results" / "accuracy.ipynb"
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


@dataclass(frozen=True)
class Measured:
    """What a recipe reached here.

    Args:
        recipe: The recipe.
        protocol: Protocol.
        changed: The values that differ from the recipe; empty: none.
        accuracy: Top-1 accuracy in % by method, the stage 1 first.
        command: The command.
        seeds: Seeds that the accuracies are means of.
    """

    recipe: str
    protocol: str
    changed: str
    accuracy: dict[str, float]
    command: str
    seeds: int = 1


@dataclass(frozen=True)
class MeasuredTable:
    """A table of the results whose rows are methods.

    Args:
        section: Heading that it stands under.
        head: Headings of its columns, without the first.
        rows: Cells by label.
        commands: The commands below it.
    """

    section: str
    head: list[str]
    rows: dict[str, list[str]]
    commands: str


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


def measured_runs() -> list[Measured]:
    """Return what recipes reached here."""
    return [Measured(**values) for values in _facts()["measured"]]


@cache
def recipes() -> dict[str, Recipe]:
    """Return the recipes by name."""
    return {name: load_recipe(name) for name in recipe_names()}


def results_text(path: Path = _RESULTS) -> str:
    """Return the text of the notebook of results.

    Args:
        path: The notebook.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def measured_tables(labels: set[str], text: str) -> list[MeasuredTable]:
    """Return the tables of a text with at least two rows that begin with a method's label.

    Args:
        labels: The labels of all methods.
        text: Markdown.
    """
    found, section = [], ""
    blocks = re.split(r"\n\s*\n", text)
    for number, block in enumerate(blocks):
        if heading := re.match(r"##+ (.*)", block):
            section = heading[1].split("{")[0].strip()
        lines = [line for line in block.splitlines() if line.startswith("|")]
        cells = [
            [c.strip().replace("**", "") for c in line.strip("| ").split(" | ")] for line in lines
        ]
        rows = {row[0]: row[1:] for row in cells[2:] if row[0] in labels}
        if len(rows) < 2:
            continue
        head = [cell.strip("| ") for cell in cells[0]]
        head = head[len(head) - len(next(iter(rows.values()))) :]
        after = next((b for b in blocks[number + 1 :] if b.startswith(("```", "##"))), "")
        commands = "\n".join(after.splitlines()[1:-1]) if after.startswith("```") else ""
        found.append(MeasuredTable(section, head, rows, commands))
    return found
