import os

import pytest

from ltlearn.utils.text import clean


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
