import re

from ltlearn.utils.html import html_code, html_details, html_paragraph, html_table


def test_everything_is_escaped():
    nasty = '<img src=x onerror="a()">\x1b[31m & more'
    html = html_table([nasty], [[nasty]], nasty) + html_paragraph(nasty)
    html += html_details(nasty, html_code(nasty))
    assert "<img" not in html and "&lt;img" in html and "&amp; more" in html
    assert "\x1b" not in html.replace(html_code(nasty), "")


def test_a_table_has_a_row_in_bold_and_texts_at_the_left():
    html = html_table(["class", "group", "%"], [["a", "few", 1], ["b", "many", 2]], "t", 1, left=2)
    assert html.count("font-weight: bold") == 1
    bold = html.split("font-weight: bold")[1]
    assert ">b<" in bold and ">a<" not in bold
    aligned = re.findall(r"text-align: (left|right)(?:; white-space: nowrap)?\">(?:a|few|1)<", html)
    assert aligned == ["left", "left", "right"]


def test_a_table_without_headings():
    assert "<thead" not in html_table([], [["a", "b"]])
    assert "line 1<br>line 2" in html_table([], [["line 1\nline 2"]])
