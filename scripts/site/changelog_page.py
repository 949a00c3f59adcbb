"""The changelog as a page."""

import re
from pathlib import Path

from scripts.site.markup import page, write_page

_CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


def write(staging: Path) -> list[Path]:
    """Write `changelog.qmd` into the staged sources.

    Args:
        staging: Folder of the staged sources.

    Returns:
        The file written.
    """
    text = _CHANGELOG.read_text(encoding="utf-8")
    body = re.sub(r"\A# .*\n+", "", text)  # the title of the page is in its front matter
    # Brackets around a version without an address would be printed.
    body = re.sub(r"^## \[([^\]]+)\](?!\()", r"## \1", body, flags=re.MULTILINE)
    shown = page("Changelog", "What changed in each version.", body, toc_depth=3)
    return [write_page(staging / "changelog.qmd", shown)]
