"""mbv3 sweep: runs the trials of a sweep file."""

import argparse
import re
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.cli.arguments import Parser
from mbv3_jax.cli.examples import examples_text
from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import EXIT_INTERRUPTED, RunError, UsageError, printable_lines
from mbv3_jax.core.files import check_storable
from mbv3_jax.core.packages import program
from mbv3_jax.core.registry import call_with_options, option_names
from mbv3_jax.run.shipped import split_argument
from mbv3_jax.sweep import plan, state
from mbv3_jax.sweep.executors import EXECUTORS
from mbv3_jax.sweep.executors.base import Executor, need
from mbv3_jax.sweep.runner import run_sweep
from mbv3_jax.sweep.state import RESULTS, groups, rows
from mbv3_jax.sweep.view import View, groups_table

_OPTION = "--executor."


def default_workdir(sweep: str, seeds: Sequence[int] | None = None) -> Path:
    """The default --workdir: runs/sweeps/stem for "ablations/stem", runs/sweeps/stem-imagenet for
    "configs/ablations/stem.py:imagenet", runs/sweeps/stem-seeds=0 for --seeds=0."""
    path, argument = split_argument(sweep)
    argument = re.sub(r"[^A-Za-z0-9._=-]+", "-", argument).strip("-")
    some = f"seeds={','.join(map(str, seeds))}" if seeds else ""
    return Path("runs/sweeps") / "-".join(filter(None, (Path(path).stem, argument, some)))


