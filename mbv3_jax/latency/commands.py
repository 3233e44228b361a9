"""python -m mbv3_jax latency: the command line of this room."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mbv3_jax.latency import phone_commands, table_commands
from mbv3_jax.latency.options import no_more, positive
from mbv3_jax.train.commands import add_model

_RUNTIMES = ("litert", "onnxruntime", "xla")


def add_parser(commands, *, sample: table_commands.Sample) -> None:
    """Adds `latency` to the subparsers; `run_command(flags, overrides)` runs it.

    sample: of `table_commands`.
    """
    latency = commands.add_parser("latency", help="how long networks take", allow_abbrev=False)
    actions = latency.add_subparsers(dest="what", required=True)

    run = actions.add_parser("run", help="one network on this machine", allow_abbrev=False)
    which = add_model(run)
    which.add_argument("--config", help="FILE[:ARG], random weights; overrides too")
    which.add_argument("--file", type=Path, help="FILE.tflite or FILE.onnx")
    _add_runtime(run)
    run.set_defaults(run_command=_run)

    compare = actions.add_parser(
        "compare", help="several networks in turns, and their ratios", allow_abbrev=False
    )
    compare.add_argument(
        "networks", nargs="+", help="run folders, import folders, .py configs, .json specs, files"
    )
    _add_runtime(compare)
    compare.set_defaults(run_command=_compare)

    table_commands.add_parsers(actions, sample)
    phone_commands.add_parsers(actions)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runtime", choices=_RUNTIMES, help="default litert, or as the file is")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each network")
    parser.add_argument("--runs", type=positive, default=50, help="at least, for each network")
    parser.add_argument("--out", type=Path, help="FILE.json")


def _run(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from mbv3_jax.latency import results, sources
    from mbv3_jax.latency.measure import Effort, measure_files

    if not flags.config:
        no_more(overrides, "run")
    if flags.config:
        source = sources.of_config(flags.config, overrides)
    elif flags.file:
        source = sources.of_file(flags.file)
    else:
        source = sources.of_folder(flags.run or flags.imported, flags.step, flags.weights)
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

    from mbv3_jax.latency import results, sources
    from mbv3_jax.latency.compare import ratios
    from mbv3_jax.latency.measure import Effort, measure_files

    no_more(overrides, "compare")
    found = [sources.of_anything(text) for text in flags.networks]
    effort = Effort(seconds=flags.seconds, runs=flags.runs)
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for i, source in enumerate(found):
            runtime = flags.runtime or source.runtime or "litert"
            path = source.prepare(Path(folder), runtime, flags.precision, f"model{i}")
            models.append((runtime, path))
        timings = measure_files(models, threads=flags.threads, effort=effort)
    compared, names = ratios(timings), [source.name for source in found]
    results.console().print(results.timings_table(names, timings, compared))
    for runtime in dict.fromkeys(t.runtime for t in timings):
        print(results.footer(next(t for t in timings if t.runtime == runtime)))
    rows = [
        results.record(source.name, _precision(flags, source), t) | {"ratio": dataclasses.asdict(r)}
        for source, t, r in zip(found, timings, compared, strict=True)
    ]
    results.save(flags.out, {"networks": rows})


def _precision(flags: argparse.Namespace, source) -> str | None:
    """None of a file, which may have any."""
    return None if source.path else flags.precision
