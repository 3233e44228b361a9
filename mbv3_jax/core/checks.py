"""Checks of values that users give: each returns the value, or raises with what is expected."""

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")

Resolution = int | tuple[int, int]  # of images, in pixels: the side of a square, or (height, width)


def choose(path: str, got: T, choices: Iterable) -> T:
    """Returns `got` if it is one of `choices`; else raises ValueError naming `path` and them."""
    choices = tuple(choices)
    if got not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{path}: got {got!r}, expected one of {listed}")
    return got


def flag(path: str, got: Any) -> bool:
    """Returns `got` if it is True or False; else raises ValueError naming `path`."""
    if not isinstance(got, bool):
        raise ValueError(f"{path}: got {got!r}, expected True or False")
    return got


def check_number(
    path: str,
    got: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """Returns `got` as a float if it is a finite real number within the bounds.

    Raises:
      ValueError: it is not; the message has `path`, the value and the bounds.
    """
    ok = isinstance(got, numbers.Real) and not isinstance(got, bool) and math.isfinite(got)
    ok = ok and (at_least is None or got >= at_least) and (above is None or got > above)
    ok = ok and (at_most is None or got <= at_most) and (below is None or got < below)
    if not ok:
        bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
        expected = " and ".join(f"{word} {b:g}" for word, b in bounds.items() if b is not None)
        raise ValueError(f"{path}: got {got!r}, expected a number {expected}".rstrip())
    return float(got)


def check_whole(
    path: str, got: Any, at_least: int, at_most: int | None = None, odd: bool = False
) -> int:
    """Returns `got` as an int if it is a whole number within the bounds.

    Raises:
      ValueError: it is not; the message has `path`, the value and the bounds.
    """
    ok = isinstance(got, numbers.Integral) and not isinstance(got, bool) and int(got) >= at_least
    if not ok or (at_most is not None and got > at_most) or (odd and got % 2 == 0):
        expected = f"{'an odd' if odd else 'a'} whole number of at least {at_least}"
        expected += f" and at most {at_most}" if at_most is not None else ""
        raise ValueError(f"{path}: got {got!r}, expected {expected}")
    return int(got)


def check_resolution(path: str, got: Any, at_least: int) -> Resolution:
    """Returns `got` if it is a side in pixels, or a height and a width; a square has one number.

    Raises:
      ValueError: it is not; the message has `path`, the value and what is expected.
    """
    both = got if isinstance(got, tuple | list) else (got, got)
    try:
        height, width = (check_whole(path, side, at_least) for side in both)
    except ValueError as e:
        expected = f"a whole number of at least {at_least}, or (height, width) of such"
        raise ValueError(f"{path}: got {got!r}, expected {expected}") from e
    return height if height == width else (height, width)


def sides(resolution: Resolution) -> tuple[int, int]:
    """Height and width in pixels."""
    return resolution if isinstance(resolution, tuple) else (resolution, resolution)


def in_pixels(resolution: Resolution) -> str:
    """A resolution as people write it: "224", or "224x320" for a height of 224."""
    return str(resolution) if isinstance(resolution, int) else "x".join(map(str, resolution))