def _parser() -> argparse.ArgumentParser:
    options = "\n".join(
        f"  {name}: {', '.join(option_names(make))}" for name, make in EXECUTORS.items()
    )
    parser = Parser(
        prog=f"{program()} sweep",
        description="Runs the trials of a sweep. Run the same command again to resume.",
        epilog=f"""\
Any field of the configuration can be set for all trials: --config.total_epochs=3 ...
Options of the executors are given as --executor.NAME=VALUE:
{options}

{examples_text("sweep")}""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--sweep", required=True, help="NAME or NAME:ARG of a shipped sweep, or the path of a file"
    )
    parser.add_argument(
        "--executor", choices=tuple(EXECUTORS), default="local", help="default local"
    )
    parser.add_argument(
        "--workdir", type=Path, help="folder for the sweep; default runs/sweeps/NAME-ARG"
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N,N,...",
        help="only these seeds of the sweep, to try it first; the default --workdir then ends "
        "with them",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command of every trial, and start nothing"
    )
    parser.add_argument(
        "--cancel", action="store_true", help="stop the jobs that the executor still runs"
    )
    parser.add_argument(
        "--max-failures",
        type=int,
        default=2,
        metavar="N",
        help="the number of failures after which a trial is not retried; default 2",
    )
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected whole numbers with commas between them"
        ) from None


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
      The exit code of `run_sweep`, or 2 if the command is wrong and nothing was started.
    """
    flags, options = _parser().parse_known_args(arguments)
    console = Console(stderr=True, emoji=False, highlight=False, soft_wrap=True)
    try:
        return _run(flags, options, console)
    except (UsageError, RunError) as e:
        console.print(printable_lines(f"error: {e}"), style="red", markup=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to resume")
        return EXIT_INTERRUPTED


def _split_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the executor by name, and the overrides of the configuration.

    Raises:
      UsageError: an argument is neither.
    """
    options, overrides = {}, []
    for argument in arguments:
        if argument.startswith(_OPTION):
            name, equals, value = argument.removeprefix(_OPTION).partition("=")
            if not equals:
                raise UsageError(f"{argument}: expected {_OPTION}NAME=VALUE")
            options[name] = value
        elif argument.startswith(("--config.", "--noconfig.")):
            overrides.append(argument)
        else:
            raise UsageError(
                f"unknown option {argument}; --help lists the options, and fields of all trials "
                "are set as --config.NAME=VALUE"
            )
    return options, overrides


def _run(flags: argparse.Namespace, arguments: Sequence[str], console: Console) -> int:
    options, overrides = _split_options(arguments)
    if flags.max_failures < 1:
        raise UsageError(f"--max-failures: got {flags.max_failures}, expected at least 1")
    folder = flags.workdir or default_workdir(flags.sweep, flags.seeds)
    check_storable(folder, "choose another --workdir")
    descriptions = folder / plan.DESCRIPTIONS
    unlocked = make_executor(flags.executor, options, descriptions, None)
    sweep = plan.load(flags.sweep)
    if flags.seeds is not None:
        sweep = plan.of_seeds(sweep, flags.seeds)
    jobs = plan.make_jobs(sweep, folder, overrides)
    if flags.dry_run:
        _print_commands(jobs, unlocked)
        return 0
    for name, advice in unlocked.programs.items():
        need(name, advice)
    _check_folder(folder)
    with state.claim(folder) as lock:
        executor = make_executor(flags.executor, options, descriptions, lock)
        record = state.Record(folder, jobs, sweep=flags.sweep, executor=flags.executor)
        _check_executor(record, flags.executor)
        if flags.cancel:
            return _cancel(executor, record, console)
        try:
            with View(console) as view:
                code = run_sweep(jobs, executor, record, view, max_failures=flags.max_failures)
        except OSError as e:
            message = f"stopped in {folder}: {e}; run the same command again to resume"
            raise RunError(message) from e
    _report(jobs, folder, executor, code, console)
    return code


def make_executor(
    name: str, options: Mapping[str, str], descriptions: Path, lock: typing.IO | None
) -> Executor:
    """Makes an executor.

    Args:
      name: one of `EXECUTORS`.
      options: the values of its options as typed.
      descriptions: the folder for job descriptions and logs.
      lock: the open file that `state.claim` gave; None for an executor that starts nothing.

    Raises:
      UsageError: an option is unknown, a value is wrong, or a required option is missing.
    """
    try:
        make = EXECUTORS[choose("--executor", name, EXECUTORS)]
        known = typing.get_type_hints(make)
        values = {
            key: _parse_value(f"{_OPTION}{key}", text, known[key])
            if key in option_names(make)
            else text
            for key, text in options.items()
        }
        return call_with_options("--executor", EXECUTORS, name, values, descriptions, lock)
    except ValueError as e:
        raise UsageError(str(e)) from e


def _parse_value(path: str, text: str, hint: typing.Any) -> object:
    """Converts text to an annotated type; to the first type of a union."""
    kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    if kind is bool:
        return choose(path, text, ("True", "False")) == "True"
    try:
        return kind(text)
    except ValueError as e:
        raise ValueError(f"{path}: got {text!r}, expected a value of type {kind.__name__}") from e


def _print_commands(jobs: Sequence[plan.Job], executor: Executor) -> None:
    for job in jobs:
        print(f"{job.name}\n  {shlex.join(executor.command(job))}")
    print(f"{len(jobs)} trials; nothing was started", file=sys.stderr)


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and not (folder / plan.DESCRIPTIONS).is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not a sweep's folder (it holds {min(folder.iterdir()).name}); "
            "choose another --workdir"
        )


def _check_executor(record: state.Record, executor: str) -> None:
    """Refuses to leave jobs alone that another executor has submitted."""
    submitted = [name for name, entry in record.entries.items() if entry.handle]
    if record.previous_executor not in (None, executor) and submitted:
        raise UsageError(
            f"{len(submitted)} trials, {submitted[0]} among them, still run by "
            f"--executor={record.previous_executor}; use that one, or stop them with its --cancel"
        )


def _cancel(executor: Executor, record: state.Record, console: Console) -> int:
    live = {name: entry.handle for name, entry in record.entries.items() if entry.handle}
    executor.cancel(live)
    for name in live:
        record[name].state, record[name].handle = state.INTERRUPTED, None
    record.save()
    console.print(
        f"{len(live)} trials were stopped; run the same command without --cancel to resume them"
    )
    return 0


def _report(
    jobs: Sequence[plan.Job], folder: Path, executor: Executor, code: int, console: Console
) -> None:
    """Prints the results, and what to do about trials that have not finished."""
    results = rows(jobs)
    if results:
        console.print(groups_table(groups(results)))
    console.print(f"results: {folder / RESULTS}", markup=False)
    if code == 0:
        if len({row["group"] for row in results}) < len({job.group for job in jobs}):
            console.print("some run folders cannot be seen from here; they have no row")
        return
    line = "run the same command again to resume"
    if executor.outlives:
        line = (
            "the jobs that were submitted keep running; run the same command again to watch them, "
            "or with --cancel to stop them"
        )
    if code == RunError.exit_code:
        line = f"some trials have failed; their logs: {folder / plan.DESCRIPTIONS}"
    console.print(line, markup=False)
