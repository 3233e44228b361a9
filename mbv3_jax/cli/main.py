"""`mbv3 COMMAND`: finds the command, runs it, and turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from mbv3_jax.cli import data, export, inference, latency, report, search, use_huge_pages, weights
from mbv3_jax.core.errors import EXIT_INTERRUPTED, RunError, UsageError

# These two have command lines of their own, which main.py and launch/sweep.py share.
_TRAIN = "train a network and evaluate it; the same as main.py"
_SWEEP = "run a list of trials; the same as launch/sweep.py"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mbv3", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help=_TRAIN, add_help=False)
    commands.add_parser("sweep", help=_SWEEP, add_help=False)
    for group in (report, inference, data, weights, export, latency, search):
        group.add_parsers(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; the codes are those of `cli.train.main`.

    Args:
      arguments: the command and its options; None takes those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        use_huge_pages()
        from mbv3_jax.cli.train import main as train

        return train(arguments[1:])
    if arguments[:1] == ["sweep"]:
        from mbv3_jax.cli.sweep import main as sweep

        return sweep(arguments[1:])
    flags, overrides = _parser().parse_known_args(arguments)
    try:
        code = flags.run_command(flags, overrides)
    except (UsageError, RunError) as e:
        Console(stderr=True, emoji=False, soft_wrap=True).print(
            f"error: {e}", markup=False, style="red"
        )
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # of `| head`; Python would complain when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0
