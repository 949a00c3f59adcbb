"""The pages that are generated from the code: complete, with links that lead somewhere."""

import ast
import json
import re
import shlex
from dataclasses import replace

import pytest
from latex2mathml.converter import convert

from ltlearn.experiments.measured import MeasuredResult
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.methods import METHODS
from scripts.site import (
    api_names,
    api_pages,
    changelog_page,
    cli_page,
    markup,
    method_facts,
    method_pages,
    recipe_pages,
)
from tests.callbacks.helpers import make_lt_learner

GENERATORS = (api_pages, method_pages, cli_page, recipe_pages, changelog_page)
FACTS = method_facts.method_facts()
TRAINED = [name for name, row in METHODS.items() if row.kind == "stage 2"]
WRITTEN_BY_HAND = ("guide/", "results/", "tutorials/")


@pytest.fixture(scope="module")
def staging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staging")
    for generator in GENERATORS:
        for path in generator.write(folder):
            assert path.is_file() and folder in path.parents
    return folder


def read(staging, page):
    return (staging / page).read_text(encoding="utf-8")


def parse_command(line):
    """Return the command's name and its parameters, as typer reads the line."""
    words = shlex.split(line)
    assert words[0] == "ltlearn"
    command = cli_page.command_group().commands[words[1]]
    return words[1], command.make_context(words[1], words[2:]).params


# The API


def test_every_public_name_has_a_page_that_its_modules_list(staging):
    index = read(staging, "api/index.qmd")
    sections = dict(re.findall(r"## [^\n]*\{#([\w.]+)\}\n(.*?)(?=\n## |\Z)", index, re.S))
    for module_name, module in api_names.public_modules().items():
        for name in module.__all__:
            public = next(
                p for p in api_names.public_names() if p.name == name and module_name in p.modules
            )
            assert f"[`{name}`]({public.page}.qmd)" in sections[module_name], (module_name, name)
            assert (staging / "api" / f"{public.page}.qmd").is_file()


def test_a_name_that_two_modules_list_has_one_page():
    samn = [public for public in api_names.public_names() if public.name == "SAMN"]
    assert [public.modules for public in samn] == [("ltlearn", "ltlearn.callbacks")]
    assert samn[0].page == "SAMN" == api_names.page_of("SAMN")


def test_pages_differ_in_more_than_case():
    pages = [public.page.casefold() for public in api_names.public_names()]
    assert len(set(pages)) == len(pages)
    kinds = [public.page for public in api_names.public_names() if public.name == "KINDS"]
    assert sorted(kinds) == ["cleaning.KINDS", "inspection.KINDS", "methods.KINDS"]


def test_a_type_that_only_results_have_gets_a_page():
    record = next(p for p in api_names.public_names() if p.name == "TrajectoryRecord")
    assert record.modules == ()


