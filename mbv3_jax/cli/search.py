"""mbv3 search: spaces, tables of trained networks, NetAdapt, and workers for other searches."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.cli.arguments import no_more, table_console
from mbv3_jax.core.errors import Preempted, UsageError, counted, plain
from mbv3_jax.core.packages import program


def add_parsers(commands) -> None:
    """Adds `search` to the subparsers; `run_command(flags, overrides)` runs it."""
    search = commands.add_parser(
        "search",
        help="list spaces, describe tables, narrow a network, or help with a search",
        description="A whole search is started by `train`, with a search configuration.",
    )
    actions = search.add_subparsers(dest="what", metavar="ACTION", required=True)
    spaces = actions.add_parser(
        "spaces", help="list the search spaces and how many networks they have"
    )
    spaces.set_defaults(run_command=_spaces)

    table = actions.add_parser(
        "table",
        help="describe a table of trained networks, or download one",
        description="Describes a table of trained networks. The name accel_nasbench downloads and "
        "converts that of Accel-NASBench first.",
        allow_abbrev=False,
    )
    table.add_argument(
        "table",
        metavar="FILE.json|accel_nasbench",
        help="the file of a table, or accel_nasbench to download it",
    )
    table.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="the file to write accel_nasbench to; default accel_nasbench.json",
    )
    table.add_argument(
        "--archive",
        type=Path,
        metavar="FILE.tar.gz",
        help="the archive of accel_nasbench, if it has been downloaded already",
    )
    table.set_defaults(run_command=_table)

    proxy = actions.add_parser(
        "proxy",
        help="predict networks from a table of trained ones, and say how well that works",
        description="Fits a model of accuracy and of every cost to a part of a table, and predicts "
        "networks that were held out; or, with --spec, fits it to all and predicts those networks.",
        allow_abbrev=False,
    )
    proxy.add_argument("table", type=Path, metavar="FILE.json", help="see `search table`")
    proxy.add_argument(
        "--train",
        type=int,
        metavar="N",
        help="the number of networks to learn from; default 400, or four fifths of a smaller table",
    )
    proxy.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="the number of other networks to predict; default 1000, or all others",
    )
    proxy.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="the number of random splits; default 5"
    )
    proxy.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="only this column of the table; may be repeated",
    )
    proxy.add_argument(
        "--spec",
        action="append",
        type=Path,
        metavar="FILE.json",
        help="predict this network; may be repeated",
    )
    proxy.set_defaults(run_command=_proxy)

    netadapt = actions.add_parser(
        "netadapt",
        help="narrow a trained network, layer by layer, down to a target cost",
        allow_abbrev=False,
    )
    netadapt.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="the folder of a finished run"
    )
    target = netadapt.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-madds", type=float, metavar="N", help="the target, in multiply-adds"
    )
    target.add_argument("--target-ms", type=float, metavar="MS", help="the target, in milliseconds")
    netadapt.add_argument(
        "--table",
        type=Path,
        metavar="TABLE.json",
        help="the latency table for --target-ms, see `latency measure`",
    )
    netadapt.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder for the results"
    )
    netadapt.add_argument(
        "--steps",
        type=int,
        default=50,
        metavar="N",
        help="the number of steps to fine-tune each proposal for; default 50",
    )
    netadapt.add_argument(
        "--rate",
        type=float,
        help="the learning rate of this fine-tuning; default a tenth of the run's",
    )
    netadapt.add_argument(
        "--delta",
        type=float,
        default=0.01,
        metavar="PART",
        help="the fraction of the initial cost that each step saves; default 0.01",
    )
    netadapt.add_argument(
        "--divisor",
        type=int,
        default=8,
        metavar="N",
        help="channel counts stay multiples of this; default 8",
    )
    netadapt.add_argument(
        "--max-proposals",
        type=int,
        metavar="N",
        help="the number of random proposals to try in each step; default all",
    )
    netadapt.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    netadapt.add_argument(
        "--eval-split",
        metavar="SPLIT",
        help="the images to choose by, as for --config.data.eval_split; default the run's",
    )
    netadapt.set_defaults(run_command=_netadapt)

    worker = actions.add_parser(
        "worker", help="train candidates for a running search", allow_abbrev=False
    )
    worker.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="the folder of the search"
    )
    worker.set_defaults(run_command=_worker)


def _spaces(flags, overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mbv3_jax.search.presets import PRESETS
    from mbv3_jax.search.space import combinations, network_count

    no_more(overrides, "search spaces")
    table = Table(title="search spaces", header_style="bold")
    for name in ("space", "decisions", "combinations", "different networks"):
        table.add_column(name, justify=_side(name == "space"), no_wrap=True)
    for name, make in PRESETS.items():
        space = make()
        numbers = (_number(combinations(space)), _number(network_count(space)))
        table.add_row(name, str(len(space.decisions)), *numbers)
    table.caption = "combinations include the choices in blocks that are left out, as in papers"
    Console().print(table)


def _table(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from rich.table import Table

    from mbv3_jax.search import accel_nasbench, network_table

    no_more(overrides, "search table")
    path = Path(flags.table)
    if flags.table == accel_nasbench.NAME:
        path = flags.out or Path("accel_nasbench.json")
        table = accel_nasbench.convert(accel_nasbench.fetch(flags.archive))
        try:
            network_table.write_network_table(path, table)
        except OSError as e:
            raise UsageError(f"--out: cannot write {path}: {e.strerror}") from e
    elif flags.out or flags.archive:
        raise UsageError("--out and --archive are only for the table accel_nasbench")
    else:
        table = network_table.open_network_table(path)
    space = f"the space {table.space.name}" if table.space else "no space"
    console = table_console()
    console.print(f"{path}: {table.name}, {len(table.networks)} networks of {space}")
    console.print(f"source: {table.source}; license: {table.license}")
    columns = Table(header_style="bold")
    for name in ("column", "unit", "networks", "repeated", "from", "to", "Spearman with MAdds"):
        columns.add_column(name, justify=_side(name in ("column", "unit")), no_wrap=True)
    for summary in network_table.summarise(table):
        columns.add_row(
            summary.name,
            summary.unit,
            str(summary.networks),
            str(summary.repeated),
            f"{summary.lowest:.5g}",
            f"{summary.highest:.5g}",
            f"{summary.spearman:.2f}",
        )
    console.print(columns)


def _proxy(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    from mbv3_jax.core.checks import choose
    from mbv3_jax.search.network_table import open_network_table

    no_more(overrides, "search proxy")
    table = open_network_table(flags.table)
    try:
        for name in flags.column or ():
            choose("--column", name, table.columns)
        columns = flags.column or list(table.columns)
        if flags.spec:
            _print_predictions(table, columns, flags.spec)
        else:
            _print_scores(table, columns, flags)
    except ValueError as e:
        raise UsageError(str(e)) from e


def _print_scores(table, columns: Sequence[str], flags: argparse.Namespace) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from mbv3_jax.search.evaluators import half_width
    from mbv3_jax.search.proxy import judge

    count = len(table.networks)
    train = min(400, count * 4 // 5) if flags.train is None else flags.train
    rest = max(count - train, 2)
    held_out = min(1000, rest) if flags.held_out is None else flags.held_out
    progress = Console(stderr=True, markup=False, emoji=False, highlight=False)
    rows = Table(header_style="bold")
    for name in ("column", "Kendall", "mean error", "in 50% intervals", "in 90% intervals"):
        rows.add_column(name, justify=_side(name == "column"), no_wrap=True)

    def shown(values: Sequence[float], digits: int, unit: str = "") -> str:
        mean = f"{np.mean(values):.{digits}f}{unit}"
        return mean if len(values) < 2 else f"{mean} ± {half_width(values):.{digits}f}"

    for score in judge(
        table,
        train=train,
        held_out=held_out,
        seeds=flags.seeds,
        columns=columns,
        note=lambda score: progress.print(f"predicted {score.column}"),
    ):
        unit = " points" if table.columns[score.column].kind == "accuracy" else "%"
        rows.add_row(
            score.column,
            shown(score.kendall, 3),
            shown(score.error, 2, unit),
            shown([100 * x for x in score.within_half], 1, "%"),
            shown([100 * x for x in score.within_most], 1, "%"),
        )
    rows.caption = f"learned from {train} networks, predicted {held_out} others"
    if flags.seeds > 1:
        rows.caption += f"; {flags.seeds} splits, 95% intervals of the mean"
    table_console().print(rows)


def _print_predictions(table, columns: Sequence[str], files: Sequence[Path]) -> None:
    from mbv3_jax.arch.spec import NetSpec
    from mbv3_jax.core.json_values import read_json
    from mbv3_jax.search.proxy import Proxy

    specs = [read_json(file, NetSpec, error=UsageError) for file in files]
    proxy, console = Proxy(table), table_console()
    for file, spec in zip(files, specs, strict=True):
        console.print(f"{file}: {spec.name}")
        for name in columns:
            predictor, column = proxy.predictor(name), table.columns[name]
            (reason,) = predictor.outside([spec])
            try:
                mean, deviation = (float(values[0]) for values in predictor.predict([spec]))
            except ValueError:  # not in the space; the reason says so
                raise UsageError(f"{file}: {reason}") from None
            value, spread = column.in_unit(mean, deviation)
            note = "" if reason is None else f"; outside what the table knows: {reason}"
            console.print(f"  {name}: {plain(value)} ± {plain(spread, 2)} {column.unit}{note}")


def _netadapt(flags: argparse.Namespace, overrides: Sequence[str]) -> int | None:
    from rich.console import Console

    from mbv3_jax.search.netadapt.adapt import shrink

    no_more(overrides, "search netadapt")
    console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
    cost, show = _cost(flags)
    target = flags.target_madds if flags.target_ms is None else flags.target_ms
    options = ("steps", "rate", "delta", "divisor", "max_proposals", "seed", "eval_split")
    try:
        result = shrink(
            flags.run,
            cost,
            target,
            flags.out,
            **{name: getattr(flags, name) for name in options},
            console=console,
            show=show,
        )
    except Preempted as e:
        console.print("preempted; run the same command again to resume")
        return e.exit_code
    _print_steps(result, show)
    spec, model = flags.out / "spec.json", result["model"]
    print(f"\nto train it from scratch: {program()} train --config=found:spec={spec},TASK")
    print(f"to fine-tune it: {program()} train --config=finetune:TASK --config.init={model}")
    return None


def _cost(flags: argparse.Namespace) -> tuple[Callable[[NetSpec], float], Callable[[float], str]]:
    """The function that computes the cost of a network, and the one that formats a cost."""
    if flags.target_madds is not None:
        from mbv3_jax.arch.cost import madds

        if flags.table:
            raise UsageError("--table: has an effect only with --target-ms")
        return madds, lambda value: f"{plain(value / 1e6)} million MAdds"
    from mbv3_jax.latency import cost_model, table

    if not flags.table:
        raise UsageError("--target-ms needs --table=TABLE.json, see `latency measure`")
    try:
        return cost_model.fit(table.read_table(flags.table)), lambda value: f"{plain(value)} ms"
    except ValueError as e:
        raise UsageError(f"--table: {flags.table}: {e}") from e


def _side(is_text: bool) -> Literal["left", "right"]:
    return "left" if is_text else "right"


def _print_steps(result: dict, show: Callable[[float], str]) -> None:
    from rich.table import Table

    table = Table(title="NetAdapt", header_style="bold")
    for name in ("step", "narrowed", "cost", f"top-1, {result['split']}"):
        is_text = name == "narrowed"
        table.add_column(name, justify=_side(is_text), no_wrap=not is_text)
    rows = [{"change": "", **result["seed"]}, *result["steps"]]
    for number, row in enumerate(rows):
        table.add_row(str(number), row["change"], show(row["cost"]), f"{row['accuracy']:.2%}")
    table.caption = "top-1 after a brief fine-tuning"
    table_console().print(table)


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**6 else f"10^{math.log10(value):.1f}"


def _worker(flags, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from mbv3_jax.run.interrupt import stops_at_once
    from mbv3_jax.search.candidates import work
    from mbv3_jax.search.settings import read_search_config

    no_more(overrides, "search worker")
    config = read_search_config(flags.run)
    if config.get("brief") is None:
        raise UsageError(f"{flags.run}: this search trains no candidates (config.brief)")
    console = Console(stderr=True, markup=False, emoji=False)
    with stops_at_once():
        count = work(
            config.brief,
            flags.run / "candidates",
            ended=(flags.run / "found.json").exists,
            console=console,
        )
    print(f"{counted(count, 'training')}; the search needs no more")
