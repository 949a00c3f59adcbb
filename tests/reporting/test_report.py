import io
import json
import re

import numpy as np
import pytest
import torch

from ltlearn.errors import UserError
from ltlearn.metrics.report import shot_report
from ltlearn.reporting.markdown import render_report_md
from ltlearn.reporting.table import PROTOCOL_TEXTS, ResultRow, ResultTable
from ltlearn.reporting.text import markdown_list, markdown_table
from ltlearn.utils.environment import environment_info
from tests.helpers import Terminal, without_colour

COUNTS = [500, 40, 3]


def make_report(seed=0, counts=COUNTS, few="<20"):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(90, 3, generator=generator)
    return shot_report(logits, torch.arange(90) % 3, counts, few=few)


def make_table(seeds=(0,), protocol="clean", **changes):
    rows = [
        ResultRow("ce", "CE", [make_report(s) for s in seeds], "last epoch", 12.34),
        ResultRow(
            "samn", "CE + SAMN", [make_report(s + 9) for s in seeds], "epoch 7 on validation"
        ),
    ]
    arguments = {
        "rows": rows,
        "protocol": protocol,
        "split_name": "cifar100-lt-100/first",
        "fingerprint": "3f9a11c0",
        "few_rule": "<20",
        "seeds": list(seeds),
        "dataset": "CIFAR-100-LT",
        "note": "A note.",
    }
    return ResultTable(**{**arguments, **changes})


def make_trajectory(epochs=4, chosen=2, select_on="validation", few=True):
    steps = list(range(epochs))
    return {
        "epoch": steps,
        "loss": [None] + [1.0] * (epochs - 1),
        "all": [0.5 + 0.01 * e for e in steps],
        "balanced": [0.4 + 0.01 * e for e in steps],
        "many": [0.6] * epochs,
        "medium": [0.5] * epochs,
        "few": [0.3] * epochs if few else [None] * epochs,
        "norms": [[2.14, 3.0, 4.23 - 0.1 * e] for e in steps],
        "chosen": chosen,
        "select_on": select_on,
    }


def test_a_table_has_a_column_for_the_last_epoch_where_an_epoch_was_selected_on_test():
    rows = make_table(seeds=(0, 1), protocol="paper").rows
    rows[0].last_epoch = [0.25, 0.35]
    table = make_table(seeds=(0, 1), protocol="paper", rows=rows)
    head, first, second = markdown_tables(table.to_markdown())[0][0], *table.to_dict()["rows"]
    assert head[-3:] == ["last epoch %", "tested", "seconds"]
    assert first["summary"]["last_epoch"] == {"mean": 0.3, "sd": pytest.approx(0.0707, abs=1e-4)}
    assert "last_epoch" not in second["summary"]
    lines = rendered(table, plain=True).splitlines()
    assert lines[1].endswith("ECE  last epoch") and lines[2].endswith("30.0 ± 7.1")
    assert lines[3].endswith("–") and any(line.startswith("last epoch: ") for line in lines)
    assert "last epoch %" not in make_table().to_markdown()


def rendered(table, **options):
    file = options.pop("file", None) or io.StringIO()
    table.render(file=file, **options)
    return without_colour(file.getvalue())


def markdown_tables(text):
    """The tables of a Markdown text as lists of lists of cells."""
    tables, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            assert line.endswith("|")
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            current.append([cell.strip() for cell in cells])
        elif current:
            tables.append(current)
            current = []
    for table in tables:
        assert len({len(row) for row in table}) == 1, "every row has as many cells as the head"
        assert all(re.fullmatch(r":?-{3,}:?", cell) for cell in table[1])
    return tables


@pytest.mark.parametrize("protocol", PROTOCOL_TEXTS)
def test_piped_text_is_plain_and_complete(protocol):
    file = io.StringIO()
    make_table(protocol=protocol).render(file=file)
    text = file.getvalue()
    assert "\x1b" not in text
    assert not re.search(r"[\u2500-\u257f]", text)
    for words in (
        PROTOCOL_TEXTS[protocol],
        "cifar100-lt-100/first (3f9a11c0)",
        "many >100 (1 class), medium 20-100 (1), few <20 (1)",
        "seed: 0",
        "CIFAR-100-LT",
        "A note.",
        "last epoch (CE)",
        "epoch 7 on validation (CE + SAMN)",
        "CE 12 s",
    ):
        assert words in text


def test_the_protocol_describes_the_origin_of_validation_images():
    carved, given = make_table(), make_table(valid_from="validation set")
    assert "carved from the training set" in str(carved) and "carved" not in str(given)
    assert "clean: chosen on the set's validation images; test read once" in str(given)
    assert given.to_dict()["protocol_text"] in str(given)
    report = render_report_md(given, MANIFEST, [], None)
    assert "carved" not in report and "validation images are those of the dataset" in report


def test_paper_protocol_is_described_as_selected_on_test():
    table = make_table(protocol="paper")
    for text in (rendered(table), table.to_markdown(), rendered(table, file=Terminal())):
        assert "selected on test" in " ".join(text.split())


