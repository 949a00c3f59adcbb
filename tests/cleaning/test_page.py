import re

import numpy as np
import pytest

from ltlearn.cleaning import Finding, Issues
from ltlearn.cleaning.images import LoadedImages
from ltlearn.cleaning.page import MAX_SHOWN
from tests.callbacks.helpers import make_dls

NASTY = "<script>alert(1)</script>"


def finding(i, kind="label", **values):
    values = {"path": f"train[{i}]", "part": "train", "label": NASTY, "group": "few", **values}
    return Finding(kind=kind, score=0.9, suggested='a,"b"', number=i, **values)


def issues_of(n, side=8):
    images = LoadedImages(make_dls(counts=[40, 12], side=side))
    leaks = [finding(50, "leak", part="valid", twin="train[3]", twin_number=3)]
    labels = [finding(i % 50) for i in range(n - 1)]
    return Issues(leaks + labels, ("leak", "label", "unusual"), {"train": 52}, [NASTY], images)


@pytest.fixture
def page(tmp_path):
    issues_of(11).to_html(tmp_path / "clean.html")
    return tmp_path / "clean.html"


def test_names_are_escaped_and_nothing_is_loaded(page):
    text = page.read_text()
    assert NASTY not in text and "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", text)
    assert text.count("<article") == 11 and text.count("<img") == 12


def test_five_thousand_findings_stay_small(tmp_path):
    issues_of(5000, side=96).to_html(tmp_path / "clean.html")
    text = (tmp_path / "clean.html").read_text()
    assert text.count("<article") == 1 + MAX_SHOWN and "4,999" in text
    assert len(text) < 10e6


def test_without_images_the_page_has_no_thumbnails(tmp_path):
    issues = issues_of(3)
    issues.images = None
    issues.to_html(tmp_path / "clean.html")
    assert "<img" not in (tmp_path / "clean.html").read_text()


def test_no_finding(tmp_path):
    Issues([], ("label",), {"train": 52}).to_html(tmp_path / "clean.html")
    text = (tmp_path / "clean.html").read_text()
    assert "not found: label" in text and "<article" not in text


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_in_a_browser(page, open_page, width):
    opened = open_page(page, width=width, accept_downloads=True)
    tab = opened.page
    assert opened.broken_images() == [] and opened.overflow() <= 0
    tab.fill("#search", "train[3]")
    assert tab.locator("article:visible").count() == 2, "the leak names it as its twin"
    tab.fill("#search", "")
    tab.locator("#label article select").first.select_option("relabel")
    assert "1 " in tab.inner_text("#chosen")
    with tab.expect_download() as download:
        tab.click("#save")
    import pandas as pd

    table = pd.read_csv(download.value.path(), keep_default_na=False)
    assert len(table) == 11 and table["action"].tolist() == ["", "relabel", *[""] * 9]
    assert set(table["suggested_class"]) == {'a,"b"'} and set(table["class"]) == {NASTY}
    assert np.allclose(table["score"], 0.9)
    assert opened.errors == [] and opened.requests == []
