import io

from ltlearn.utils.terminal import render_rows
from tests.helpers import Terminal, without_colour


def rows_on_a_terminal(head, rows, width, monkeypatch, **options):
    monkeypatch.setenv("COLUMNS", str(width))
    file = Terminal()
    render_rows(head, rows, file, **options)
    return [line.rstrip() for line in without_colour(file.getvalue()).splitlines()]


def test_rows_are_tabs_in_a_pipe_and_a_table_on_a_terminal(monkeypatch):
    head, rows = ["name", "epochs", "rate"], [["crt", 10, 0.2], ["[red]x", 5, 0.1]]
    file = io.StringIO()
    render_rows(head, rows, file, title="what")
    assert file.getvalue() == "what\nname\tepochs\trate\ncrt\t10\t0.2\n[red]x\t5\t0.1\n"
    lines = rows_on_a_terminal(head, rows, 80, monkeypatch, title="what")
    assert lines[0] == "what" and any("─" in line for line in lines)
    assert any(line.split() == ["[red]x", "5", "0.1"] for line in lines)


def test_rows_of_a_narrow_terminal_go_below_each_other(monkeypatch):
    head = ["method", *(f"column {i}" for i in range(9))]
    rows = [["crt", *(f"value {i}" for i in range(9))], ["lws", *"abcdefghi"]]
    lines = rows_on_a_terminal(head, rows, 50, monkeypatch)
    assert max(map(len, lines)) <= 50
    assert sum(line.split()[:1] == ["crt"] for line in lines) == 3
    assert all(any(f"value {i}" in line for line in lines) for i in range(9))


def test_rows_of_sentences_are_paragraphs_where_no_table_fits(monkeypatch):
    head, long = ["name", "source", "values", "remark"], "word " * 20
    lines = rows_on_a_terminal(head, [["crt", long, long, ""]], 80, monkeypatch)
    assert lines[0] == "crt" and max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.count("word") == 40 and "source: word" in text and "remark" not in text


def test_control_characters_of_names_are_escaped(monkeypatch):
    """They once cleared the screen and renamed the window."""
    for file in (io.StringIO(), Terminal()):
        render_rows(["class"], [["\x1b]0;owned\x07\x1b[2Jcat\r\n dog"]], file)
        assert "\x07" not in file.getvalue() and "\x1b[2J" not in file.getvalue()
        assert "owned" in file.getvalue() and "cat dog" in without_colour(file.getvalue())
