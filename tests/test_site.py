"""The build of the documentation site: its checks on small faulty sites, its pages in a browser.

With LTLEARN_SITE=FOLDER, the last test opens every page of the built site in that folder.
"""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from scripts.site import api_names, build, checks, navigation, notebooks, render
from scripts.site.api_names import PublicName
from scripts.site.notebooks import BuildError

ROOT = Path(__file__).parents[1]
SITE = "LTLEARN_SITE"


def write(folder, **pages):
    """Write pages by name; "a__b" is b.html in the folder a."""
    for name, body in pages.items():
        path = folder / f"{name.replace('__', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<html><body>{body}</body></html>")
    return folder


# ---- links


def test_links_that_lead_somewhere_are_no_fault(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"")
    write(
        tmp_path,
        index='<h2 id="top-1">x</h2><img src="a%20b.png"><a href="sub/">x</a><a href="#top-1">x</a>'
        '<a href="sub/page.html#%C3%A9">x</a><a href="https://example.org">x</a>'
        '<a href="mailto:a@example.org">x</a><img src="data:image/png;base64,AA">',
        sub__index="x",
        sub__page='<a name="é">x</a><a href="../index.html?q=1#top-1">x</a>',
    )
    assert checks.broken_links(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "target"),
    [
        ('<a href="gone.html">x</a>', r"index\.html.* gone\.html"),
        ('<a href="sub/page.html#gone">x</a>', r"index\.html.* sub/page\.html#gone"),
        ('<a href="#gone">x</a>', r"index\.html.* index\.html#gone"),
        ('<img src="gone.png">', r"index\.html.* gone\.png"),
        ('<a href="../outside.html">x</a>', r"index\.html.* \.\./outside\.html"),
        ('<script src="https://example.org/x.js"></script>', r"index\.html.*https://example\.org"),
        ('<link rel="stylesheet" href="//example.org/x.css">', r"index\.html.*example\.org/x\.css"),
    ],
)
def test_a_link_that_leads_nowhere_is_a_fault(tmp_path, body, target):
    (tmp_path / "outside.html").write_text("")
    docs = write(tmp_path / "docs", index=body, sub__page="x")
    (fault,) = checks.broken_links(docs)
    assert re.search(target, fault)


def test_a_target_that_many_pages_miss_is_one_fault(tmp_path):
    pages = {f"page{i}": '<a href="gone.html">x</a>' for i in range(9)}
    (fault,) = checks.broken_links(write(tmp_path, **pages))
    assert "page0.html" in fault and "6 more pages" in fault


# ---- names without a page


def test_a_name_without_a_page_is_a_fault(tmp_path):
    docs = write(tmp_path, api__SAMN="x")
    names = {"SAMN": "ltlearn", "GLMC": "ltlearn.callbacks"}
    (fault,) = checks.missing_pages(docs, "api", names)
    assert "api/GLMC.html" in fault and "ltlearn.callbacks" in fault


def test_every_method_and_public_name_needs_a_page(tmp_path, monkeypatch):
    from ltlearn.methods import METHODS

    # Reading all of the library takes seconds; the tests of the pages do it.
    names = [
        PublicName("SAMN", "ltlearn.callbacks.samn.SAMN", ("ltlearn", "ltlearn.callbacks"), "SAMN"),
        PublicName("GLMC", "ltlearn.callbacks.glmc.GLMC", ("ltlearn",), "GLMC-class"),
        PublicName("Result", "ltlearn.x.Result", (), "Result"),
    ]
    monkeypatch.setattr(api_names, "public_names", lambda: names)
    faults = checks.check(write(tmp_path, index="x"))
    asked = {fault.partition(":")[0] for fault in faults}
    assert {f"methods/{name}.html" for name in METHODS} <= asked
    assert {name for name in asked if name[:4] == "api/"} == {
        "api/SAMN.html",
        "api/GLMC-class.html",
    }


# ---- notebooks


def notebook(path, *codes, title="# Title\n\n> What it shows."):
    node = nbformat.v4.new_notebook()
    node.cells = [nbformat.v4.new_markdown_cell(title)]
    node.cells += [nbformat.v4.new_code_cell(code) for code in codes]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, path)
    return path


def test_a_notebook_that_fails_is_named_with_its_cell(tmp_path):
    nbs, cache = tmp_path / "nbs", tmp_path / "work" / "cache"
    good = notebook(nbs / "good.ipynb", "import os\nprint(6 * 7, sorted(os.listdir()))")
    notebook(nbs / "sub" / "bad.ipynb", "x = 1", "raise KeyError('the reason')")
    with pytest.raises(BuildError, match=r"sub/bad\.ipynb.*cell 2(.|\n)*the reason"):
        notebooks.execute(nbs, ROOT, cache, log=lambda line: None)
    # The other is done: the next build has its result, and each runs in an empty folder.
    assert json.loads(good.read_text())["cells"][1]["outputs"][0]["text"] == ["42 []\n"]


