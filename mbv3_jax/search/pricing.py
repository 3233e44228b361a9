"""What the networks of a search cost: counted, or predicted from a latency table."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch import tables
from mbv3_jax.arch.spec import NetSpec, choose, whole
from mbv3_jax.search.rewards import COUNTS
from mbv3_jax.search.space import Space
from mbv3_jax.train.errors import UsageError

UNITS = {"madds": "MAdds", "ms": "ms"}


def price(
    config: ConfigDict, space: Space, folder: Path, console: Console
) -> tuple[Callable[[NetSpec], float], str | None]:
    """The cost that `config.cost` names: spec -> multiply-adds, or -> milliseconds.

    For "ms" it takes the table `config.latency.table`, as `latency measure` or a phone made it;
    None measures one on this machine, of `networks` random networks and `check` held out, into
    `folder/latency.json`. A table that was begun there is gone on with.

    Returns:
      The function, and where its figures are from (None for what is counted).

    Raises:
      UsageError: a name or a table is wrong.
      RunError: a piece cannot be run.
    """
    if config.cost == "madds":
        return COUNTS["madds"], None
    from mbv3_jax.latency import measuring, model
    from mbv3_jax.latency import table as latency_table
    from mbv3_jax.latency.measure import LABELS, best_runtime

    options = config.latency
    if options.table:
        table = latency_table.read(Path(options.table))
    else:
        path, target = folder / "latency.json", options.target or best_runtime()
        table = measuring.open_table(path, target, options.threads)
        networks, held_out = (
            [space.to_spec(p) for p in space.sample(np.random.default_rng(seed), count)]
            for seed, count in ((0, options.networks), (1, options.check))
        )
        wanted = measuring.unique(networks)
        console.print(f"latency: measuring {len(wanted)} pieces of networks by {LABELS[target]}")
        with tempfile.TemporaryDirectory() as files:
            measuring.fill(path, table, Path(files), wanted, fitted=networks, held_out=held_out)
    try:
        predict = model.fit(table)
    except ValueError as e:
        raise UsageError(f"config: latency.table: {e}") from e
    if errors := model.judge(predict, table):
        console.print(
            f"latency: mean error {errors.mape:.1f}%, Spearman {errors.spearman:.2f} on "
            f"{errors.networks} networks that the model never saw"
        )
    threads = "one thread" if table.threads == 1 else f"{table.threads} threads"
    machine = table.machine.get("cpu", "unknown machine")
    return predict, f"{LABELS.get(table.target, table.target)}, {threads}, {machine}"


def check(config: ConfigDict, space: Space) -> None:
    """Finds what is wrong with `cost`, `latency` and `relative_to`, before anything is measured.

    Raises:
      UsageError: it names the field, or the table.
    """
    try:
        choose("cost", config.cost, UNITS)
        if config.cost == "ms":
            from mbv3_jax.latency.measuring import TARGETS
            from mbv3_jax.latency.table import read

            for name in ("networks", "check", "threads"):
                whole(f"latency.{name}", config.latency[name], 1)
            choose("latency.target", config.latency.target, (None, *TARGETS))
            if config.latency.table:
                read(Path(config.latency.table))
    except ValueError as e:
        raise UsageError(f"config: {e}") from e
    if config.relative_to not in (None, "space"):
        reference(config.relative_to, space)


def reference(name: str, space: Space) -> NetSpec:
    """A published network with the constants of a space: resolution, classes, BatchNorm, ...

    Raises:
      UsageError: there is none of this name.
    """
    try:
        choose("config: a network", name, tables.TABLES)
    except ValueError as e:
        raise UsageError(str(e)) from e
    base = space.base
    kept = ("resolution", "num_classes", "padding", "bn_eps", "bn_decay", "dropout")
    return tables.TABLES[name]().replace(**{field: getattr(base, field) for field in kept})
