import os
import signal

import pytest

from ltlearn.utils.interrupts import (
    Terminated,
    deferred_interrupt,
    immediate_interrupt,
    terminations_as_interrupts,
)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_deferred_interrupt_nests_and_puts_the_handler_back():
    before = signal.getsignal(signal.SIGINT)
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        with deferred_interrupt():
            interrupt()
            reached.append("inner")
        reached.append("outer")
    assert reached == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_is_raised_and_errors_pass():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_users_own_is_called_at_the_end():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *args: seen.append("handled"))
    try:
        with deferred_interrupt():
            interrupt()
            assert seen == []
        assert seen == ["handled"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_termination_is_an_interrupt_inside_the_block_and_waits_for_a_write():
    before = signal.getsignal(signal.SIGTERM)
    reached = []
    with pytest.raises(Terminated) as caught, terminations_as_interrupts():
        with deferred_interrupt():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the write")
    assert reached and caught.value.signum == signal.SIGTERM
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_ends_by_the_signal_itself():
    with terminations_as_interrupts():
        pid = os.fork()
        if not pid:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_in_compiled_code(signum):
    with terminations_as_interrupts():
        before = signal.getsignal(signum)
        with immediate_interrupt():
            assert signal.getsignal(signum) == signal.SIG_DFL
        assert signal.getsignal(signum) is before


def test_the_library_installs_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGTERM) is before
