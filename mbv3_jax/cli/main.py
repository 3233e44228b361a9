"""mbv3 COMMAND: finds the command, runs it, and turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from mbv3_jax.cli import (
    config,
    data,
    export,
    inference,
    latency,
    quieten_xla,
    recipes,
    report,
    search,
    use_huge_pages,
    weights,
)
from mbv3_jax.cli.arguments import Parser
from mbv3_jax.cli.compiled import keep_programs
from mbv3_jax.cli.examples import add_examples
from mbv3_jax.core.errors import EXIT_INTERRUPTED, RunError, UsageError, printable_lines
from mbv3_jax.core.packages import program


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog=program(),
        description="MobileNetV3 in JAX. COMMAND --help explains a command and has an example.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # These two have parsers of their own, which main.py and launch/sweep.py share.
    commands.add_parser("train", help="train a network and evaluate it", add_help=False)
    commands.add_parser("sweep", help="run the trials of a sweep file", add_help=False)
    for group in (config, recipes, report, inference, data, weights, export, latency, search):
        group.add_parsers(commands)
    add_examples(parser)
    return parser


def error_line(message: str) -> None:
    """Prints why a command ends, on standard error."""
    console = Console(stderr=True, emoji=False, soft_wrap=True)
    console.print(printable_lines(f"error: {message}"), markup=False, style="red")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: the command and its options; None takes those of this process.

    Returns:
      The exit code, see `cli.train.main`.
    """
    is_own_process = arguments is None
    if is_own_process:
        quieten_xla()
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_own_process and arguments[:1] == ["train"]:
        use_huge_pages()
    if is_own_process:
        keep_programs()
    if arguments[:1] == ["train"]:
        from mbv3_jax.cli.train import main as train

        return train(arguments[1:])
    if arguments[:1] == ["sweep"]:
        from mbv3_jax.cli.sweep import main as sweep

        return sweep(arguments[1:])
    flags, overrides = make_parser().parse_known_args(arguments)
    try:
        code = flags.run_command(flags, overrides)
    except (UsageError, RunError) as e:
        error_line(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` ends early; Python would complain as it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:  # such as a name that is too long
        if e.filename is None:
            raise
        error_line(f"{e.filename}: {e.strerror}")
        return UsageError.exit_code
    return code or 0
