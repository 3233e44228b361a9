"""mbv3 latency: measures networks on this machine and on a phone, and makes latency tables."""

import argparse
import contextlib
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.cli.arguments import add_model, no_more, positive, positive_number, resolution
from mbv3_jax.core.checks import Resolution
from mbv3_jax.core.errors import RunError, UsageError, counted
from mbv3_jax.core.files import read_text
from mbv3_jax.core.packages import program

_RUNTIMES = ("litert", "onnxruntime", "xla")


def add_parsers(commands) -> None:
    """Adds `latency` to the subparsers; `run_command(flags, overrides)` runs it."""
    latency = commands.add_parser(
        "latency", help="measure how long networks take", allow_abbrev=False
    )
    actions = latency.add_subparsers(dest="what", metavar="ACTION", required=True)

    run = actions.add_parser("run", help="measure one network on this machine", allow_abbrev=False)
    which = add_model(run)
    which.add_argument(
        "--config",
        help="the network of a configuration, with random weights; its fields can be set as for "
        "train",
    )
    which.add_argument("--file", type=Path, help="a .tflite or .onnx file")
    _add_runtime(run)
    run.set_defaults(run_command=_run)

    compare = actions.add_parser(
        "compare", help="measure several networks in turns, and their ratios", allow_abbrev=False
    )
    compare.add_argument(
        "networks",
        nargs="+",
        help="run folders, import folders, configurations, spec.json files, .tflite or .onnx files",
    )
    _add_runtime(compare)
    compare.set_defaults(run_command=_compare)

    _add_table_parsers(actions)
    _add_phone_parsers(actions)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime", choices=_RUNTIMES, help="default: litert, or the one that reads the file"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "int8"),
        default="float32",
        help="the precision of networks that are not files; default float32",
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--seconds",
        type=positive_number,
        default=1.0,
        help="the minimum time to measure each network for; default 1",
    )
    parser.add_argument(
        "--runs",
        type=positive,
        default=50,
        metavar="N",
        help="the minimum number of runs of each network; default 50",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from mbv3_jax.latency import results, subjects
    from mbv3_jax.latency.measure import Effort, measure_files

    if not flags.config:
        no_more(overrides, "latency run")
    if flags.config:
        source = subjects.of_config(flags.config, overrides)
    elif flags.file:
        source = subjects.of_file(flags.file)
    else:
        source = subjects.of_folder(flags.run or flags.imported, flags.step, flags.weights)
    runtime = flags.runtime or source.runtime or "litert"
    effort = Effort(seconds=flags.seconds, runs=flags.runs)
    with tempfile.TemporaryDirectory() as folder:
        path = source.prepare(Path(folder), runtime, flags.precision)
        (timing,) = measure_files(
            [(runtime, path)], threads=flags.threads, effort=effort, profile=True
        )
    console = results.console()
    console.print(results.timings_table([source.name], [timing]))
    if timing.profile:
        console.print(results.profile_table(timing.profile))
    print(results.footer(timing))
    results.save(flags.out, results.record(source.name, _precision(flags, source), timing))


def _compare(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    import dataclasses

    from mbv3_jax.latency import results, subjects
    from mbv3_jax.latency.measure import Effort, measure_files, ratios

    no_more(overrides, "latency compare")
    sources = [subjects.of_anything(text) for text in flags.networks]
    effort = Effort(seconds=flags.seconds, runs=flags.runs)
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for i, source in enumerate(sources):
            runtime = flags.runtime or source.runtime or "litert"
            path = source.prepare(Path(folder), runtime, flags.precision, f"model{i}")
            models.append((runtime, path))
        timings = measure_files(models, threads=flags.threads, effort=effort)
    compared, names = ratios(timings), [source.name for source in sources]
    results.console().print(results.timings_table(names, timings, compared))
    for runtime in dict.fromkeys(t.runtime for t in timings):
        print(results.footer(next(t for t in timings if t.runtime == runtime)))
    rows = [
        results.record(source.name, _precision(flags, source), t) | {"ratio": dataclasses.asdict(r)}
        for source, t, r in zip(sources, timings, compared, strict=True)
    ]
    results.save(flags.out, {"networks": rows})


def _precision(flags: argparse.Namespace, source) -> str | None:
    """The precision that was asked for; None for a file, which may have any."""
    return None if source.path else flags.precision


# Latency tables for searches: measure, csv.


def _add_table_parsers(actions) -> None:
    measure = actions.add_parser(
        "measure", help="measure a latency table for searches", allow_abbrev=False
    )
    measure.add_argument(
        "--target", choices=("litert", "xla"), default="litert", help="the runtime; default litert"
    )
    measure.add_argument(
        "--space", required=True, help="a search space; `search spaces` lists them"
    )
    measure.add_argument(
        "--resolution",
        type=resolution,
        metavar="PIXELS",
        help="224, or height and width as in 224x320; default: the space's own",
    )
    measure.add_argument(
        "--networks",
        type=positive,
        default=40,
        metavar="N",
        help="the number of random networks whose pieces are measured; default 40",
    )
    measure.add_argument(
        "--check",
        type=positive,
        default=20,
        metavar="N",
        help="the number of further networks to check the predictions on; default 20",
    )
    measure.add_argument("--threads", type=positive, default=1, metavar="N", help="default 1")
    measure.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="TABLE.json",
        help="the table; an existing table is extended",
    )
    measure.add_argument("--files", type=Path, metavar="DIR", help="keep the models in this folder")
    measure.add_argument(
        "--only-files",
        action="store_true",
        help="measure nothing: write the models and pieces.csv, to measure them on a phone",
    )
    measure.set_defaults(run_command=_measure)

    table = actions.add_parser(
        "csv", help="convert a latency table to CSV or back", allow_abbrev=False
    )
    table.add_argument("table", type=Path, help="TABLE.json or TABLE.csv")
    table.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a file of the other kind"
    )
    table.add_argument(
        "--machine", help="the machine that a CSV was measured on: 'Pixel 1, large core'"
    )
    table.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="the threads that a CSV was measured with; default 1",
    )
    table.set_defaults(run_command=_csv)


