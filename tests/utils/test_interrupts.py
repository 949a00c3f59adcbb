import signal

import pytest

from ltlearn.utils.interrupts import deferred_interrupt


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
