"""python -m mbv3_jax search spaces, netadapt, worker."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import Preempted, UsageError


def add_parsers(commands) -> None:
    """Adds `search` to the subparsers; `run_command(flags, overrides)` runs it."""
    search = commands.add_parser("search", help="spaces of networks, and NetAdapt")
    actions = search.add_subparsers(dest="what", required=True)
    spaces = actions.add_parser("spaces", help="the preset spaces and how many networks they have")
    spaces.set_defaults(run_command=_spaces)

    netadapt = actions.add_parser(
        "netadapt",
        help="narrow a trained network, layer by layer, down to a cost",
        allow_abbrev=False,
    )
    netadapt.add_argument("--run", type=Path, required=True, help="folder of a run that has ended")
    target = netadapt.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-madds", type=float, metavar="N", help="multiply-adds to get to")
    target.add_argument("--target-ms", type=float, metavar="MS", help="latency to get to")
    netadapt.add_argument(
        "--table", type=Path, help="TABLE.json of latency measure, for --target-ms"
    )
    netadapt.add_argument("--out", type=Path, required=True, help="folder for all that it writes")
    netadapt.add_argument(
        "--steps", type=int, default=50, help="that each proposal is fine-tuned; default 50"
    )
    netadapt.add_argument(
        "--rate", type=float, help="learning rate of that; default a tenth of the run's"
    )
    netadapt.add_argument(
        "--delta", type=float, default=0.01, help="of the cost, cut in a step; default 0.01"
    )
    netadapt.add_argument("--divisor", type=int, default=8, help="of channel counts; default 8")
    netadapt.add_argument(
        "--max-proposals", type=int, metavar="N", help="tried in a step, at random; default all"
    )
    netadapt.add_argument("--seed", type=int, default=0)
    netadapt.add_argument(
        "--eval-split", help="to choose by, as --config.data.eval_split; default the run's"
    )
    netadapt.set_defaults(run_command=_netadapt)

    worker = actions.add_parser(
        "worker", help="train candidates of a search that runs elsewhere", allow_abbrev=False
    )
    worker.add_argument("--run", type=Path, required=True, help="the search's folder")
    worker.set_defaults(run_command=_worker)


def _spaces(flags, overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mbv3_jax.search.presets import PRESETS
    from mbv3_jax.search.space import combinations, network_count

    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; search spaces takes none")
    table = Table(title="search spaces", header_style="bold")
    for name in ("space", "decisions", "combinations", "different networks"):
        table.add_column(name, justify="left" if name == "space" else "right", no_wrap=True)
    for name, make in PRESETS.items():
        space = make()
        numbers = (_number(combinations(space)), _number(network_count(space)))
        table.add_row(name, str(len(space.decisions)), *numbers)
    table.caption = "combinations count choices of blocks that are left out, as papers do"
    Console().print(table)


def _netadapt(flags: argparse.Namespace, overrides: Sequence[str]) -> int | None:
    from rich.console import Console

    from mbv3_jax.search.netadapt.adapt import shrink

    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; see search netadapt --help")
    plain = {"markup": False, "emoji": False, "highlight": False}
    console = Console(stderr=True, soft_wrap=True, **plain)
    cost, show = _cost(flags)
    target = flags.target_madds if flags.target_ms is None else flags.target_ms
    options = ("steps", "rate", "delta", "divisor", "max_proposals", "seed", "eval_split")
    try:
        found = shrink(
            flags.run,
            cost,
            target,
            flags.out,
            **{name: getattr(flags, name) for name in options},
            console=console,
            show=show,
        )
    except Preempted as e:
        console.print("stopped on request; the same command goes on")
        return e.exit_code
    _print_steps(found, show)
    spec, cost_model = flags.out / "spec.json", found["model"]
    print(f"\nfrom scratch: python main.py --config=configs/found.py:spec={spec},TASK")
    print(f"or go on: python main.py --config=configs/finetune.py:TASK --config.init={cost_model}")
    return None


def _cost(flags: argparse.Namespace) -> tuple[Callable[[NetSpec], float], Callable[[float], str]]:
    """The cost that the target is of, and how to write it."""
    if flags.target_madds is not None:
        from mbv3_jax.arch.cost import madds

        if flags.table:
            raise UsageError("--table goes with --target-ms")
        return madds, lambda value: f"{value / 1e6:.4g} million MAdds"
    from mbv3_jax.latency import cost_model, table

    if not flags.table:
        raise UsageError("--target-ms needs --table=TABLE.json, see latency measure")
    try:
        return cost_model.fit(table.read_table(flags.table)), lambda value: f"{value:.4g} ms"
    except ValueError as e:
        raise UsageError(f"--table: {flags.table}: {e}") from e


def _print_steps(found: dict, show: Callable[[float], str]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title="NetAdapt", header_style="bold")
    for name in ("step", "narrowed", "cost", f"top-1, {found['split']}"):
        justify = "left" if name == "narrowed" else "right"
        table.add_column(name, justify=justify, no_wrap=name != "narrowed")
    rows = [{"change": "", **found["seed"]}, *found["steps"]]
    for number, row in enumerate(rows):
        table.add_row(str(number), row["change"], show(row["cost"]), f"{row['accuracy']:.2%}")
    table.caption = "top-1 after a brief fine-tuning"
    # Without a terminal rich would wrap the table at 80 columns.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**6 else f"10^{math.log10(value):.1f}"


def _worker(flags, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from mbv3_jax.run.interrupt import stops_at_once
    from mbv3_jax.search.candidates import work
    from mbv3_jax.search.program import read_search_config

    if overrides:
        raise UsageError(f"unknown option {overrides[0]}; search worker takes --run")
    config = read_search_config(flags.run)
    console = Console(stderr=True, markup=False, emoji=False)
    with stops_at_once():
        count = work(
            config.brief,
            flags.run / "candidates",
            ended=(flags.run / "found.json").exists,
            console=console,
        )
    print(f"{count} trainings; the search wants no more")
