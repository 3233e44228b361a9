"""What several commands share: arguments, and a console for tables."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from mbv3_jax.core.checks import Resolution, check_number, check_resolution
from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.packages import program


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and suggest an option for a misspelled one."""

    def parse_known_args(self, args=None, namespace=None):
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        for argument in self._given:
            name = argument.partition("=")[0]
            # A dot is in the fields of a configuration and in the options of executors.
            if name.startswith("--") and "." not in name and name not in known:
                for near in difflib.get_close_matches(name, known, 1):
                    message += f"; {name} is unknown, did you mean {near}?"
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def no_more(overrides: Sequence[str], command: str) -> None:
    """Refuses arguments that a command does not have.

    Raises:
      UsageError: there is such an argument.
    """
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see {program()} {command} --help")


def positive(text: str) -> int:
    """Converts text to a positive whole number, for `add_argument(type=...)`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def positive_number(text: str) -> float:
    """As `positive`, for a number with decimals."""
    try:
        return check_number("", float(text), above=0)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number") from e


def resolution(text: str) -> Resolution:
    """As `positive`, for the size of images: a side, or height x width as in 224x320."""
    try:
        both = [positive(part) for part in text.split("x")]
        return check_resolution("", both if len(both) > 1 else both[0], 1)
    except (argparse.ArgumentTypeError, ValueError) as e:
        expected = "pixels as in 224, or height and width as in 224x320"
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from e


def decimals(text: str) -> tuple[float, ...]:
    """As `positive`, for numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers as in 0.5,0.5,0.5") from e


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
        metavar="N|best",
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
