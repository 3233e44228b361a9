import math

import pytest

from mbv3_jax.core.checks import call_with_options, check_number, check_whole, option_names


def _plain(size, *, rate=0.5, colour):
    return size, rate, colour


REGISTRY = {"plain": _plain, "bare": lambda size: size}


def test_options_reach_the_factory_and_none_means_not_given():
    assert option_names(_plain) == ("colour", "rate")
    assert call_with_options("x", REGISTRY, "plain", {"colour": "red", "rate": 2}, 7) == (
        7,
        2,
        "red",
    )
    assert call_with_options("x", REGISTRY, "plain", {"colour": "red", "rate": None}, 7)[1] == 0.5
    assert call_with_options("x", REGISTRY, "bare", {"rate": None}, 7) == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plane", {}, r"^paint: got 'plane', expected one of 'plain', 'bare'$"),
        (["plain"], {}, r"^paint: got \['plain'\], expected one of"),
        ("plain", {"colour": 1, "rats": 1}, r"^paint: 'plain' has no option rats; .* colour, rate"),
        ("plain", {"colour": 1, "size": 1}, r"no option size"),
        ("plain", {"rate": 1}, r"^paint: 'plain' needs colour; its options: colour, rate$"),
        ("plain", {"colour": None}, r"needs colour"),
        ("bare", {"rate": 1}, r"^paint: 'bare' has no option rate; its options: none$"),
    ],
)
def test_wrong_names_and_options_list_the_valid_ones(name, options, message):
    with pytest.raises(ValueError, match=message):
        call_with_options("paint", REGISTRY, name, options, 7)


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
