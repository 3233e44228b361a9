"""Arguments that several commands have."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.core.errors import UsageError


def no_more(overrides: Sequence[str], command: str) -> None:
    """Raises UsageError if options are left over."""
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see {command} --help")


def positive(text: str) -> int:
    """A positive whole number, as typed."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def add_model(parser: argparse.ArgumentParser):
    """Adds --run or --import, --step and --weights: what `model.load` takes.

    Returns:
      The group of --run and --import, one of which is needed, for further choices.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="run folder")
    which.add_argument("--import", type=Path, dest="imported", help="import folder")
    parser.add_argument(
        "--step", type=_step, help="which checkpoint: a number, or best; default the newest"
    )
    parser.add_argument("--weights", choices=("auto", "ema", "raw"), default="auto")
    return which


def _step(text: str) -> int | str:
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number or best") from e
