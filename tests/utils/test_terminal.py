import io

from ltlearn.utils.terminal import render_rows, render_stages
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


STAGE = {
    "method": "ce", "stage": "stage 1", "trained": "backbone + head", "bn": "train",
    "on": "images", "batch": 64, "sampler": "instance", "loss": "CrossEntropy", "epochs": 90,
    "lr": 0.1, "weight_decay": 5e-4,
}  # fmt: skip
LATER = {**STAGE, "method": "samn", "stage": "stage 2", "trained": "SAMNLinear"}


def stages_on_a_terminal(stages, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    file = Terminal()
    render_stages(stages, file)
    return [line.rstrip() for line in without_colour(file.getvalue()).splitlines()]


def test_stages_are_one_table_at_any_width(monkeypatch):
    wide = stages_on_a_terminal([STAGE, LATER], 140, monkeypatch)
    assert [line.split()[0] for line in wide if line.split()[1:3] == ["stage", "1"]] == ["ce"]
    narrow = stages_on_a_terminal([STAGE, LATER, LATER], 80, monkeypatch)
    assert max(map(len, narrow)) <= 80
    assert sum("─" in line for line in narrow) == 1
    # Equal stages share a column.
    assert [line.split() for line in narrow if "method" in line] == [["method", "ce", "samn"]]
    assert ["sampler", "instance", "instance"] in [line.split() for line in narrow]


def test_many_stages_on_a_narrow_terminal_are_paragraphs(monkeypatch):
    stages = [STAGE, *({**LATER, "method": f"method {i}"} for i in range(12))]
    lines = stages_on_a_terminal(stages, 80, monkeypatch)
    assert max(map(len, lines)) <= 80 and not any("─" in line for line in lines)
    assert sum(line.startswith("method ") for line in lines) == 12
    assert "sampler: instance" in " ".join(" ".join(lines).split())


def test_no_stage_at_all(monkeypatch):
    assert stages_on_a_terminal([], 80, monkeypatch)[0] == "what was trained"
