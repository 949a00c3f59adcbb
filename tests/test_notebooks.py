"""The stored notebooks; the build of the site (`scripts/docs`) runs each from top to bottom."""

import ast
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"
NOTEBOOKS = sorted(NBS.rglob("*.ipynb"))
# Folders of pages that the build generates.
GENERATED = {"api", "methods", "recipes", "reference"}

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)


def cells(notebook: Path, kind: str = "code") -> list[dict]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [c for c in content["cells"] if c["cell_type"] == kind]


def sources(notebook: Path, kind: str = "code") -> list[str]:
    return ["".join(c["source"]) for c in cells(notebook, kind)]


def is_hidden(source: str) -> bool:
    return source.startswith("#| hide\n")


def test_there_are_notebooks():
    tutorials = {p.stem for p in NOTEBOOKS if p.parent.name == "tutorials"}
    assert tutorials == {
        "quickstart", "corrections", "stage1", "own_data", "backbones", "several_gpus", "export",
        "clean",
    }  # fmt: skip


@each_notebook
def test_outputs_are_stripped(notebook):
    for cell in cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@each_notebook
def test_begins_with_a_title_and_a_description(notebook):
    first = sources(notebook, "markdown")[0]
    assert re.match(r"# \S.*\n\n> \S.*[.?]\n", first), first[:200]


@each_notebook
def test_claims_are_checked_in_hidden_cells_alone(notebook):
    code = sources(notebook)
    if not code:
        return  # tables of results
    asserts = {
        hidden: [n for s in code if is_hidden(s) == hidden for n in ast.walk(ast.parse(s))]
        for hidden in (True, False)
    }
    assert any(isinstance(node, ast.Assert) for node in asserts[True])
    assert not any(isinstance(node, ast.Assert) for node in asserts[False])


@each_notebook
def test_links_lead_to_sources(notebook):
    for text in sources(notebook, "markdown"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" in target:
                continue
            path = (notebook.parent / target).resolve()
            if path.relative_to(NBS.resolve()).parts[0] not in GENERATED:
                assert path.is_file(), target
