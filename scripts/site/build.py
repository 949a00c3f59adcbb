"""Builds the documentation site: `scripts/docs` calls it."""

import argparse
import importlib
import shutil
import sys
from pathlib import Path

from scripts.site import checks, navigation, notebooks, render
from scripts.site.notebooks import BuildError

ROOT = Path(__file__).resolve().parents[2]
# Each writes pages into the staged sources.
GENERATORS = ("api_pages", "method_pages", "cli_page", "recipe_pages", "changelog_page")


def log(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def stage(work: Path) -> Path:
    """Copy the sources to an empty staging project, and return its folder of pages."""
    project = work / "project"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(
        ROOT / "nbs", project / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    render.write_project(project, ROOT)
    return project / "nbs"


def generate(nbs: Path) -> None:
    """Write the pages that come from the code."""
    for name in GENERATORS:
        log(f"generating with {name}")
        importlib.import_module(f"scripts.site.{name}").write(nbs)


def build(out: Path, work: Path, run: bool, jobs: int) -> list[str]:
    """Build the whole site, and return the renderer's warnings.

    Args:
        out: Folder of the site; it is replaced.
        work: Folder of the staging copy and of the results of notebooks.
        run: Whether the notebooks are executed.
        jobs: Notebooks that are executed at a time.
    """
    if out.exists() and any(out.iterdir()) and not (out / "site_libs").is_dir():
        raise BuildError(f"{out} holds something else than a built site; name another folder.")
    nbs = stage(work)
    if run:
        notebooks.execute(nbs, ROOT, work / "notebooks", jobs, log)
    for path in sorted(nbs.rglob("*.ipynb")):
        notebooks.prepare(path, str(path.relative_to(nbs)))
    generate(nbs)
    navigation.fill_sidebars(nbs)
    log("rendering")
    warnings = render.render(nbs.parent)
    docs = nbs.parent / "_docs"
    render.finish(docs, ROOT / "nbs")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(docs, out)
    return warnings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of the build."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description="Build the site offline.")
    parser.add_argument("--no-run", action="store_true", help="leave out the outputs of notebooks")
    parser.add_argument("--no-check", action="store_true", help="leave out the checks of the pages")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks executed at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="folder of the site")
    options = parser.parse_args(arguments)
    try:
        warnings = build(options.out, ROOT / "build" / "site", not options.no_run, options.jobs)
        problems = [] if options.no_check else [*warnings, *checks.check(options.out)]
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    pages = len(list(options.out.rglob("*.html")))
    log(f"{options.out}: {pages} pages, {len(problems)} faults")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
