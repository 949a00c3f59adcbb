import pytest

from ltlearn import UserError
from ltlearn.utils.extras import check_packages


def test_packages_that_are_missing_or_broken_are_named(tmp_path, monkeypatch):
    check_packages("this test", "dev", "json")
    with pytest.raises(UserError, match=r"this test needs no_a and no_b.*ltlearn\[dev\]"):
        check_packages("this test", "dev", "json", "no_a", "no_b")
    (tmp_path / "broken_one.py").write_text("raise ImportError('libfoo.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"broken_one.*libfoo.*install it again"):
        check_packages("this test", "dev", "broken_one")