def test_columns_line_up():
    lines = str(make_table()).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("method"))
    assert lines[head].split() == ["method", "all", "many", "medium", "few", "balanced", "ECE"]
    # All columns are right-aligned: each number ends where its heading ends.
    ends = [m.end() for m in re.finditer(r"\S+", lines[head])][1:]
    for line in lines[head + 1 : head + 3]:
        assert [m.end() for m in re.finditer(r"\d+\.\d", line)] == ends


def test_one_seed_has_no_deviation_and_several_have():
    assert "±" not in rendered(make_table())
    text = rendered(make_table(seeds=(0, 1, 2)))
    assert "seeds: 0, 1, 2" in text
    reports = [make_report(s) for s in range(3)]
    mean, sd = (100 * f([r.all for r in reports]) for f in (np.mean, lambda v: np.std(v, ddof=1)))
    assert f"{mean:.1f} ± {sd:.1f}" in text


def test_fewer_runs_than_seeds_are_named():
    table = make_table(seeds=(0, 1))
    table.rows[1].reports.pop()
    assert "runs: CE 2; CE + SAMN 1" in str(ResultTable(**arguments_of(table)))


def arguments_of(table):
    names = ("rows", "protocol", "split_name", "fingerprint", "few_rule", "seeds", "dataset")
    return {name: getattr(table, name) for name in names}


def test_empty_group_is_a_dash_everywhere():
    row = ResultRow("ce", "CE", [make_report(counts=[500, 400, 300])], "last epoch")
    table = make_table(rows=[row])
    assert "–" in str(table)
    assert "– |" in table.to_markdown()
    assert "nan" not in (str(table) + table.to_markdown()).lower()
    assert table.to_dict()["rows"][0]["summary"]["few"] is None


def test_terminal_gets_a_rich_table():
    text = rendered(make_table(), file=Terminal(), console_width=120)
    assert "─" in text
    assert PROTOCOL_TEXTS["clean"] in text
    assert "─" not in rendered(make_table(), file=Terminal(), plain=True)
    assert "─" in rendered(make_table(), plain=False, console_width=120)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_narrow_terminal_loses_no_number(width):
    table = make_table(seeds=(0, 1, 2))
    for row in table.rows:
        row.extra = {"NLL": "1.234 ± 0.056", "to CE": "-12.3 [-45.6, +78.9]"}
    text = rendered(table, file=Terminal(), console_width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    head, *rows = [line.split("  ") for line in str(table).splitlines()[1:4]]
    for cell in filter(None, (cell.strip() for line in [head, *rows] for cell in line)):
        assert cell in text, cell
    # Columns that do not fit stand below, with the method again.
    assert text.count("CE + SAMN") >= (2 if width < 100 else 1)


def test_a_terminal_too_narrow_for_one_number_gets_plain_lines():
    table = make_table(seeds=(0, 1, 2))
    assert rendered(table, file=Terminal(), console_width=20) == str(table) + "\n"


def test_label_is_never_read_as_markup():
    row = ResultRow("x", "[red]x | y[/red]\n", [make_report()], "last epoch")
    table = make_table(rows=[row])
    assert "[red]x | y[/red]" in rendered(table, file=Terminal(), console_width=120)
    markdown_tables(table.to_markdown())


def test_ascii_stream_does_not_fail():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    make_table(seeds=(0, 1)).render(file=file)
    file.flush()
    assert b"+-" in raw.getvalue()


def test_standard_output_is_the_default(capsys):
    make_table().render()
    assert capsys.readouterr().out == str(make_table()) + "\n"


def test_label_defaults_to_the_method():
    assert "\nlws " in str(make_table(rows=[ResultRow("lws", "", [make_report()], "last epoch")]))


def test_markdown_table_is_well_formed():
    table = make_table(seeds=(0, 1))
    (cells,) = markdown_tables(table.to_markdown())
    assert cells[0][0] == "method" and cells[0][-2:] == ["tested", "seconds"]
    assert [row[0] for row in cells[2:]] == ["CE", "CE + SAMN"]
    assert cells[2][-2:] == ["last epoch", "12"] and cells[3][-1] == "–"
    assert "few <20" in table.to_markdown()


def test_to_dict_is_json_ready():
    record = json.loads(json.dumps(make_table(seeds=(0, 1)).to_dict(), allow_nan=False))
    assert record["protocol_text"] == PROTOCOL_TEXTS["clean"]
    assert record["seeds"] == [0, 1]
    assert record["rows"][0]["summary"]["all"]["sd"] >= 0
    assert len(record["rows"][0]["reports"]) == 2


def test_table_without_rows():
    assert "method" in str(make_table(rows=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "mine"}, "protocol must be one of clean, paper, .* got 'mine'"),
        ({"few_rule": "20"}, "few_rule must be .* got '20'"),
        ({"few_rule": "<=20"}, "'CE' .* few <20, .* few <=20"),
        ({"rows": [ResultRow("ce", "CE", [], "last epoch")]}, "'CE' has no report"),
    ],
)
def test_table_errors(changes, message):
    with pytest.raises(UserError, match=message):
        make_table(**changes)


