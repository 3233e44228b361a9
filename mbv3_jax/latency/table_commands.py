"""python -m mbv3_jax latency measure, csv: tables for searches."""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.latency.options import no_more, positive
from mbv3_jax.train.errors import RunError, UsageError

# sample(space, resolution or None, seed, count) -> networks
Sample = Callable[[str, int | None, int, int], list[NetSpec]]


def add_parsers(actions, sample: Sample) -> None:
    """Adds `measure` and `csv`; search spaces lie above this room, so `sample` is handed in."""
    measure = actions.add_parser(
        "measure", help="a table of latencies, by which searches predict", allow_abbrev=False
    )
    measure.add_argument("--target", choices=("litert", "xla"), default="litert")
    measure.add_argument("--space", required=True, help="a preset, see search spaces")
    measure.add_argument("--resolution", type=positive, help="default: the space's")
    measure.add_argument("--networks", type=positive, default=40, help="whose pieces; default 40")
    measure.add_argument("--check", type=positive, default=20, help="held out; default 20")
    measure.add_argument("--threads", type=positive, default=1)
    measure.add_argument("--out", type=Path, required=True, help="TABLE.json; it grows")
    measure.add_argument("--files", type=Path, help="folder that keeps the models")
    measure.add_argument(
        "--only-files", action="store_true", help="write the models and pieces.csv for a phone"
    )
    measure.set_defaults(run_command=lambda flags, rest: _measure(flags, rest, sample))

    table = actions.add_parser("csv", help="a table as CSV, or from CSV", allow_abbrev=False)
    table.add_argument("table", type=Path, help="TABLE.json or TABLE.csv")
    table.add_argument("--out", type=Path, required=True, help="of the other kind")
    table.add_argument("--machine", help="what a CSV was measured on, e.g. 'Pixel 1, large core'")
    table.add_argument("--threads", type=positive, default=1, help="of a CSV")
    table.set_defaults(run_command=_csv)


def _measure(flags: argparse.Namespace, overrides: Sequence[str], sample: Sample) -> None:
    no_more(overrides, "measure")
    from mbv3_jax.latency import measuring, model, results
    from mbv3_jax.latency.table import to_csv

    if flags.only_files and (not flags.files or flags.target != "litert"):
        raise UsageError("--only-files needs --files=FOLDER and --target=litert")
    try:
        fitted = sample(flags.space, flags.resolution, 0, flags.networks)
        held_out = sample(flags.space, flags.resolution, 1, flags.check)
    except ValueError as e:
        raise UsageError(f"measure: {e}") from e
    wanted = measuring.unique(fitted)
    with contextlib.ExitStack() as stack:
        folder = flags.files or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--files: {folder}: {e.strerror}") from e
        if flags.only_files:
            for piece in wanted:
                measuring.write_piece(folder, piece, flags.target)
            for spec in (*fitted, *held_out):
                measuring.write_whole(folder, spec, flags.target)
            (folder / "pieces.csv").write_text(to_csv(dict.fromkeys(wanted)))
            print(f"{folder}: {len(wanted)} pieces, listed in pieces.csv")
            return
        table = measuring.open_table(flags.out, flags.target, flags.threads)
        with _progress() as note:
            measuring.fill(
                flags.out, table, folder, wanted, fitted=fitted, held_out=held_out, note=note
            )
    found = model.judge(model.fit(table), table)
    results.console().print(results.errors_table({"held-out networks": found}))
    print(f"{flags.out}: {len(table.pieces)} pieces, {len(table.wholes)} networks")


@contextlib.contextmanager
def _progress():
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("measuring")
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _csv(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "csv")
    from mbv3_jax.latency import table as tables

    if (flags.table.suffix, flags.out.suffix) == (".json", ".csv"):
        from mbv3_jax.train.run_folder import write_atomically

        try:
            write_atomically(flags.out, tables.to_csv(tables.read(flags.table).pieces))
        except OSError as e:
            raise RunError(f"--out: cannot write {flags.out}: {e.strerror}") from e
    elif (flags.table.suffix, flags.out.suffix) == (".csv", ".json"):
        if not flags.machine:
            raise UsageError("--machine: say what the CSV was measured on")
        try:
            text = flags.table.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"{flags.table}: cannot be read ({e})") from e
        found = tables.from_csv(text, str(flags.table))
        machine = {"cpu": flags.machine}
        tables.Table("litert", flags.threads, machine, {}, found).write(flags.out)
        print(f"{len(found)} pieces")
    else:
        raise UsageError("csv: give TABLE.json and --out=TABLE.csv, or the other way round")
    print(flags.out)