def _measure(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "latency measure")
    from mbv3_jax.latency import cost_model, results
    from mbv3_jax.latency.table import (
        fill_table,
        open_table,
        table_to_csv,
        unique,
        write_piece,
        write_whole,
    )

    if flags.only_files and (not flags.files or flags.target != "litert"):
        raise UsageError("--only-files needs --files=FOLDER and --target=litert")
    try:
        fitted = _sample(flags.space, flags.resolution, 0, flags.networks)
        held_out = _sample(flags.space, flags.resolution, 1, flags.check)
    except ValueError as e:
        raise UsageError(f"measure: {e}") from e
    pieces = unique(fitted)
    with contextlib.ExitStack() as stack:
        folder = flags.files or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--files: {folder}: {e.strerror}") from e
        if flags.only_files:
            for piece in pieces:
                write_piece(folder, piece, flags.target)
            for spec in (*fitted, *held_out):
                write_whole(folder, spec, flags.target)
            (folder / "pieces.csv").write_text(table_to_csv(dict.fromkeys(pieces)))
            print(f"{folder}: {len(pieces)} pieces, listed in pieces.csv")
            return
        table = open_table(flags.out, flags.target, flags.threads)
        with _progress() as note:
            fill_table(
                flags.out, table, folder, pieces, fitted=fitted, held_out=held_out, note=note
            )
    if errors := cost_model.judge(cost_model.fit(table), table):
        results.console().print(results.errors_table({"held-out networks": errors}))
    networks = counted(len(table.wholes), "network")
    print(f"{flags.out}: {counted(len(table.pieces), 'piece')}, {networks}")


def _sample(space: str, resolution: Resolution | None, seed: int, count: int) -> list[NetSpec]:
    """Random networks of a search space.

    Raises:
      ValueError: no space has that name.
    """
    import numpy as np

    from mbv3_jax.search.presets import preset

    networks = preset(space)
    if resolution:
        networks = networks.replace(resolution=resolution)
    return [networks.to_spec(p) for p in networks.sample(np.random.default_rng(seed), count)]


