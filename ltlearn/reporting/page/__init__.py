"""`report.html`: one self-contained page about a run, or about a comparison."""

from ltlearn.reporting.page.content import (
    Cell,
    ClassData,
    CodeBlock,
    Column,
    ErrorGroup,
    Errors,
    ErrorThumbnail,
    Facts,
    Folded,
    Headline,
    MethodClasses,
    Page,
    PageSection,
    PageTable,
    Plot,
    Row,
    Text,
)
from ltlearn.reporting.page.render import render_page
from ltlearn.reporting.page.svg import figure_to_svg
from ltlearn.reporting.page.thumbnails import thumbnail

__all__ = [
    "Cell",
    "ClassData",
    "CodeBlock",
    "Column",
    "Folded",
    "ErrorGroup",
    "ErrorThumbnail",
    "Errors",
    "Facts",
    "Headline",
    "MethodClasses",
    "Page",
    "Plot",
    "Row",
    "PageSection",
    "PageTable",
    "Text",
    "figure_to_svg",
    "render_page",
    "thumbnail",
]
