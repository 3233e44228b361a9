"""The command line of `launch/sweep.py`."""

import argparse
import re
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.core.checks import choose
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.registry import call_with_options, option_names
from mbv3_jax.sweep import plan, state
from mbv3_jax.sweep.conduct import conduct
from mbv3_jax.sweep.executors import EXECUTORS
from mbv3_jax.sweep.executors.base import Executor, need
from mbv3_jax.sweep.state import RESULTS, groups, rows
from mbv3_jax.sweep.view import View, groups_table

_OPTION = "--executor."


def default_workdir(sweep: str) -> Path:
    """runs/sweeps/stem for configs/ablations/stem.py, runs/sweeps/stem-imagenet for :imagenet."""
    path, _, argument = sweep.partition(":")
    argument = re.sub(r"[^A-Za-z0-9._=-]+", "-", argument).strip("-")
    return Path("runs/sweeps") / "-".join(filter(None, (Path(path).stem, argument)))


def _parser() -> argparse.ArgumentParser:
    options = "\n".join(f"  {name}: {_listed(make)}" for name, make in EXECUTORS.items())
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py",
        description="Runs the trials of a sweep. The same command again goes on.",
        epilog="Any field of all trials: --config.total_epochs=3 ...\n"
        f"Options of the executors, --executor.NAME=VALUE:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--sweep", required=True, help="configs/ablations/NAME.py or NAME.py:ARG")
    parser.add_argument("--executor", choices=tuple(EXECUTORS), default="local")
    parser.add_argument("--workdir", type=Path, help="the sweep's folder; default runs/sweeps/NAME")
    parser.add_argument("--dry-run", action="store_true", help="print every trial, start nothing")
    parser.add_argument("--cancel", action="store_true", help="stop what an engine still runs")
    parser.add_argument("--max-failures", type=int, default=2, help="of a trial, in all; 2")
    return parser


def _listed(make) -> str:
    return ", ".join(option_names(make))


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code: see `conduct`; 2: nothing was started."""
    parser = _parser()
    flags, more = parser.parse_known_args(arguments)
    console = Console(stderr=True, emoji=False, highlight=False, soft_wrap=True)
    try:
        return _run(flags, more, console)
    except (UsageError, RunError) as e:
        console.print(f"error: {e}", style="red", markup=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        return 130


def _run(flags: argparse.Namespace, more: Sequence[str], console: Console) -> int:
    options, overrides = {}, []
    for argument in more:
        if argument.startswith(_OPTION):
            name, equals, value = argument.removeprefix(_OPTION).partition("=")
            if not equals:
                raise UsageError(f"{argument}: expected {_OPTION}NAME=VALUE")
            options[name] = value
        elif argument.startswith(("--config.", "--noconfig.")):
            overrides.append(argument)
        else:
            raise UsageError(
                f"unknown option {argument}; --help lists them, fields of all trials are set as "
                "--config.NAME=VALUE"
            )
    if flags.max_failures < 1:
        raise UsageError(f"--max-failures: got {flags.max_failures}, expected at least 1")
    folder = flags.workdir or default_workdir(flags.sweep)
    if wild := set("*?[") & set(str(folder.absolute())):
        raise UsageError(
            f"{folder}: no run folder can be in a path with {' '.join(sorted(wild))} in it"
        )
    descriptions = folder / plan.DESCRIPTIONS
    planned = make_executor(flags.executor, options, descriptions, None)
    jobs = plan.make_jobs(plan.load(flags.sweep), folder, overrides)
    if flags.dry_run:
        _print(jobs, planned)
        return 0
    for program, advice in planned.programs.items():
        need(program, advice)
    _check_old(folder)
    with state.claim(folder) as lock:
        executor = make_executor(flags.executor, options, descriptions, lock)
        entries = state.Record(folder, jobs, sweep=flags.sweep, executor=flags.executor)
        _check_engine(entries, flags.executor)
        if flags.cancel:
            return _cancel(executor, entries, console)
        try:
            with View(console) as view:
                code = conduct(jobs, executor, entries, view, max_failures=flags.max_failures)
        except OSError as e:
            raise RunError(f"stopped in {folder}: {e}; the same command goes on") from e
    _report(jobs, folder, executor, code, console)
    return code


def make_executor(
    name: str, options: Mapping[str, str], descriptions: Path, lock: typing.IO | None
) -> Executor:
    """An executor of a kind, with options as typed.

    Raises:
      UsageError: an unknown option, a wrong value, or a required option is missing.
    """
    try:
        make = EXECUTORS[choose("--executor", name, EXECUTORS)]
        known = typing.get_type_hints(make)
        values = {
            key: _value(f"{_OPTION}{key}", text, known[key]) if key in option_names(make) else text
            for key, text in options.items()
        }
        return call_with_options("--executor", EXECUTORS, name, values, descriptions, lock)
    except ValueError as e:
        raise UsageError(str(e)) from e


def _value(path: str, text: str, hint):
    """Text as a value of an annotated type; of a union the first."""
    kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    if kind is bool:
        return choose(path, text, ("True", "False")) == "True"
    try:
        return kind(text)
    except ValueError as e:
        raise ValueError(f"{path}: got {text!r}, expected a value of type {kind.__name__}") from e


def _print(jobs: Sequence[plan.Job], executor: Executor) -> None:
    for job in jobs:
        print(f"{job.name}\n  {shlex.join(executor.command(job))}")
    print(f"{len(jobs)} trials; nothing was started", file=sys.stderr)


def _check_old(folder: Path) -> None:
    if folder.is_dir() and not (folder / plan.DESCRIPTIONS).is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is no sweep's folder (it holds {min(folder.iterdir()).name}); "
            "choose another --workdir"
        )


def _check_engine(entries: state.Record, executor: str) -> None:
    before = entries.executor_before
    under_way = [name for name, entry in entries.entries.items() if entry.handle]
    if before not in (None, executor) and under_way:
        raise UsageError(
            f"{len(under_way)} trials, {under_way[0]} among them, are under way by "
            f"--executor={before}; use that one, or stop them with its --cancel"
        )


def _cancel(executor: Executor, entries: state.Record, console: Console) -> int:
    live = {name: entry.handle for name, entry in entries.entries.items() if entry.handle}
    executor.cancel(live)
    for name in live:
        entries[name].state, entries[name].handle = state.INTERRUPTED, None
    entries.save()
    console.print(f"{len(live)} trials were stopped; the same command without --cancel goes on")
    return 0


def _report(
    jobs: Sequence[plan.Job], folder: Path, executor: Executor, code: int, console: Console
) -> None:
    found = rows(jobs)
    if found:
        console.print(groups_table(groups(found)))
    console.print(f"results: {folder / RESULTS}", markup=False)
    if code == 0:
        if len({row["group"] for row in found}) < len({job.group for job in jobs}):
            console.print("some run folders cannot be seen from here; they have no row")
        return
    line = "the same command goes on where this one stopped"
    if executor.outlives:
        line = "what was submitted goes on; the same command watches it again, --cancel stops it"
    if code == RunError.exit_code:
        line = f"some trials have failed; their logs: {folder / plan.DESCRIPTIONS}"
    console.print(line, markup=False)