def test_every_link_leads_to_a_page_and_an_anchor(staging):
    pages = {path: path.read_text(encoding="utf-8") for path in staging.rglob("*.qmd")}
    names = json.loads(read(staging, "_symbols.json"))
    found = [(staging, address.removeprefix("/")) for address in names.values()]
    for path, text in pages.items():
        links = re.findall(r"\]\(([^)\s]*)\)", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
        found += [(path, link) for link in links if not link.startswith("http")]
    assert len(found) > 1000
    for path, link in found:
        file, _, anchor = link.partition("#")
        folder = path if path.is_dir() else path.parent
        target = (folder / file).resolve() if file else path
        if target.relative_to(staging).as_posix().startswith(WRITTEN_BY_HAND):
            continue
        assert target in pages, (path.name, link)
        assert not anchor or f"{{#{anchor}}}" in pages[target], (path.name, link)


def test_the_page_of_a_class(staging):
    text = read(staging, "api/LDAMLoss.qmd")
    assert "class LDAMLoss(\n" in text and "    max_margin: float = 0.5,\n" in text
    rows = re.findall(r"^\| <code>(.*?)</code>", text.split("## Raises")[0], re.M)
    assert [row.replace("&#95;", "_") for row in rows] == [
        "class_counts", "max_margin", "scale", "weights", "reduction",
    ]  # fmt: skip
    for heading in ("Parameters", "Shape", "Raises", "Source", "Example", "Methods", "Inherited"):
        assert f"\n## {heading}\n" in text
    assert "### forward {#forward}" in text
    assert "[`CosineLinear`](CosineLinear.qmd)" in text
    assert "[`set_class_counts`](CountedLoss.qmd#set_class_counts)" in text  # of its base class
    assert "(https://arxiv.org/abs/1906.07413)" in text
    assert "[`UserError`](UserError.qmd)" in text
    assert "Part of the methods [LDAM-DRW, stage 1](../methods/ldam_drw_stage1.qmd), " in text
    assert ">>>" not in text
    line = int(re.search(r"ltlearn/losses/ldam\.py#L(\d+)", text)[1])
    source = (api_names.ROOT / "ltlearn/losses/ldam.py").read_text(encoding="utf-8")
    assert source.splitlines()[line - 1].startswith("class LDAMLoss")


def test_types_and_names_in_backticks_become_links(staging):
    text = read(staging, "api/LTLearner.qmd")
    assert "<code>[LTDataLoaders](LTDataLoaders.qmd)</code>" in text
    assert "[fastai](https://docs.fast.ai/learner.html" in text  # inherited methods
    assert "### retrain\\_classifier {#retrain_classifier}" in text
    links = api_pages.Links()
    assert links.find("learn.retrain_classifier") == "LTLearner.qmd#retrain_classifier"
    assert links.find("SAMN()") == "SAMN.qmd"
    assert links.find("ltlearn.methods.METHODS") == "METHODS.qmd"
    assert links.find("pava", hidden=frozenset({"pava"})) is None
    assert links.find("no_such_name") is None


def test_a_method_without_parameters_of_its_own_is_one_line():
    forward = api_names.find_object("ltlearn.losses.ldam.LDAMLoss.forward")
    assert api_pages.signature(forward, "forward") == (
        "forward(logits: Tensor, target: Tensor) -> Tensor"
    )
    retrain = api_names.find_object("ltlearn.learner.LTLearner.retrain_classifier")
    lines = api_pages.signature(retrain, "retrain_classifier").splitlines()
    assert lines[:4] == [
        "retrain_classifier(",
        "    epochs: int | None = None,",
        "    lr: float | None = None,",
        "    *,",
    ]


def test_an_example_shows_code_and_output():
    shown = api_pages.example(">>> x = [\n...     1,\n... ]\n>>> x\n[1]\n>>> f(x)")
    assert shown == (
        "```python\nx = [\n    1,\n]\nx\n```\n\n```text\n[1]\n```\n\n```python\nf(x)\n```"
    )


# Markup


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b * c < d", r"a\_b \* c \< d"),
        ("see `a | b`", "see <code>a &#124; b</code>"),
        ("with --width 64", "with `--width` 64"),
        ("arXiv:1906.07413.", "[arXiv:1906.07413](https://arxiv.org/abs/1906.07413)."),
        ("$5", r"\$5"),
    ],
)
def test_plain_text_stays_as_it_is(text, shown):
    assert markup.inline(text) == shown


def test_percentages_keep_their_digits():
    assert [markup.percent(v) for v in (69, 54.62, 82.5)] == ["69.0", "54.62", "82.5"]


# Methods


def test_every_method_has_its_facts_and_a_page(staging):
    assert set(FACTS) == set(METHODS)
    for name, facts in FACTS.items():
        row = METHODS[name]
        assert facts.group in method_facts.GROUPS
        assert (facts.group in ("stage 1", "post hoc")) == (row.kind != "stage 2"), name
        assert facts.group in (row.kind, "sampler", "loss", "head"), name
        assert len(facts.summary.split(". ")) >= 2, f"{name}: two sentences"
        for text in (facts.trains, facts.use, facts.avoid):
            assert text.strip(), name
        assert set(facts.related) <= set(METHODS) - {name} and facts.related, name
        page = read(staging, f"methods/{name}.qmd")
        for heading in ("When to use it", "When not to", "Code", "Values", "Cost", "Accuracy"):
            assert f"\n## {heading}\n" in page
        assert f"]({name}.qmd)" in read(staging, "methods/index.qmd")


