import math

import numpy as np
import pytest

from ltlearn.errors import UserError, check_number


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "1", True, None])
def test_values_that_are_no_number_in_a_range(value):
    with pytest.raises(UserError, match=f"^x must be .*at least 0.*, got {value!r}"):
        check_number("x", value, 0)


def test_limits_are_included_or_excluded():
    check_number("x", 0, 0, 1)
    check_number("x", 1, 0, 1)
    with pytest.raises(UserError, match="x must be .*above 0 and .*at most 1, got 0"):
        check_number("x", 0, 0, 1, above=True)
    with pytest.raises(UserError, match="x must be .*at least 0 and below 1, got 1"):
        check_number("x", 1, 0, 1, below=True)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.25), np.int64(1)])
def test_numbers_in_range(value):
    check_number("x", value, 0, 1)
