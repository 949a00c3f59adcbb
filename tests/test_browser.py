"""The browser that tests of pages use."""


def test_the_browser_records_what_a_page_does(open_page, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<p style='width:2000px'>wide</p><img src='missing.png'>"
        "<script>console.error('one'); throw Error('two')</script>"
    )
    opened = open_page(page, width=390)
    assert any("one" in e for e in opened.errors) and any("two" in e for e in opened.errors)
    assert opened.requests == [(tmp_path / "missing.png").as_uri()]
    assert len(opened.broken_images()) == 1 and opened.overflow() > 1000