def test_papers_are_those_that_the_table_of_methods_cites():
    papers = method_facts.papers()
    assert {key for facts in FACTS.values() for key in facts.papers} == set(papers)
    for name, row in METHODS.items():
        cited = set(re.findall(r"arXiv:([\d.]+\d)", row.source))
        assert cited <= {papers[key].arxiv for key in FACTS[name].papers}, name


@pytest.mark.parametrize("name", METHODS)
def test_formulas_convert(name):
    page = FACTS[name].symbols + method_pages.NOTATION
    for formula in (FACTS[name].formula, *re.findall(r"\$([^$]+)\$", page)):
        assert convert(formula).startswith("<math")


@pytest.mark.parametrize("name", METHODS)
def test_the_code_of_a_method_names_what_exists(name):
    calls = {
        node.func.attr: {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        for node in ast.walk(ast.parse(method_pages.python_code(name)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    given = (
        calls["fit_stage1" if METHODS[name].kind == "stage 1" else "retrain_classifier"]
        if (METHODS[name].kind != "post hoc")
        else {}
    )
    if given:
        assert given["method"] == name
        assert given.get("options", {}) == METHODS[name].options
    for line in method_pages.commands(name):
        command, params = parse_command(line)
        assert command in ("train", "compare")
        for method in (params.get("method") or params.get("methods")).split(","):
            assert method in METHODS


@pytest.mark.parametrize("name", TRAINED)
def test_the_number_of_trained_parameters(name):
    learn = make_lt_learner()
    row = METHODS[name]
    if row.post is not None:  # a correction that follows would fold the head
        row = replace(row, label=f"{row.label} before its correction", post=None)
    learn.retrain_classifier(method=name if row is METHODS[name] else row, epochs=1)
    trained = sum(p.numel() for p in learn.model.head.parameters() if p.requires_grad)
    c, d = learn.dls.c, learn.model.head.in_features
    text = FACTS[name].trains
    if METHODS[name].values.get("epochs") == 0:
        assert text == "nothing"
        return
    counts = {"C(D + 1)": c * (d + 1), "C(D + 2)": c * (d + 2), "C(D + 3)": c * (d + 3),
              "C D": c * d, "C": c}  # fmt: skip
    assert counts[text.split(" numbers")[0]] == trained


def test_published_figures_of_recipes_stand_on_the_pages_of_their_methods(staging):
    for recipe_name, recipe in method_facts.recipes().items():
        for figure in recipe.expected:
            for page in (f"methods/{figure.method}.qmd", f"recipes/{recipe_name}.qmd"):
                text = read(staging, page)
                for accuracy, source in figure.each:
                    assert markup.percent(accuracy) in text, (page, figure.method)
                    assert markup.escape(source) in text, (page, figure.method)


def test_results_are_of_recipes_and_hold_their_published_figures():
    for result in method_facts.measured():
        command, params = parse_command(result.command)
        assert (command, params["name"]) == ("recipe", result.recipe)
        recipe = load_recipe(
            result.recipe, [*(params["set_"] or ()), f"protocol={result.protocol}"]
        )
        assert (recipe.stage1.method, recipe.stage1.epochs) == (result.stage1, result.epochs)
        expected = {e.method: e.accuracy for e in recipe.published() if e.group == "all"}
        for row in result.rows:
            figure = row.published and row.published.accuracy
            assert figure in (None, expected.get(row.method)), (result.name, row.method)


FIGURES = {"all": 50.04, "balanced": 49.0, "many": 70.0, "few": 20.0}


@pytest.fixture
def recorded(monkeypatch):
    """Results of a run and of a comparison."""
    facts = {
        "recipe": "cifar100_lt_w16", "protocol": "clean", "dataset": "cifar100_lt",
        "imbalance_factor": 100, "split": "first_n", "fingerprints": {"train": "0123456789ab"},
        "arch": "resnet32_cifar", "width": 16, "epochs": 200, "changed": ["data.split = first_n"],
        "stage1": "ce", "seeds": [0], "groups": {"many": 35, "medium": 35, "few": 30},
        "few": "<20", "command": "ltlearn recipe cifar100_lt_w16 --data DIR", "commit": "0" * 40,
        "hardware": {"device": "processor"},
    }  # fmt: skip
    rows = [
        {"method": "ce", "label": "CE", "accuracy": FIGURES},
        {"method": "crt", "label": "cRT", "accuracy": {**FIGURES, "all": 52.16}},
    ]
    results = [MeasuredResult(kind=kind, rows=rows, **facts) for kind in ("run", "comparison")]
    for module in (method_facts, method_pages):
        monkeypatch.setattr(module, "measured", lambda: results)
    return results


def test_results_stand_on_the_pages_of_methods_and_recipes(recorded, tmp_path):
    for path in [*method_pages.write(tmp_path), *recipe_pages.write(tmp_path)]:
        assert path.is_file()
    page = read(tmp_path, "methods/crt.qmd")
    row = next(line for line in page.splitlines() if "factor 100, data.split" in line)
    assert "50.04" in row and "52.16" in row and "clean" in row
    assert recorded[0].command in page
    assert "52.16" in read(tmp_path, "methods/index.qmd")
    recipe = read(tmp_path, "recipes/cifar100_lt_w16.qmd")
    assert "52.16" in recipe and "data.split = first\\_n" in recipe and "one seed" in recipe
    assert "cRT&nbsp;52.16 (clean, data.split = first" in read(
        tmp_path, "recipes/_recipes_table.md"
    )
    evidence = read(tmp_path, "guide/_evidence.md")
    assert "[cRT](../methods/crt.qmd) | +2.1 | +2.1 | 1 | epoch" in evidence
    assert "after CE" in evidence
    recorded.clear()
    assert "No comparison" in method_pages.evidence()


# The command line


def test_every_command_and_option_is_on_the_page(staging):
    text = read(staging, "reference/cli.qmd")
    for name, command in cli_page.command_group().commands.items():
        section = text.split(f"## ltlearn {name} {{#{name}}}")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for flag in parameter.opts:
                    assert f"`{flag}`" in section, (name, flag)


def test_examples_of_commands_parse():
    commands = cli_page.command_group().commands
    examples = cli_page.examples()
    assert set(commands) <= set(examples), "each command has an example in commands.toml"
    for name in commands:
        for line in examples[name]:
            command, params = parse_command(line)
            assert command == name
            if name == "recipe":
                load_recipe(params["name"], params["set_"] or ())


# Recipes and changelog


def test_every_recipe_has_a_page_with_its_values(staging):
    overview = read(staging, "recipes/index.qmd")
    short = read(staging, "recipes/_recipes_table.md")
    measured = {run.recipe for run in method_facts.measured_runs()}
    for name, recipe in method_facts.recipes().items():
        assert f"]({name}.qmd)" in overview
        # Home has only the recipes with a figure.
        has_figure = name in measured or any(f.group == "all" for f in recipe.published())
        assert (f"](recipes/{name}.qmd)" in short) == has_figure, name
        page = read(staging, f"recipes/{name}.qmd")
        for key in recipe.provenance:
            assert f"`{key}`" in page, (name, key)


@pytest.mark.parametrize("page", ["recipes/index.qmd", "recipes/_recipes_table.md"])
def test_figures_of_pretrained_weights_have_a_table_of_their_own(staging, page):
    scratch, pretrained = read(staging, page).split("From pre-trained weights.")
    for name, recipe in method_facts.recipes().items():
        link = f"{name}.qmd)"
        assert (link in scratch) + (link in pretrained) <= 1
        assert link not in (scratch if recipe.model.pretrained else pretrained), name
    assert "imagenet_lt_lift.qmd)" in pretrained and "](imagenet_lt.qmd)" not in pretrained


def test_a_method_with_figures_of_both_kinds_has_two_tables(staging):
    page = read(staging, "methods/ce.qmd")
    scratch, pretrained = page.split("From pre-trained weights:")
    assert "places_lt.qmd)" in pretrained.split("### Measured")[0]
    assert "places_lt.qmd)" not in scratch.split("### Published")[1]


def test_values_that_depend_on_others_are_shown(staging):
    page = read(staging, "recipes/cifar100_lt.qmd")
    assert "`data.imbalance_factor = 50`" in page
    assert "`method.label_aware_smoothing.head_smoothing = 0.3`" in page


def test_the_changelog_is_a_page(staging):
    text = read(staging, "changelog.qmd")
    assert 'title: "Changelog"' in text and "\n# " not in text
    assert "## Unreleased" in text
