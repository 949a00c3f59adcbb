"""Renders staged sources with nbdev, and makes the pages independent of other sites."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import smalldocs
from latex2mathml.converter import convert

from scripts.site.notebooks import BuildError

# nbdev calls `quarto`. Where there is none, smalldocs renders the same project.
SHIM = """#!/bin/sh
case "$1" in render) exec "{python}" -m smalldocs.cli render . 2>../render.log ;; esac
"""
# Keys that are for Quarto alone. Broken links are found in the pages themselves.
HARMLESS = re.compile(
    r"unknown key format-links$|html-math-method is ignored$|output-file is not read|: broken link "
)

MATHS = re.compile(
    r'(<span class="math (?:inline|display)">)(?:\\\((.*?)\\\)|\\\[(.*?)\\\])', re.DOTALL
)
KATEX = re.compile(r"<(?:link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?")

SOURCE_LINK = re.compile(
    r'<div class="action-links"><a [^>]*href="[^"]*/blob/[^"]*?/nbs/([^"]+)"[^>]*>.*?</a></div>',
    re.DOTALL,
)


def write_project(project: Path, root: Path) -> None:
    """Write the settings that nbdev reads in the staging folder."""
    about = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = "".join(f"{key} = {json.dumps(url)}\n" for key, url in about["urls"].items())
    # `exec_show_docs` starts an IPython shell per notebook, for `show_doc` calls that none has.
    (project / "pyproject.toml").write_text(
        f"""[project]
name = "{about["name"]}"
version = "{about["version"]}"
description = {json.dumps(about["description"])}

[project.urls]
{urls}
[tool.nbdev]
nbs_path = "nbs"
doc_path = "_docs"
lib_path = "{about["name"]}"
custom_sidebar = true
skip_procs = "exec_show_docs"
"""
    )
    (project / about["name"]).mkdir(exist_ok=True)
    write_dark_theme(project / "nbs" / "dark.css")


def write_dark_theme(path: Path) -> None:
    """Write Bootstrap with its dark colours as the only ones, for the second theme of smalldocs."""
    vendor = Path(smalldocs.__file__).parent / "assets" / "vendor" / "bootstrap"
    style = (vendor / "bootstrap.min.css").read_text(encoding="utf-8")
    # The dark block follows the light one, so that at equal weight its values win.
    path.write_text(style.replace("[data-bs-theme=dark]{", ":root,[data-bs-theme=dark]{", 1))


def render(project: Path) -> list[str]:
    """Run nbdev's documentation build in the staging folder; the pages land in `_docs` there.

    Returns:
        The renderer's warnings: one sentence each.

    Raises:
        BuildError: If the renderer fails.
    """
    # nbdev leaves out files whose names begin with an underscore: parts, and the names to link.
    for part in (project / "nbs").rglob("_*"):
        kept = project / "_proc" / part.relative_to(project / "nbs")
        kept.parent.mkdir(parents=True, exist_ok=True)
        if part.is_file():
            shutil.copyfile(part, kept)
    environment = dict(os.environ)
    if not shutil.which("quarto"):
        shim = project / "bin" / "quarto"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(SHIM.format(python=sys.executable))
        shim.chmod(0o755)
        environment["PATH"] = f"{shim.parent}{os.pathsep}{environment.get('PATH', '')}"
    command = [str(Path(sys.executable).parent / "nbdev-docs"), "--n-workers", "1"]
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    rendered = project / "render.log"
    printed = rendered.read_text(encoding="utf-8") if rendered.exists() else ""
    if result.returncode or not (project / "_docs" / "index.html").exists():
        raise BuildError(f"nbdev-docs failed:\n{result.stdout}{result.stderr}{printed}".strip())
    warnings = [
        line.removeprefix("warning: ") for line in printed.splitlines() if line[:8] == "warning:"
    ]
    return [line for line in warnings if not HARMLESS.search(line)]


def maths(page: str, name: str) -> str:
    """Replace each formula of a page by MathML, which browsers draw without a script.

    Args:
        page: The page, as HTML.
        name: Its path, for the message.

    Raises:
        BuildError: If a formula cannot be converted.
    """

    def formula(match: re.Match) -> str:
        inline, display = match[2], match[3]
        tex = html.unescape(inline if inline is not None else display).strip()
        try:
            mathml = convert(tex, display="inline" if inline is not None else "block")
        except Exception as error:  # The converter raises errors of many classes.
            raise BuildError(
                f"{name}: the formula {tex} cannot be converted ({error!r})."
            ) from error
        if "\\" in mathml:  # An unknown command stands there as it was.
            raise BuildError(f"{name}: the formula {tex} has a command that cannot be converted.")
        return match[1] + mathml

    return KATEX.sub("", MATHS.sub(formula, page))


def without_source(page: str, sources: Path) -> str:
    """Remove the link to the source of a page that is generated, and has none in the repository."""
    link = re.search(
        r'<div class="action-links"><a [^>]*href="[^"]*/nbs/([^"]+)"[^>]*>.*?</a></div>', page
    )
    if link is None or (sources / link[1]).exists():
        return page
    return page.replace(link[0], "")


def finish(docs: Path, sources: Path) -> None:
    """Convert formulas, and give search an index that works without a server.

    Args:
        docs: The rendered pages.
        sources: The folder of sources in the repository.
    """
    for path in sorted(docs.rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        finished = maths(without_source(page, sources), str(path.relative_to(docs)))
        if finished != page:
            path.write_text(finished, encoding="utf-8")
    index = (docs / "search.json").read_text(encoding="utf-8")
    # A page that is opened from a file may run a script, but may not fetch a file.
    (docs / "search.js").write_text(f"window.siteSearch = {json.dumps(index)};\n", encoding="utf-8")
