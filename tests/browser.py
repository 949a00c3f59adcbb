"""A headless browser for tests of pages: `open_page` opens one and records what it does.

Without a browser these tests are skipped; with LTLEARN_REQUIRE_BROWSER=1 they fail instead.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# These stay within the page; any other request leaves it.
_INSIDE = ("data:", "blob:", "about:")
REQUIRE = "LTLEARN_REQUIRE_BROWSER"


@dataclass
class Opened:
    """A page in the browser.

    `page` is playwright's page. `errors` are its console errors and exceptions, `failed` the
    requests without an answer, and `requests` the addresses that it asked for beside its own.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def broken_images(self) -> list[str]:
        """List the sources of images that did not load, also those that load late."""
        return self.page.evaluate(
            """async () => {
                const images = [...document.images];
                for (const image of images) {
                    image.loading = "eager";
                    await image.decode().catch(() => null);
                }
                return images.filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200));
            }"""
        )


def _missing(reason: str) -> None:
    if os.environ.get(REQUIRE, "") not in ("", "0"):
        pytest.fail(f"{REQUIRE} is set, but {reason}", pytrace=False)
    pytest.skip(reason)


# Not for the session: playwright leaves an event loop running in the thread while it is open, and
# tests that start a loop of their own would fail.
@pytest.fixture(scope="module")
def browser():
    """Start a browser for the tests of a module."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        _missing(f"there is no browser ({', '.join(_NAMES)})")
    with sync_playwright() as playwright:
        # Containers have no sandbox, and little shared memory.
        args = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        started = playwright.chromium.launch(executable_path=program, args=args)
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file or an address: `open_page(path, width=390, dark=True)`.

    Its further arguments are those of playwright's `browser.new_context`.
    """
    contexts = []

    def start(where, width=1440, height=900, dark=False, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **options,
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        url = where.absolute().as_uri() if isinstance(where, Path) else str(where)

        def note(request):
            if request.url.partition("#")[0] != url and not request.url.startswith(_INSIDE):
                opened.requests.append(request.url)

        page = opened.page
        page.on("request", note)
        page.on("requestfailed", lambda r: opened.failed.append(r.url))
        page.on("pageerror", lambda e: opened.errors.append(str(e)))
        page.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else None)
        page.goto(url, wait_until="load")
        return opened

    yield start
    for context in contexts:
        context.close()
