"""torch's lines are hidden, and stderr is as before afterwards, also with several threads."""

import logging
import sys
import threading
import warnings

import pytest
import torch  # noqa: F401  its log handler writes to stderr

from ltlearn.utils.torch_output import torch_silenced


def write_lines():
    logging.getLogger("torch.fx").warning("logged")
    warnings.warn("warned", stacklevel=1)
    sys.stderr.write("printed")


def test_torch_writes_nothing_and_stderr_is_restored(capsys):
    before = sys.stderr
    with pytest.raises(ValueError, match="raised"), torch_silenced():
        write_lines()
        raise ValueError("raised")
    assert sys.stderr is before and not capsys.readouterr().err


def test_someone_who_asks_for_torchs_log_gets_it(capsys, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    with torch_silenced():
        write_lines()
    assert "logged" in capsys.readouterr().err


def test_threads_take_turns():
    before, first, entered = sys.stderr, threading.Event(), threading.Event()

    def second():
        first.wait()
        with torch_silenced():
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    with torch_silenced():
        first.set()
        assert not entered.wait(0.1)
    thread.join()
    assert entered.is_set() and sys.stderr is before
