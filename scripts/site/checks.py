"""Checks of the built site: links, anchors, and a page for every public name and method."""

import importlib
import pkgutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


class _Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {key: value for key, value in attrs if value is not None}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])


def _read(docs: Path) -> dict[Path, _Page]:
    return {
        path.resolve(): _Page(path.read_text(encoding="utf-8"))
        for path in sorted(docs.rglob("*.html"))
    }


def broken_links(docs: Path) -> list[str]:
    """One sentence per link, image or anchor that leads nowhere, and per file that another site serves."""
    docs = docs.resolve()
    pages, problems = _read(docs), []
    for path, page in pages.items():
        name = path.relative_to(docs)
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    problems.append(f"{name}: {link} is loaded from another site.")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file() or docs not in target.parents:
                problems.append(f"{name}: the link {link} leads to no page or file of the site.")
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and anchor != "top":
                    problems.append(f"{name}: the link {link} leads to no anchor of its page.")
    return list(dict.fromkeys(problems))


def public_names(package: str = "ltlearn") -> dict[str, str]:
    """The module that lists each public name, from every `__all__` of the package.

    Args:
        package: Name of the package to import; modules with a leading underscore are not public.
    """
    top = importlib.import_module(package)
    names = {name: package for name in getattr(top, "__all__", [])}
    for found in pkgutil.walk_packages(top.__path__, f"{package}."):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", []):
            names.setdefault(name, found.name)
    return names


def missing_pages(docs: Path, folder: str, names: dict[str, str]) -> list[str]:
    """One sentence per name without its page `folder/name.html`.

    Args:
        docs: The built site.
        folder: Folder of the pages below it.
        names: Names that need a page, each with the place that lists it.
    """
    return [
        f"{folder}/{name}.html: {where} lists {name}, and the site has no page for it."
        for name, where in sorted(names.items())
        if not (docs / folder / f"{name}.html").is_file()
    ]


def check(docs: Path) -> list[str]:
    """Every fault of the built site, one sentence each."""
    methods = dict.fromkeys(importlib.import_module("ltlearn.methods").METHODS, "METHODS")
    return [
        *broken_links(docs),
        *missing_pages(docs, "api", public_names()),
        *missing_pages(docs, "methods", methods),
    ]
