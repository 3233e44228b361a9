"""What several commands share: arguments, and a console for tables."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import program


def no_more(overrides: Sequence[str], command: str) -> None:
    """Refuses arguments that a command does not have.

    Raises:
      UsageError: there is such an argument.
    """
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see {program()} {command} --help")


def positive(text: str) -> int:
    """Converts what was typed to a positive whole number, for `add_argument(type=...)`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def add_model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds the options that choose a trained network: --run or --import, --step, --weights.

    Returns:
      The group of --run and --import, of which one is required, to add alternatives.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="DIR", help="a run folder")
    which.add_argument(
        "--import", type=Path, dest="imported", metavar="DIR", help="a folder that `import` wrote"
    )
    parser.add_argument(
        "--step",
        type=_step,
        metavar="N",
        help="the checkpoint of a run: its step, or best; default the newest",
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "ema", "raw"),
        default="auto",
        help="the averaged weights of a run (ema), or those of the last step (raw); default auto: "
        "averaged if the run has them",
    )
    return which


def table_console() -> Console:
    """A console that does not wrap tables at 80 columns where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)


def _step(text: str) -> int | str:
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number or best") from e
