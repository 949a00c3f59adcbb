import io
import itertools
import re
import sys
import types

import pytest
from fastai.callback.progress import ProgressCallback
from fastai.learner import AvgMetric
from fastcore.foundation import L
from rich.console import Console

from ltlearn.training.history import Trajectory
from ltlearn.utils import progress
from ltlearn.utils.progress import (
    ProgressLine,
    _Bar,
    brief_progress,
    duration,
    hide_progress,
    plain_lines,
    runs_in_notebook,
    track,
)
from tests.callbacks.helpers import Stop, make_lt_learner
from tests.helpers import Terminal


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns, on which a bar comes at once and shows each step.

    Called in the test itself: pytest puts a standard error of its own there after the fixtures.
    """

    def begin():
        out = Terminal()
        monkeypatch.setattr(sys, "stderr", out)
        return out

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    monkeypatch.setattr(progress, "_SHOW_S", 0.0)
    return begin


@pytest.fixture
def lines(monkeypatch):
    """The lines that are printed where there is no terminal, without a delay."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    monkeypatch.setattr(progress, "_LINE_S", 0.0)
    printed = []
    with plain_lines(printed.append):
        yield printed


def frames(out):
    """What was drawn, line by line, without the terminal's commands."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split("[\r\n]", out)]


def rest_of(text):
    """What a terminal shows in the end, of commands that erase lines and move up."""
    lines, at = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[at] = ""
        elif re.fullmatch(r"\x1b\[\d*A", token):
            at -= int(token[2:-1] or 1)
        elif token[0] not in "\x1b\r":
            lines[at] += token
    return "\n".join(lines).strip()


def left_clean(out):
    text = out.getvalue()
    return rest_of(text) == "" and text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 0 min"), (4320, "1 h 12 min"),
     (172_000, "47 h 47 min"), (200_000, "2 days")],
)  # fmt: skip
def test_duration(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize("width", [10, 30, 60, 80, 100, 200])
def test_a_bar_never_wraps(width):
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    tails = ["1234/5005, 12345 images/s, 123 h 59 min left", "12345 images/s, 2 h left", "2 h left"]
    notes = ["loss 1.234, " + "x" * 90, "loss 1.234, " + "x" * 60, "loss 1.234"]
    console.print(_Bar(7, 10, "stage 1, epoch 123/200", tails, notes))
    lines = frames(console.file.getvalue())[:-1]
    assert len(lines) == 2 and max(map(len, lines)) < width
    if width >= 80:
        assert "━" in lines[0] and lines[0].rstrip().endswith(tails[0])
    elif width < 30:
        assert lines[0].endswith("…")


def test_a_bar_of_nothing():
    console = Console(width=60, file=io.StringIO(), force_terminal=True)
    console.print(_Bar(0, 0, "nothing", ["0/0"], ()))
    assert "0/0" in console.file.getvalue()


def test_a_terminal_gets_a_bar_that_goes_away(terminal):
    out = terminal()
    assert list(track(range(5), 5, "counting")) == list(range(5))
    assert any("counting" in line and "━" in line and "3/5" in line for line in
               frames(out.getvalue()))  # fmt: skip
    assert left_clean(out)


def test_a_bar_goes_away_when_the_work_fails(terminal):
    out = terminal()

    def fail():
        yield 1
        yield 2
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        list(track(fail(), 5, "counting"))
    assert "counting" in out.getvalue()
    assert left_clean(out)


def test_short_work_shows_nothing(terminal, monkeypatch):
    out = terminal()
    monkeypatch.setattr(progress, "_DELAY_S", 60.0)
    list(track(range(5), 5, "counting"))
    assert out.getvalue() == ""


def test_nothing_is_shown_when_hidden_or_without_a_reader(terminal, monkeypatch):
    out = terminal()
    with hide_progress():
        list(track(range(5), 5, "counting"))
    monkeypatch.setenv("TERM", "dumb")
    list(track(range(5), 5, "counting"))
    assert out.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not ProgressLine("counting", 5).on
    lines = []
    with hide_progress(), plain_lines(lines.append):
        list(track(range(5), 5, "counting"))
    assert lines == [] and sys.stderr.getvalue() == ""


def test_lines_without_a_terminal(lines):
    line = ProgressLine("features", 100)
    line.advance(60)  # done before this process, so no speed of its own
    line.advance(20)
    assert lines == ["features: 60/100", "features: 80/100, 0 s left"]


def test_lines_are_half_a_minute_apart(lines, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_S", 30.0)
    list(track(range(5), 5, "counting"))
    assert lines == []


# ------------------------------------------------ of a training


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ArithmeticError("no")])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_on_a_terminal(terminal, stage, error):
    out = terminal()
    learn = make_lt_learner()
    fit = learn.fit_stage1 if stage == 1 else learn.retrain_classifier
    n = 7 if stage == 1 else 1
    try:
        fit(3, 0.05, cbs=[Stop(error, 2 * n)] if error else [])
    except (KeyboardInterrupt, ArithmeticError):
        assert error is not None
    lines = frames(out.getvalue())
    assert max(map(len, lines)) < 80
    assert any(re.search(rf"stage {stage}, epoch 2/3 .*images/s, .* left", line) for line in lines)
    figures = (
        r"loss \d\.\d{3}, validation all [\d.]+ %, balanced [\d.]+ %, medium [\d.]+, few [\d.]+"
    )
    assert any(re.match(figures, line) for line in lines), lines
    assert left_clean(out)


def test_the_loss_is_read_only_when_it_is_shown(terminal, monkeypatch):
    terminal()
    calls, read = [], Trajectory.running_loss
    monkeypatch.setattr(Trajectory, "running_loss", lambda self: calls.append(1) or read(self))
    with hide_progress():
        make_lt_learner().fit_stage1(2, 0.05)
    assert len(calls) == 2  # what an epoch's record takes
    monkeypatch.setattr(progress, "_DELAY_S", 60.0)
    make_lt_learner().fit_stage1(2, 0.05)
    assert len(calls) == 4
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    monkeypatch.setattr(progress, "_SHOW_S", 60.0)
    make_lt_learner().fit_stage1(2, 0.05)
    assert len(calls) == 7


def test_a_training_in_lines(lines):
    learn = make_lt_learner()
    record = learn.fit_stage1(2, 0.05)
    assert len(lines) == 2
    assert re.fullmatch(
        r"stage 1: epoch 1/2, loss \d\.\d{3}, \d+ images/s, validation balanced [\d.]+ % "
        r"\(medium [\d.]+, few [\d.]+\), \d+ s left", lines[0],
    )  # fmt: skip
    assert f"loss {record['loss'][1]:.3f}" in lines[1]
    assert f"balanced {100 * record['balanced'][1]:.1f} %" in lines[1]
    assert lines[1].endswith(")")  # nothing is left
    learn.retrain_classifier(2, 0.05)
    heads = [line.split(",")[0] for line in lines[2:] if line.startswith("stage")]
    assert heads == ["stage 2: epoch 1/2", "stage 2: epoch 2/2"]


def test_the_last_epoch_is_always_printed(lines, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_S", 60.0)
    make_lt_learner().fit_stage1(3, 0.05)
    assert len(lines) == 1 and lines[0].startswith("stage 1: epoch 3/3, ")


def test_a_test_set_is_called_one(lines, monkeypatch):
    learn = make_lt_learner()
    monkeypatch.setattr("ltlearn.training.stage.selects_on", lambda dls: "test")
    learn.fit_stage1(1, 0.05)
    assert "test balanced" in lines[0] and "validation" not in lines[0]


def test_the_time_left_follows_the_speed_of_this_process(lines, monkeypatch, tmp_path):
    from ltlearn import Checkpoint

    # A clock of our own: each look at it is a second.
    class Clock:
        now = 0.0

        @classmethod
        def perf_counter(cls):
            cls.now += 1
            return cls.now

    def fit(steps):
        cbs = [Checkpoint(tmp_path, resume=True, min_seconds=0), Stop(KeyboardInterrupt, steps)]
        make_lt_learner().fit_stage1(6, 0.05, cbs=cbs)

    with pytest.raises(KeyboardInterrupt):
        fit(4 * 7)
    del lines[:]
    monkeypatch.setattr("ltlearn.training.progress.time", Clock)
    fit(100)
    assert [line.split(",")[0] for line in lines] == ["stage 1: epoch 5/6", "stage 1: epoch 6/6"]
    # One epoch is left after the first of this process: as long as that, not a fifth of it.
    left = int(re.search(r"(\d+) s left", lines[0])[1])
    assert 2 <= left <= 4


# ------------------------------------------------ in a notebook


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook shows below its cell: for each place, the HTML that was written there."""
    places = []

    class Cell:
        def __init__(self):
            self.shown = []
            places.append(self.shown)

        def write(self, html, text):
            self.shown.append(html)

        def clear(self):
            if self.shown:
                self.shown.append("")

    monkeypatch.setattr(progress, "runs_in_notebook", lambda: True)
    monkeypatch.setattr(progress, "_Cell", Cell)
    monkeypatch.setattr(progress, "_SHOW_S", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return places


def test_a_process_without_a_kernel_is_no_notebook():
    assert not runs_in_notebook()


def test_a_notebook_gets_a_bar_that_goes_away(notebook):
    list(track(range(5), 5, "counting <1>"))
    (shown,) = notebook
    assert "<progress value='3'" in "".join(shown) and shown[-1] == ""
    assert "counting &lt;1&gt;" in shown[0] and "<1>" not in shown[0]


def test_nothing_is_shown_in_a_notebook_when_hidden(notebook):
    with hide_progress():
        make_lt_learner().fit_stage1(1, 0.05)
    assert not any(notebook)


def test_a_notebook_shows_the_bar_above_the_table_of_the_epochs(notebook):
    learn = make_lt_learner()
    record = learn.fit_stage1(2, 0.05)
    (shown,) = filter(None, notebook)
    running = [html for html in shown if "<progress" in html and "<table" in html]
    assert "stage 1, epoch 2/2" in running[-1] and "loss" in running[-1]
    assert "<progress" not in shown[-1] and "stage 1: 2 epochs in" in shown[-1]
    assert f">{100 * record.balanced[1]:.1f}<" in shown[-1]


def test_the_table_has_the_time_of_each_epoch(notebook, monkeypatch):
    clock = itertools.count(0.0, 20.0)
    watch = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("ltlearn.training.history.time", watch)
    record = make_lt_learner().fit_stage1(3, 0.05)
    assert record.seconds == [20.0, 40.0, 60.0]
    (shown,) = filter(None, notebook)
    assert shown[-1].count(">20 s</td></tr>") == 3


def test_metrics_of_the_user_have_a_column(notebook):
    def twice(output, target):
        return 2.0

    learn = make_lt_learner()
    learn.metrics = [*learn.metrics, *L(AvgMetric(twice))]
    learn.fit_stage1(1, 0.05)
    learn.fit(1, 0.05)
    for shown in filter(None, notebook):
        assert ">twice<" in shown[-1] and ">2.0000<" in shown[-1]


def test_many_fits_share_a_place_and_leave_no_table(notebook):
    learn = make_lt_learner()
    with brief_progress():
        with brief_progress():
            learn.fit_stage1(1, 0.05)
        learn.retrain_classifier(1, 0.05)
    (shown,) = filter(None, notebook)
    assert not any("<table" in html for html in shown)
    assert "stage 1" in shown[0] and "stage 2" in "".join(shown) and shown[-1] == ""
    learn.retrain_classifier(1, 0.05)
    assert "<table" in notebook[-1][-1]


def test_the_table_of_fastai_replaces_ours(notebook):
    class Quiet(ProgressCallback):
        def before_fit(self):
            pass

        before_epoch = before_train = before_validate = after_train = before_fit
        after_validate = after_batch = after_fit = before_fit

    make_lt_learner().fit(1, 0.05, cbs=Quiet())
    assert not any(notebook)


def test_a_search_for_a_learning_rate_leaves_no_table(notebook):
    make_lt_learner().lr_find(num_it=12, show_plot=False)
    (shown,) = filter(None, notebook)
    assert "<progress" in shown[0] and shown[-1] == ""
    assert not any("<table" in html for html in shown)


def test_a_plain_fit_on_a_terminal_has_a_bar(terminal):
    out = terminal()
    make_lt_learner().fit(2, 0.05)
    assert any("training, epoch 2/2" in line and "left" in line for line in frames(out.getvalue()))
    assert left_clean(out)
