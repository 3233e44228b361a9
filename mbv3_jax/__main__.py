"""python -m mbv3_jax COMMAND: everything that is not training."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.data import commands as data
from mbv3_jax.export import commands as export
from mbv3_jax.interop import commands as interop
from mbv3_jax.latency import commands as latency
from mbv3_jax.search import commands as search
from mbv3_jax.train import commands as train
from mbv3_jax.train import config as configs
from mbv3_jax.train.errors import RunError, UsageError


def _summary(flags, overrides: Sequence[str]) -> None:
    from mbv3_jax.report.summary import layer_table, totals_table

    config = configs.parse(flags.config, overrides)
    if config.init is None:
        spec = configs.spec_of(config)
    if config.init is not None or config.net.num_classes is None:  # as many as the data has
        from mbv3_jax.train import start
        from mbv3_jax.train.experiment import open_data

        spec, *_ = open_data(config, start.read(config))
    # Without a terminal rich would wrap the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(layer_table(spec))
    console.print(totals_table(spec))


def _plot(flags, overrides: Sequence[str]) -> None:
    _no_more(overrides, "plot", "--run, --out, --what")
    from mbv3_jax.report import confusion, curves, sheet

    draw = {
        "curves": curves.plot_run,
        "confusion": confusion.plot_confusion,
        "mistakes": sheet.mistakes_sheet,
    }
    try:
        draw[flags.what](flags.run).savefig(flags.out, dpi=120)
    except (ValueError, OSError) as e:
        raise UsageError(f"plot: {e}") from e
    print(flags.out)


def _report(flags, overrides: Sequence[str]) -> None:
    _no_more(overrides, "report", "RUNS..., --compare, --out, --format, --no-latency")
    from mbv3_jax.report import commands as report

    try:
        if flags.compare:
            # Without a terminal rich would wrap the tables at 80 columns.
            console = Console(width=None if sys.stdout.isatty() else 140)
            text = report.compare(*flags.compare, flags.out, form=flags.format, console=console)
        else:
            measure, runtime = None, ""
            if not flags.no_latency:
                measure, runtime = _latency()
            text = report.report(
                flags.runs, flags.out, form=flags.format, measure=measure, runtime=runtime
            )
        if flags.out:
            report.write(flags.out, text)
            print(flags.out)
        elif text:
            print(text, end="")
    except (ValueError, OSError) as e:
        raise UsageError(f"report: {e}") from e


def _latency():
    """A function that measures a network, and with what it does so."""
    from mbv3_jax.latency.measure import best_runtime, describe, measure_spec

    chosen = best_runtime()
    runtime = describe(chosen)

    def measure(spec):
        try:
            return {"ms": measure_spec(spec, chosen).ms, "runtime": runtime}
        except RunError as e:  # the rest of a report does not depend on it
            return {"error": str(e)}

    return measure, runtime


def _sample(space: str, resolution: int | None, seed: int, count: int):
    """Random networks of a search space; ValueError where there is none of the name."""
    import numpy as np

    from mbv3_jax.search.presets import preset

    found = preset(space)
    if resolution:
        found = found.replace(resolution=resolution)
    return [found.to_spec(p) for p in found.sample(np.random.default_rng(seed), count)]


def _image_sheet(images, captions):
    from mbv3_jax.report.sheet import image_sheet

    return image_sheet(images, captions)


def _data(flags, overrides: Sequence[str]) -> int:
    _no_more(overrides, "data", "what python -m mbv3_jax data prepare|check --help lists")
    try:
        return flags.run_data(flags)
    except (ValueError, FileNotFoundError) as e:
        raise UsageError(str(e)) from e


def _no_more(overrides: Sequence[str], command: str, options: str) -> None:
    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; {command} takes {options}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mbv3_jax", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    summary = commands.add_parser("summary", help="layer table and totals of a network")
    summary.add_argument("--config", required=True, help="as for main.py, overrides too")
    summary.set_defaults(run_command=_summary)

    train.add_parsers(commands, draw_sheet=_image_sheet)

    plot = commands.add_parser("plot", help="a picture of a run: curves, confusion, mistakes")
    plot.add_argument("--run", required=True, type=Path, help="run folder")
    plot.add_argument("--out", required=True, type=Path, help="file.png, file.svg or file.pdf")
    plot.add_argument(
        "--what",
        choices=("curves", "confusion", "mistakes"),
        default="curves",
        help="training curves, confusion matrix, or the worst mistakes; default curves",
    )
    plot.set_defaults(run_command=_plot)

    report = commands.add_parser(
        "report", help="what runs, sweeps, searches came to: a page or table"
    )
    report.add_argument("runs", nargs="*", type=Path, help="run and sweep folders; or searches")
    report.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two of them side by side"
    )
    report.add_argument("--out", type=Path, help="file; default: the terminal")
    report.add_argument(
        "--format",
        choices=("html", "md", "csv", "json", "latex"),
        help="default: as --out ends (.html, .md, .csv, .json, .tex), else md",
    )
    report.add_argument("--no-latency", action="store_true", help="measure no latency")
    report.set_defaults(run_command=_report)

    data.add_parser(commands)
    commands.choices["data"].set_defaults(run_command=_data)
    interop.add_parser(commands)
    export.add_parser(commands)
    latency.add_parser(commands, sample=_sample)
    search.add_parser(commands)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code; codes as in `mbv3_jax.train.cli.main`."""
    flags, overrides = _parser().parse_known_args(arguments)
    try:
        code = flags.run_command(flags, overrides)
    except (UsageError, RunError) as e:
        Console(stderr=True, emoji=False, soft_wrap=True).print(
            f"error: {e}", markup=False, style="red"
        )
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `| head`; Python would complain when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
