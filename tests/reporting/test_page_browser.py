"""The report page in a headless browser."""

import re

import pytest

from ltlearn.experiments.report_page import write_report_page
from tests.reporting.helpers import make_run

NAMES = ["ant", "<script>document.title = 'evil'</script>", "bee & wasp", "cow", "dog"]
NAMES += [f"class {i}" for i in range(145)]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    run, dls = make_run(folder, NAMES, methods=("ce", "lws", "samn"))
    return write_report_page(run, dls)


def column(opened, table, number, selector="tbody tr"):
    return opened.page.eval_on_selector_all(
        f"{table} {selector}", f"rows => rows.map(r => r.cells[{number}].innerText.trim())"
    )


def numbers(texts):
    found = [re.match(r"[−+-]?[\d,.]+", t) for t in texts]
    return [float(m[0].replace("−", "-").replace(",", "")) for m in found if m]


def test_nothing_fails_and_nothing_leaves(page_file, open_page):
    opened = open_page(page_file)
    assert opened.errors == [] and opened.requests == [] and opened.failed == []
    assert opened.broken_images() == [] and len(opened.page.query_selector_all("main img")) > 10
    assert "evil" not in opened.page.title()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_is_not_wider_than_the_window(page_file, open_page, width, dark):
    opened = open_page(page_file, width=width, dark=dark)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    assert opened.overflow() == 0 and opened.errors == []


def test_each_column_of_the_results_sorts(page_file, open_page):
    opened = open_page(page_file)
    heads = opened.page.query_selector_all("#results > .scroll table thead th")
    assert len(heads) > 6
    for i, head in enumerate(heads):
        is_number = "number" in head.get_attribute("class")
        # By keyboard, as by click.
        head.query_selector("button").focus()
        for expected in ("descending", "ascending") if is_number else ("ascending", "descending"):
            opened.page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == expected
            texts = column(opened, "#results > .scroll table", i)
            values = numbers(texts) if is_number else [t.lower() for t in texts]
            assert values == sorted(values, reverse=expected == "descending"), (i, texts)


def test_the_classes_sort_filter_and_change_their_method(page_file, open_page):
    opened = open_page(page_file)
    page, table = opened.page, "#class-table"
    assert len(column(opened, table, 0)) == 25
    for head in page.query_selector_all(f"{table} thead th"):
        head.query_selector("button").click()
        order, key = head.get_attribute("aria-sort"), head.get_attribute("data-key")
        position = page.eval_on_selector_all(
            f"{table} thead th", f"heads => heads.findIndex(h => h.dataset.key === '{key}')"
        )
        values = column(opened, table, position)
        if "number" in head.get_attribute("class"):
            assert numbers(values) == sorted(numbers(values), reverse=order == "descending")
    page.click(f"{table} .some")
    assert len(column(opened, table, 0)) == 125
    page.click(f"{table} .all")
    assert len(column(opened, table, 0)) == len(NAMES) and not page.is_visible(f"{table} .more")
    page.fill(f"{table} input", "CLASS 14")
    assert set(column(opened, table, 0)) == {"class 14", *(f"class {i}" for i in range(140, 145))}
    page.fill(f"{table} input", "<script>")
    assert column(opened, table, 0) == [NAMES[1]]
    page.fill(f"{table} input", "")
    page.select_option(f"{table} select.group", "2")
    assert set(column(opened, table, 1)) == {"few"}
    page.select_option(f"{table} select.method", "1")
    assert page.inner_text(f"{table} .of-method") == "LWS"
    assert opened.errors == []


def test_it_can_be_read_without_scripts(page_file, open_page):
    opened = open_page(page_file, java_script_enabled=False)
    assert len(opened.page.query_selector_all("#class-table tbody tr")) == 100
    assert opened.page.is_visible("#results table")


def test_it_prints_whole(page_file, open_page):
    opened = open_page(page_file)
    content = opened.page.pdf(format="A4", print_background=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert pages > 5 and len(content) > 50_000
    # What the print shows: unfolded parts, all classes, no navigation.
    opened.page.emulate_media(media="print")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(opened.page.query_selector_all("#class-table tbody tr")) == len(NAMES)
    assert not opened.page.query_selector_all("details:not([open])")
    for section in opened.page.query_selector_all("main > section"):
        assert section.is_visible()
    assert not opened.page.is_visible("nav")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(opened.page.query_selector_all("#class-table tbody tr")) == 25
    assert not opened.page.query_selector_all("details[open]")


def test_headings_and_names_for_readers_who_do_not_see_it(page_file, open_page):
    page = open_page(page_file).page
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "hs => hs.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert not page.query_selector_all("main img:not([alt]), th:not([scope])")
    assert page.eval_on_selector_all(
        "figure [role=img]", "plots => plots.every(p => p.getAttribute('aria-label').length > 20)"
    )
