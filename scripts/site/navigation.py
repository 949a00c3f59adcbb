"""Sidebars of the generated pages: the sections of an index, with the pages that each lists."""

import re
from pathlib import Path

import yaml

HEADING = re.compile(r"^##\s+(.+?)(?:\s*\{[^}]*\})?\s*$")
MOST_OPEN = 60  # pages that a sidebar lists with all its sections open
PAGE = re.compile(r"(?:\]\(|href=\")(?:\./)?([^/\s()#\"]+\.qmd)")


def sections(index: Path) -> list[dict]:
    """Return the sections of an index page for the sidebar.

    Args:
        index: An index with headings of level 2 and links to pages of its folder. A page that two
            sections link to stands in the later one, which is the more special.
    """
    places: dict[str, str] = {}
    heading = ""
    for line in index.read_text(encoding="utf-8").splitlines():
        if match := HEADING.match(line):
            heading = match[1].replace("`", "").replace("\\", "")
        for name in PAGE.findall(line):
            if heading and (index.parent / name).exists():
                places.pop(name, None)
                places[name] = heading
    grouped: dict[str, list[str]] = {}
    for name, heading in places.items():
        grouped.setdefault(heading, []).append(f"{index.parent.name}/{name}")
    return [{"section": heading, "contents": pages} for heading, pages in grouped.items()]


def fill_sidebars(nbs: Path) -> None:
    """Replace `FOLDER/*.qmd` in the staged sidebars by the sections of the folder's index."""
    path = nbs / "_quarto.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for sidebar in config["website"]["sidebar"]:
        folder = re.fullmatch(r"(\w+)/\*\.qmd", str(sidebar["contents"]))
        if folder and (index := nbs / folder[1] / "index.qmd").exists():
            grouped = sections(index)
            sidebar["contents"] = [f"{folder[1]}/index.qmd", *grouped]
            # Sections of a long list stay closed, but for the one of the page.
            if sum(len(section["contents"]) for section in grouped) > MOST_OPEN:
                sidebar["collapse-level"] = 1
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