def test_a_result_is_kept_until_the_notebook_or_the_library_changes(tmp_path, monkeypatch):
    started = []

    async def run(path, name, root, work):
        started.append(name)
        return nbformat.read(path, as_version=4)

    monkeypatch.setattr(notebooks, "_execute", run)
    root, nbs, cache = tmp_path / "root", tmp_path / "nbs", tmp_path / "work" / "cache"
    (root / "ltlearn").mkdir(parents=True)
    for library, code, runs in [("a", "1", 1), ("a", "1", 1), ("a", "2", 2), ("b", "2", 3)]:
        (root / "ltlearn" / "module.py").write_text(library)
        path = notebook(nbs / "x.ipynb")
        path.write_text(json.dumps({**json.loads(path.read_text()), "cells": [
            {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [],
             "execution_count": None, "source": [code]}]}))  # fmt: skip
        notebooks.execute(nbs, root, cache, log=lambda line: None)
        assert len(started) == runs


def test_a_notebook_gets_its_colab_line_and_sized_plots(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "#| fig-alt: Norms\nplot()", title="# T\n\n> D.\n\nText.")
    node = json.loads(path.read_text())
    node["cells"][1]["outputs"] = [
        {"output_type": "display_data", "data": {"image/png": "AA\n", "text/plain": "x"},
         "metadata": {"image/png": {"width": 400, "height": 300}}}
    ]  # fmt: skip
    path.write_text(json.dumps(node))
    notebooks.prepare(path, "tutorials/a.ipynb")
    title, line, code = json.loads(path.read_text())["cells"]
    assert title["source"] == "# T\n\n> D." and line["source"].endswith("Text.")
    assert "github/ltlearn/ltlearn/blob/main/nbs/tutorials/a.ipynb" in line["source"]
    assert "pip install ltlearn" in line["source"]
    (html,) = code["outputs"][0]["data"].values()
    assert 'width="400" height="300" alt="Norms"' in html


def test_a_notebook_without_a_title_is_a_fault(tmp_path):
    path = notebook(tmp_path / "a.ipynb", title="No title")
    with pytest.raises(BuildError, match=r"tutorials/a\.ipynb"):
        notebooks.prepare(path, "tutorials/a.ipynb")


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BuildError, match=re.escape(str(tmp_path))):
        build.build(tmp_path, tmp_path / "work", run=False, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ---- formulas, sources, sidebars


def test_a_formula_becomes_mathml_and_nothing_loads_katex():
    page = (
        '<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/katex@0.16/dist/katex.min.css">'
        '<script src="https://cdn.jsdelivr.net/npm/katex@0.16/dist/katex.min.js" defer></script>'
        '<p><span class="math inline">\\(a &lt; b\\)</span></p>'
        '<span class="math display">\\[\\frac{1}{n_c}\\]</span>'
    )
    shown = render.maths(page, "a.html")
    assert "katex" not in shown and shown.count("<math") == 2
    assert "<mfrac>" in shown and 'display="block"' in shown and "&#x0003C;" in shown


@pytest.mark.parametrize("tex", [r"\unknown{n}", r"\left( n", r"\begin{nothing} n"])
def test_a_formula_that_cannot_be_converted_names_its_page(tex):
    with pytest.raises(BuildError, match=r"a\.html.*" + re.escape(tex)):
        render.maths(f'<span class="math inline">\\({tex}\\)</span>', "a.html")


def test_the_source_link_of_a_generated_page_goes(tmp_path):
    def link(name):
        address = f"https://github.com/o/r/blob/main/nbs/{name}"
        return f'<div class="action-links"><a href="{address}" class="toc-action">View</a></div>'

    (tmp_path / "written.qmd").write_text("")
    assert render.without_source(link("written.qmd"), tmp_path) == link("written.qmd")
    assert render.without_source(link("api/made.qmd"), tmp_path) == ""


def test_a_sidebar_follows_the_index(tmp_path):
    for name in ("index", "A", "B", "C"):
        (tmp_path / f"{name}.qmd").write_text("")
    index = tmp_path / "index.qmd"
    index.write_text(
        "[A](A.qmd)\n\n## All {#all}\n\n| [B](B.qmd) | [A](A.qmd#x) |\n\n"
        "## `Losses`\n\n[A](A.qmd), [gone](D.qmd), [C](C.qmd), [elsewhere](../x/B.qmd)\n"
    )
    folder = tmp_path.name
    assert navigation.sections(index) == [
        {"section": "All", "contents": [f"{folder}/B.qmd"]},
        {"section": "Losses", "contents": [f"{folder}/A.qmd", f"{folder}/C.qmd"]},
    ]


def test_a_sidebar_lists_what_the_index_of_its_folder_lists(tmp_path):
    (tmp_path / "_quarto.yml").write_text(
        "website: {sidebar: [{id: a, contents: api/*.qmd}, {id: b, contents: [start.qmd]}]}"
    )
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "X.qmd").write_text("")
    (tmp_path / "api" / "index.qmd").write_text("## Names\n\n[X](X.qmd)\n")
    navigation.fill_sidebars(tmp_path)
    first, second = yaml.safe_load((tmp_path / "_quarto.yml").read_text())["website"]["sidebar"]
    assert first["contents"] == [
        "api/index.qmd", {"section": "Names", "contents": ["api/X.qmd"]}
    ]  # fmt: skip
    assert second["contents"] == ["start.qmd"]


