"""Checks of the built site: links, anchors, and a page for every public name and method."""

from collections import defaultdict
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
    """Find links, images and anchors that lead nowhere, and files that other sites serve.

    Returns:
        One sentence per target, with the pages that link to it.
    """
    docs = docs.resolve()
    pages, faults = _read(docs), defaultdict(list)
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            if fault := _fault(path, link, pages, docs, link in page.loaded):
                faults[fault].append(str(path.relative_to(docs)))
    return [f"{_listed(places)}: the link {fault}" for fault, places in faults.items()]


def _fault(path: Path, link: str, pages: dict[Path, _Page], docs: Path, loaded: bool) -> str:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        foreign = loaded and parts.scheme != "data"
        return f"{link} loads a file from another site." if foreign else ""
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file() or docs not in target.parents:
        name = target.relative_to(docs) if docs in target.parents else link
        return f"to {name} leads to no page or file of the site."
    anchor = unquote(parts.fragment)
    if anchor not in {"", "top"} and target in pages and anchor not in pages[target].anchors:
        return f"to {target.relative_to(docs)}#{anchor} leads to no anchor of that page."
    return ""


def _listed(places: list[str]) -> str:
    places = list(dict.fromkeys(places))
    more = f" and {len(places) - 3} more pages" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


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
    from ltlearn.methods import METHODS
    from scripts.site.api_names import public_names

    names = {name.page: ", ".join(name.modules) for name in public_names() if name.modules}
    return [
        *broken_links(docs),
        *missing_pages(docs, "api", names),
        *missing_pages(docs, "methods", dict.fromkeys(METHODS, "METHODS")),
    ]
