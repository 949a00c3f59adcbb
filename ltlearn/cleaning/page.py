"""The self-contained page of thumbnails, `clean.html`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader

from ltlearn.cleaning.issues import COLUMNS, KINDS, short_path
from ltlearn.errors import UserError
from ltlearn.reporting.page.thumbnails import SMALL_SIDE, thumbnail
from ltlearn.utils.text import clean

if TYPE_CHECKING:
    from ltlearn.cleaning.issues import Finding, Issues

__all__ = ["MAX_SHOWN", "render_page"]

MAX_SHOWN = 500  # findings of a kind with thumbnails; a page of all kinds stays below 20 MB
_SIDE = 112  # of a thumbnail, in pixels


def render_page(issues: "Issues", title: str) -> str:
    """Return the page of some issues as HTML.

    Args:
        issues: The issues.
        title: Heading of the page.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["clean"] = clean
    thumbnails: dict[int, dict[str, Any] | None] = {}
    folder = issues.folder
    sections = []
    for kind in issues.searched:
        numbered = [(row, one) for row, one in enumerate(issues.findings) if one.kind == kind]
        findings = [one for _, one in numbered]
        cards = [_card(issues, row, one, thumbnails, folder) for row, one in numbered[:MAX_SHOWN]]
        groups = Counter(one.group for one in findings)
        sections.append(
            {
                "kind": kind, "meaning": KINDS[kind], "count": len(findings), "cards": cards,
                "groups": ", ".join(f"{n:,} {group}" for group, n in groups.items()),
            }
        )  # fmt: skip
    rows = [one.to_row() for one in issues.findings]
    return environment.get_template("clean.html.jinja").render(
        title=title,
        summary=issues.summary(),
        sections=sections,
        searched_in_vain=", ".join(one["kind"] for one in sections if not one["count"]),
        max_shown=MAX_SHOWN,
        columns=list(COLUMNS),
        rows=[list(row.values()) for row in rows],
    )


def _card(
    issues: "Issues", row: int, one: "Finding", thumbnails: dict, folder: str
) -> dict[str, Any]:
    """Return what the template shows of a finding."""
    numbers = [one.number, *([one.twin_number] if one.twin_number >= 0 else [])]
    for number in numbers:
        if number not in thumbnails:
            thumbnails[number] = _thumbnail(issues, number)
    return {
        "finding": one,
        "row": row,
        "images": [thumbnails[number] for number in numbers],
        "score": f"{one.score:.2f}",
        "path": short_path(one.path, folder),
        "twin": short_path(one.twin, folder),
    }


def _thumbnail(issues: "Issues", number: int) -> dict[str, Any] | None:
    """Return an image as a data URI with its size; None if it cannot be read, or is not there."""
    if issues.images is None:
        return None
    try:
        pixels = issues.images.pixels(number)
    except UserError:
        return None
    return {"uri": thumbnail(pixels, _SIDE), "small": max(pixels.shape[:2]) <= SMALL_SIDE}