# ---- workflows


def test_workflows_test_every_python_that_the_package_names():
    workflows = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
    }
    assert set(workflows) == {"tests", "docs", "release"}
    tested = workflows["tests"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [c.rpartition(" ")[2] for c in about["classifiers"] if "Python :: 3." in c]
    assert tested == named and f">={tested[0]}" == about["requires-python"]


# ---- a small site, rendered with the site's own settings and styles

PAGE = """---
title: Home
description: "A small site."
---

Words to find: isotonic regression. In a line $n_c < N$, and on its own:

$$\\sum_{c=1}^{C} \\frac{n_c}{N} = 1$$

| name | a | b | c | d | e | f |
| --- | --- | --- | --- | --- | --- | --- |
| `a_name_that_is_long_enough_to_be_wide` | 1 | 2 | 3 | 4 | 5 | a_word_without_a_place_to_break |

```python
line = "a line of code that is much wider than a narrow screen, and scrolls in its own box alone"
```

{{< include gone.md >}}

[away](gone.qmd)
"""


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """A site of one page and a notebook: its folder, and the renderer's warnings."""
    project = tmp_path_factory.mktemp("project")
    nbs = project / "nbs"
    (nbs / "images").mkdir(parents=True)
    for name in ("_quarto.yml", "styles.css", "head.html", "images/logo.svg", "images/colab.svg"):
        shutil.copyfile(ROOT / "nbs" / name, nbs / name)
    (nbs / "index.qmd").write_text(PAGE)
    notebooks.prepare(notebook(nbs / "tutorials" / "first.ipynb", "1 + 1"), "tutorials/first.ipynb")
    render.write_project(project, ROOT)
    warnings = render.render(project)
    render.finish(project / "_docs", ROOT / "nbs")
    return project / "_docs", warnings


def test_what_the_renderer_leaves_out_is_a_warning(small_site):
    _, warnings = small_site
    assert [w for w in warnings if "gone.md" in w] == warnings != []


def test_a_page_that_is_not_there_is_found_in_the_rendered_site(small_site):
    faults = checks.broken_links(small_site[0])
    assert any(fault.startswith("index.html") and " gone.html" in fault for fault in faults)
    assert not any("://" in fault for fault in faults)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("page", ["index.html", "tutorials/first.html"])
def test_a_page_fits_its_window_and_stays_on_the_site(small_site, open_page, page, width):
    docs, _ = small_site
    opened = open_page(docs / page, width=width)
    assert opened.errors == [] and opened.failed == []
    assert [r for r in opened.requests if not r.startswith(docs.as_uri())] == []
    assert opened.overflow() <= 0 and opened.broken_images() == []


def test_search_works_on_a_page_that_was_opened_as_a_file(small_site, open_page):
    opened = open_page(small_site[0] / "tutorials" / "first.html")
    opened.page.fill("#quarto-search input", "isotonic")
    result = opened.page.locator(".search-result").first
    result.wait_for(timeout=5000)
    result.click()
    opened.page.wait_for_url("**/index.html*")


def test_the_dark_theme_is_dark_and_stays(small_site, open_page):
    opened = open_page(small_site[0] / "index.html")
    page = opened.page
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0)"
    )
    assert page.evaluate(brightness) > 700
    page.click(".quarto-color-scheme-toggle")
    page.wait_for_timeout(100)
    assert page.evaluate(brightness) < 200
    page.reload()
    assert page.evaluate(brightness) < 200


# ---- every page of the whole site, where it is built


@pytest.mark.skipif(SITE not in os.environ, reason=f"{SITE} names no built site")
@pytest.mark.timeout(600)
def test_every_page_of_the_site(browser):
    docs = (ROOT / os.environ[SITE]).resolve()
    pages = sorted(docs.rglob("*.html"))
    assert pages
    faults = []
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    place = ""
    page.on("pageerror", lambda error: faults.append(f"{place}: {error}"))
    page.on("console", lambda m: faults.append(f"{place}: {m.text}") if m.type == "error" else None)

    def stays(request):
        if not request.url.startswith((docs.as_uri(), "data:", "blob:")):
            faults.append(f"{place}: request of {request.url}")

    page.on("request", stays)
    for path in pages:
        place = str(path.relative_to(docs))
        page.goto(path.as_uri(), wait_until="load")
        wider, broken = page.evaluate(
            """() => [
                document.documentElement.scrollWidth - document.documentElement.clientWidth,
                [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
            ]"""
        )
        if wider > 0:
            faults.append(f"{place}: {wider} pixels wider than a window of 390")
        faults += [f"{place}: {source[:100]} does not load" for source in broken]
    assert faults == []
