"""What the commands of this room share."""

import argparse
from collections.abc import Sequence

from mbv3_jax.train.errors import UsageError


def positive(text: str) -> int:
    """A flag's positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def no_more(overrides: Sequence[str], command: str) -> None:
    """Raises UsageError where options are left over."""
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see latency {command} --help")
