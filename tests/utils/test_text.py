import os

import pytest

from ltlearn.utils.text import (
    DASH,
    clean,
    epochs_text,
    percent_text,
    short_repr,
    validation_reason,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ant 1", "ant 1"),
        ("café 🐜", "café 🐜"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("a\nb\x1b", r"a\nb\x1b"),
        (3, "3"),
    ],
)
def test_names_are_shown_as_they_are_or_with_escapes(name, shown):
    assert clean(name) == shown
    clean(name).encode()


def test_some_characters_can_be_kept():
    assert clean("a\nb\x1b\t", keep="\n\t") == "a\nb\\x1b\t"


def test_a_value_from_a_file_is_cut_for_a_message():
    assert short_repr("x") == "'x'"
    assert len(short_repr("x" * 10_000)) < 300
    assert len(short_repr([[["x" * 999] * 99] * 99] * 99)) < 400
    assert short_repr(1 << 100_000) == "a number of 100,001 bits"
    assert "\x1b" not in short_repr("\x1b[2J")


def test_pydantic_s_reason_ends_a_sentence():
    assert validation_reason({"msg": "Input should be a list."}) == "it must be a list"
    assert validation_reason({"msg": "Value error, too long"}) == "too long"


def test_percentages_and_numbers_of_epochs_are_written_in_one_way():
    assert percent_text(0.1234) == "12.3" and percent_text(None) == DASH
    assert [epochs_text(n) for n in (0, 1, 20)] == ["0 epochs", "1 epoch", "20 epochs"]
