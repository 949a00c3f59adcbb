"""Markdown that Quarto and smalldocs read alike: escaping, code, tables, front matter."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

REPOSITORY = "https://github.com/ltlearn/ltlearn"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_URL = re.compile(r"https?://[^\s)>\]]+[^\s)>\].,;]")
_SPECIAL = re.compile(r"([\\*_<>\[\]$|~^#@\"{}]|-(?=-)|(?<=-)-|\.(?=\.\.))")

Linker = Callable[[str], str | None]
"""Returns the address of a name in backticks, or None."""


def no_links(name: str) -> None:
    """Link no name in backticks."""


def escape(text: str) -> str:
    """Escape plain text, so that Markdown shows each character as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def code(text: str, address: str | None = None) -> str:
    """Return inline code, linked if there is an address.

    Code with a bar or a brace is HTML: in a table, renderers disagree on bars inside backticks.
    """
    if re.search(r"[|`\\{}]", text):
        inner = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        for char in "|`\\{}*_[]$":
            inner = inner.replace(char, f"&#{ord(char)};")
        shown = f"<code>{inner}</code>"
    else:
        shown = f"`{text}`"
    return shown if address is None else f"[{shown}]({address})"


def inline(text: str, link: Linker = no_links) -> str:
    """Turn a sentence of a docstring into Markdown: code, arXiv ids and addresses become links."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    shown = []
    for number, part in enumerate(parts):
        shown.append(code(part, link(part)) if number % 2 else _plain(part))
    return "".join(shown)


def _plain(text: str) -> str:
    pieces, end = [], 0
    found = [*_ARXIV.finditer(text), *_URL.finditer(text), *_FLAG.finditer(text)]
    for match in sorted(found, key=lambda match: match.start()):
        if match.start() < end:
            continue
        if match.re is _FLAG:  # in plain text, two hyphens would become a dash
            shown = code(match[0])
        else:
            is_paper = match.re is _ARXIV
            address = f"https://arxiv.org/abs/{match[1]}" if is_paper else match[0]
            shown = f"[{escape(match[0])}]({address})"
        pieces += [escape(text[end : match.start()]), shown]
        end = match.end()
    return "".join([*pieces, escape(text[end:])])


def paragraphs(text: str, link: Linker = no_links) -> str:
    """Turn a docstring's text into Markdown; lines that begin with a dash stay a list."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if any(re.match(r"\s*[-*] ", line) for line in lines):
            blocks.append(_list(lines, link))
        elif all(line.startswith("    ") for line in lines):
            blocks.append(fence("\n".join(line[4:] for line in lines), "text"))
        else:
            blocks.append(inline(block, link))
    return "\n\n".join(blocks)


def _list(lines: list[str], link: Linker) -> str:
    before, items = [], []
    for line in lines:
        if item := re.match(r"\s*[-*] (.*)", line):
            items.append(item[1])
        elif items:
            items[-1] += " " + line.strip()
        else:
            before.append(line)
    shown = "\n".join(f"* {inline(item, link)}" for item in items)
    return f"{inline(' '.join(before), link)}\n\n{shown}" if before else shown


def fence(text: str, language: str = "python") -> str:
    """Return a block of code."""
    marks = "```" + "`" * ("```" in text)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def percent(value: float) -> str:
    """Return an accuracy with one decimal, or with two where the second is not 0."""
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Return a table of cells that are Markdown already.

    Args:
        head: Headings.
        rows: Cells of each row.
        align: A letter per column: "l" or "r". Missing letters are "l".
    """
    marks = ["---:" if a == "r" else "---" for a in align.ljust(len(head), "l")]
    lines = [list(head), marks, *([cell.replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(title: str, description: str, *blocks: str, **options: object) -> str:
    """Return a page: front matter, then the blocks that are not empty.

    Args:
        title: Title.
        description: One sentence, plain text.
        *blocks: Markdown.
        **options: Further front matter; an underscore in a name stands for a hyphen.
    """
    front = {"title": title, "description": description}
    front |= {key.replace("_", "-"): value for key, value in options.items()}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    return "\n\n".join(["---\n" + "\n".join(lines) + "\n---", *filter(None, blocks)]) + "\n"


def write_page(path: Path, text: str) -> Path:
    """Write a page, its folder included; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def first_sentence(text: str) -> str:
    """Return the first line of a docstring, without the marks of code."""
    return text.strip().split("\n\n")[0].replace("\n", " ").replace("`", "")
