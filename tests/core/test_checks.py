import math

import pytest

from mbv3_jax.core.checks import check_number, check_whole


def test_number_bounds():
    assert check_number("x", 0, at_least=0, below=1) == 0.0
    assert check_number("x", 1, above=0, at_most=1) == 1.0
    for got, bounds in [
        (1, {"at_least": 0, "below": 1}),
        (-1e-9, {"at_least": 0}),
        (0, {"above": 0}),
        (1.1, {"at_most": 1}),
        (math.nan, {}),
        (math.inf, {"above": 0}),
        (True, {}),
        ("1", {}),
        (None, {}),
    ]:
        with pytest.raises(ValueError, match=r"^x: got .*, expected a number"):
            check_number("x", got, **bounds)
    with pytest.raises(ValueError, match=r"^x: got 2, expected a number at least 0 and below 1$"):
        check_number("x", 2, at_least=0, below=1)


def test_whole_numbers():
    assert check_whole("x", 3, at_least=3) == 3
    for got in (2, 3.0, True, "3", None):
        with pytest.raises(ValueError, match=r"^x: got .*, expected a whole number of at least 3$"):
            check_whole("x", got, at_least=3)