@contextlib.contextmanager
def _progress():
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("measuring")
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _csv(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "latency csv")
    from mbv3_jax.latency.table import Table, read_table, table_from_csv, table_to_csv

    if (flags.table.suffix, flags.out.suffix) == (".json", ".csv"):
        from mbv3_jax.core.files import write_atomically

        try:
            write_atomically(flags.out, table_to_csv(read_table(flags.table).pieces))
        except OSError as e:
            raise RunError(f"--out: cannot write {flags.out}: {e.strerror}") from e
    elif (flags.table.suffix, flags.out.suffix) == (".csv", ".json"):
        if not flags.machine:
            raise UsageError("--machine: say what the CSV was measured on")
        try:
            text = read_text(flags.table)
        except (OSError, UnicodeDecodeError) as e:
            reason = getattr(e, "strerror", None) or "it is not a text in UTF-8"
            raise UsageError(f"{flags.table}: cannot be read: {reason}") from e
        pieces = table_from_csv(text, str(flags.table))
        machine = {"cpu": flags.machine}
        Table("litert", flags.threads, machine, {}, pieces).write(flags.out)
        print(f"{len(pieces)} pieces")
    else:
        raise UsageError(
            "csv: give TABLE.json and --out=TABLE.csv, or TABLE.csv and --out=TABLE.json"
        )
    print(flags.out)


# A phone, with TFLite's benchmark_model: android, import.


def _add_phone_parsers(actions) -> None:
    android = actions.add_parser(
        "android", help="measure on a phone, or print the commands for it", allow_abbrev=False
    )
    android.add_argument("--file", type=Path, required=True, help="a .tflite file")
    android.add_argument(
        "--binary",
        type=Path,
        default=Path("benchmark_model"),
        help="TFLite's benchmark_model for the phone; default benchmark_model",
    )
    android.add_argument(
        "--serial", help="the serial number of the phone, if several are connected"
    )
    android.add_argument("--threads", type=positive, default=1, metavar="N", help="default 1")
    android.add_argument(
        "--cpu-mask",
        type=_mask,
        metavar="MASK",
        help="the cores to use, in hexadecimal: f0 are the large cores of many phones",
    )
    android.add_argument(
        "--runs",
        type=positive,
        default=100,
        metavar="N",
        help="the minimum number of runs; default 100",
    )
    android.add_argument(
        "--adb", action="store_true", help="run the commands with adb, and read their output"
    )
    _add_result(android)
    android.set_defaults(run_command=_android)

    read = actions.add_parser(
        "import", help="read the output of benchmark_model", allow_abbrev=False
    )
    read.add_argument(
        "texts", type=Path, nargs="+", metavar="FILE", help="the timing, and after it the profile"
    )
    _add_result(read)
    read.set_defaults(run_command=_import)


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", help="the name of the phone: 'Pixel 6'")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")


def _mask(text: str) -> str:
    try:
        if int(text, 16) > 0:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text!r}, expected hexadecimal digits such as f0")


def _android(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "latency android")
    from mbv3_jax.latency import phone

    if flags.file.suffix != ".tflite":
        raise UsageError(f"--file: got {flags.file}, expected a .tflite file")
    if not flags.file.is_file():
        raise UsageError(f"--file: {flags.file}: no such file")
    lines = phone.commands(
        flags.file,
        binary=flags.binary,
        serial=flags.serial,
        threads=flags.threads,
        cpu_mask=flags.cpu_mask,
        runs=flags.runs,
    )
    if flags.adb:
        if not flags.binary.is_file():
            raise UsageError(f"--binary: {flags.binary}: no such file")
        _show(flags, phone.run(lines)[-2:], flags.file.name)
        return
    timing, profile = (shlex.join(line) for line in lines[-2:])
    for line in lines[:-2]:
        print(shlex.join(line))
    print(f"{timing} > timing.txt 2>&1")
    print(f"{profile} > profile.txt 2>&1")
    print(f"{program()} latency import timing.txt profile.txt --out=phone.json")


def _import(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "latency import")
    try:
        texts = [read_text(path, errors="replace") for path in flags.texts]
    except OSError as e:
        raise UsageError(f"{e.filename}: {e.strerror}") from e
    _show(flags, texts, flags.texts[0].stem)


def _show(flags: argparse.Namespace, texts: list[str], name: str) -> None:
    from mbv3_jax.latency import phone, results

    try:
        result = phone.read(texts, name, flags.machine)
    except ValueError as e:
        raise UsageError(f"{name}: {e}") from e
    runs = f", mean of {counted(result['runs'], 'run')}" if result["runs"] else ""
    print(f"{name}: {result['ms']:.3f} ms{runs}; first run {result['first_ms']:.3f} ms")
    if result["profile"]:
        results.console().print(results.profile_table(result["profile"]))
    results.save(flags.out, result)
