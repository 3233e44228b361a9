"""mbv3 summary, report, plot: tables, pages and pictures of networks, runs and searches."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mbv3_jax.cli.arguments import no_more
from mbv3_jax.core.errors import RunError, UsageError, printable_lines
from mbv3_jax.core.files import open_atomically


def add_parsers(commands) -> None:
    """Adds the commands to the subparsers; `run_command(flags, overrides)` runs one."""
    summary = commands.add_parser("summary", help="print the layers and the cost of a network")
    summary.add_argument(
        "--config", required=True, help="a configuration; its fields can be set as for train"
    )
    summary.set_defaults(run_command=_summary)

    plot = commands.add_parser("plot", help="draw the curves, confusions or mistakes of a run")
    plot.add_argument("--run", required=True, type=Path, metavar="DIR", help="a run folder")
    plot.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="a file that ends in .png, .svg or .pdf",
    )
    plot.add_argument(
        "--what",
        choices=("curves", "confusion", "mistakes"),
        default="curves",
        help="the training curves, the confusion matrix, or the worst mistakes; default curves",
    )
    plot.set_defaults(run_command=_plot)

    report = commands.add_parser(
        "report", help="write a page or a table of runs, sweeps or searches"
    )
    report.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="folders of runs and sweeps, or folders of searches",
    )
    report.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="compare two run folders"
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="a file; default: the terminal")
    report.add_argument(
        "--format",
        choices=("html", "md", "csv", "json", "latex"),
        help="default: what --out ends in (.html, .md, .csv, .json, .tex), or md",
    )
    report.add_argument("--no-latency", action="store_true", help="do not measure latency")
    report.set_defaults(run_command=_report)


def _console() -> Console:
    # Without a terminal rich would wrap tables at 80 columns.
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False)


def _summary(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from mbv3_jax.report.summary import layer_table, totals_table
    from mbv3_jax.run.config import parse_config, spec_of

    config = parse_config(flags.config, overrides)
    if config.init is None:
        spec = spec_of(config)
    if config.init is not None or config.net.num_classes is None:  # as many as the data has
        from mbv3_jax.train.plan import read_plan
        from mbv3_jax.train.sources import open_sources

        spec, *_ = open_sources(read_plan(config))
    console = _console()
    console.print(layer_table(spec))
    console.print(totals_table(spec))


def _plot(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "plot")
    from mbv3_jax.report import pictures

    draw = {
        "curves": pictures.plot_curves,
        "confusion": pictures.plot_confusion,
        "mistakes": pictures.plot_mistakes,
    }
    try:
        print(pictures.save_picture(draw[flags.what](flags.run), flags.out))
    except (ValueError, OSError) as e:
        raise UsageError(f"plot: {e}") from e


def _report(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    no_more(overrides, "report")
    from mbv3_jax.report import document

    try:
        if flags.compare and not flags.format and not flags.out:
            console = _console()
            for table in document.comparison_tables(*flags.compare):
                console.print(table)
            return
        if flags.compare:
            a, b = flags.compare
            text = document.comparison(a, b, flags.format or document.format_of(flags.out))
        else:
            measure, runtime = (None, "") if flags.no_latency else _latency()
            text = document.report(
                flags.runs, flags.out, form=flags.format, measure=measure, runtime=runtime
            )
        if flags.out:
            with open_atomically(flags.out) as file:
                file.write(text.encode(errors="backslashreplace"))
            print(flags.out)
        else:
            print(printable_lines(text), end="")
    except (ValueError, OSError) as e:
        raise UsageError(f"report: {e}") from e


def _latency():
    """A function that measures the latency of a network, and the name of its runtime."""
    from mbv3_jax.latency.measure import best_runtime, describe, measure_spec

    chosen = best_runtime()
    runtime = describe(chosen)

    def measure(spec):
        try:
            return {"ms": measure_spec(spec, chosen).ms, "runtime": runtime}
        except RunError as e:  # the rest of the report does not depend on it
            return {"error": str(e)}

    return measure, runtime
