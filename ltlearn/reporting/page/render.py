"""Render a page with its style, its script and its images in one file."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from ltlearn.names import SHOTS
from ltlearn.reporting.page.content import ClassData, Page
from ltlearn.utils.text import DASH, clean

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).parent / "templates"
# Rows of the table of classes that stand in the page itself, for a browser without scripts.
_PLAIN_CLASSES = 100


def render_page(page: Page) -> str:
    """Return a page as HTML. It needs no other file and makes no request.

    All texts are escaped. A content security policy allows the script of this module alone, so that
    a name in the data can run nothing.

    Args:
        page: The content.
    """
    environment = _environment()
    style, script = (_read(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        page=page,
        style=style,
        script=script,
        policy=(
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        ),
        shots=SHOTS,
        plain_classes=_PLAIN_CLASSES,
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = clean
    environment.filters["percent"] = _percent
    environment.globals["plain_order"] = _most_frequent_first
    environment.filters["signed"] = _signed
    return environment


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _most_frequent_first(classes: ClassData) -> list[int]:
    return sorted(range(len(classes.names)), key=lambda c: -classes.training[c])


def _percent(value: float | None) -> str:
    return DASH if value is None or value != value else f"{100 * value:.1f}"


@cache
def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