MANIFEST = {
    "title": "digits_lt",
    "command": "ltlearn recipe 'digits lt'",
    "class_counts": COUNTS,
    "training_images": 500,
    "validation_images": 43,
    "versions": {"torch": "2.15", "local": "<unknown>"},
    "platform": "Linux-6.1",
    "cpu_count": 2,
    "threads": 1,
    "device": "Some <CPU>",
}


def test_report_has_every_part():
    plots = [("Norms, before & after", "plots/my norms.png")]
    text = render_report_md(make_table(), MANIFEST, plots, [make_trajectory()])
    for part in (
        "# digits_lt",
        "```\nltlearn recipe 'digits lt'\n```",
        "## Results",
        "## Protocol",
        "read once, at the end",
        "543 training images in 3 classes, 3 to 500 per class (largest over smallest: 166.7)",
        "500 of them were used for training, 43 for validation",
        "many >100 (1 class), medium 20-100 (1), few <20 (1)",
        "![Norms, before & after](plots/my%20norms.png)",
        "- torch: 2.15",
        "- local: &lt;unknown>",
        "- device: Some &lt;CPU>",
        "- processor cores: 2",
        "- threads of torch: 1",
        "- platform: Linux-6.1",
    ):
        assert part in text
    assert text.index("## Plots") < text.index("## Versions and hardware")


def test_report_has_the_hardware_that_a_run_records():
    """It once read a key that no run wrote, so the section never had hardware."""
    text = render_report_md(make_table(), {**MANIFEST, **environment_info()}, [], None)
    facts = text.partition("## Versions and hardware")[2]
    assert f"- processor cores: {environment_info()['cpu_count']}" in facts
    assert "- platform: " in facts and "- python: " in facts


def test_trajectory_table():
    text = render_report_md(make_table(), MANIFEST, [], [make_trajectory(few=False)])
    _, cells = markdown_tables(text)
    assert cells[0][:2] == ["epoch", "validation balanced %"]
    assert [row[0] for row in cells[2:]] == ["0", "1", "**2** (chosen on validation)", "3"]
    assert cells[2][1:] == ["40.0", "50.0", "60.0", "50.0", "–", "2.140", "4.230"]
    assert cells[4][1] == "**42.0**"


def test_trajectory_selected_on_test():
    text = render_report_md(
        make_table(protocol="paper"), MANIFEST, [], [make_trajectory(select_on="test")]
    )
    assert "test balanced %" in text and "(chosen on test)" in text
    assert "selected on test" in text


def test_trajectory_of_each_seed():
    text = render_report_md(
        make_table(seeds=(3, 5)), MANIFEST, [], [make_trajectory(), make_trajectory(chosen=0)]
    )
    assert "### Seed 3" in text and "### Seed 5" in text
    assert len(markdown_tables(text)) == 3


def test_report_of_a_run_from_python_without_stage_2():
    text = render_report_md(make_table(), {**MANIFEST, "command": ""}, [], None)
    assert text.startswith("# digits_lt\n") and "Produced by" not in text
    assert "epoch by epoch" not in text


def test_trajectory_errors():
    with pytest.raises(UserError, match="chosen epoch 9"):
        render_report_md(make_table(), MANIFEST, [], [make_trajectory(chosen=9)])
    broken = make_trajectory()
    broken["all"].pop()
    with pytest.raises(UserError, match="4 epochs but 3 values of 'all'"):
        render_report_md(make_table(), MANIFEST, [], [broken])


def test_names_open_no_tag_no_link_and_no_escape_sequence_in_markdown():
    evil = "<img src=x onerror=a> ![a](http://b) | \x1b[2J\n# c"
    for text in (markdown_table(["a"], ["---"], [[evil]]), markdown_list([evil])):
        assert "<img" not in text and "](" not in text and "\x1b" not in text
        assert "\n# c" not in text
    assert "<20" in markdown_list(["fewer than <20"])


def test_a_table_in_a_notebook():
    table = make_table(rows=[ResultRow("ce", "<i>CE</i>", [make_report()], "last epoch")])
    html = table._repr_html_()
    assert "&lt;i&gt;CE" in html and "<i>" not in html
    assert PROTOCOL_TEXTS["clean"] in html and "tested: last epoch" in html
    assert len(repr(make_table())) < 100 and "CE; CE + SAMN" in repr(make_table())


@pytest.mark.parametrize(
    ("select", "words"), [("best", "(chosen on validation)"), ("last", "(the last is kept)")]
)
def test_a_last_epoch_is_not_called_chosen(select, words):
    trajectory = {**make_trajectory(4, 3), "select": select}
    report = render_report_md(make_table(), MANIFEST, [], [trajectory])
    assert f"| **3** {words} |" in report
    assert ("chosen on validation) |" in report) == (select == "best")
