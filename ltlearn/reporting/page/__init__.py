"""`report.html`: one self-contained page about a run, or about a comparison."""

from ltlearn.reporting.page.content import (
    Cell,
    ClassData,
    Code,
    Column,
    Details,
    ErrorGroup,
    Errors,
    ErrorThumbnail,
    Facts,
    Headline,
    MethodClasses,
    Page,
    Plot,
    Row,
    Section,
    Table,
    Text,
)
from ltlearn.reporting.page.render import render_page
from ltlearn.reporting.page.svg import figure_to_svg
from ltlearn.reporting.page.thumbnails import thumbnail

__all__ = [
    "Cell",
    "ClassData",
    "Code",
    "Column",
    "Details",
    "ErrorGroup",
    "ErrorThumbnail",
    "Errors",
    "Facts",
    "Headline",
    "MethodClasses",
    "Page",
    "Plot",
    "Row",
    "Section",
    "Table",
    "Text",
    "figure_to_svg",
    "render_page",
    "thumbnail",
]
