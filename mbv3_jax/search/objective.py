"""What a search maximises: accuracy and cost in one number."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch import cost, tables
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_whole, choose
from mbv3_jax.core.errors import UsageError
from mbv3_jax.search.space import Point, Space

FORMS = ("soft", "hard", "absolute")
# What can be counted from a spec alone; a latency model is one more such function.
COUNTS: dict[str, Callable[[NetSpec], float]] = {"madds": cost.madds, "params": cost.params}
PUBLISHED = {
    "mnasnet": ("soft", -0.07),  # MnasNet section 3; MobileNetV3-Large
    "mnasnet_hard": ("hard", -1.0),  # MnasNet section 3: no reward below the target
    "mobilenet_v3_small": ("soft", -0.15),  # MobileNetV3 section 4.1
    "tunas": ("absolute", -0.07),  # TuNAS section 3; to -0.10
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of accuracy and relative cost r = cost / target.

      soft      accuracy * r^exponent                 (MnasNet, equation 2 with equal exponents)
      hard      accuracy * max(1, r)^exponent         (the same with exponent 0 under the target)
      absolute  accuracy + exponent * |r - 1|         (TuNAS; exponent is its beta)

    form: one of these. exponent: negative. targets: by the name of each cost; with several, r is
    the mean of theirs, by `weights` where given (they are divided by their sum).
    """

    targets: Mapping[str, float]
    form: str = "absolute"
    exponent: float = -0.07
    weights: Mapping[str, float] | None = None

    def __post_init__(self):
        choose("reward.form", self.form, FORMS)
        if not self.exponent < 0:
            raise ValueError(f"reward.exponent: got {self.exponent!r}, expected below 0")
        if not self.targets or not all(0 < t < np.inf for t in self.targets.values()):
            raise ValueError(f"reward.targets: got {self.targets!r}, expected positive numbers")
        if self.weights is not None:
            if set(self.weights) != set(self.targets):
                raise ValueError(
                    f"reward.weights: got {sorted(self.weights)}, expected {sorted(self.targets)}"
                )
            if min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
                raise ValueError(f"reward.weights: got {self.weights!r}, expected at least 0")

    def relative(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The cost over its target; costs are [N] by name."""
        weights = self.weights or dict.fromkeys(self.targets, 1.0)
        total = sum(weights.values())
        return sum(
            weights[name] / total * np.asarray(costs[name], float) / target
            for name, target in self.targets.items()
        )

    def __call__(self, accuracy: np.ndarray, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The rewards [N] of accuracies [N] (fractions) and costs [N] by name."""
        accuracy, relative = np.asarray(accuracy, float), self.relative(costs)
        if self.form == "absolute":
            return accuracy + self.exponent * np.abs(relative - 1)
        if self.form == "hard":
            relative = np.maximum(relative, 1)
        return accuracy * relative**self.exponent


# Costs of points by name, each computed once.


class Costs:
    """costs(points) -> {name: float array [N]}.

    Args:
      space: whose points it takes.
      functions: spec -> number by name: those of `rewards.COUNTS`, or a latency model's.
    """

    def __init__(self, space: Space, functions: Mapping[str, Callable[[NetSpec], float]]):
        self.space, self.functions = space, dict(functions)
        self._known: dict[Point, tuple[float, ...]] = {}

    def __call__(self, points: Sequence[Point]) -> dict[str, np.ndarray]:
        for point in map(tuple, points):
            if point not in self._known:
                spec = self.space.to_spec(point)
                self._known[point] = tuple(float(f(spec)) for f in self.functions.values())
        rows = np.array([self._known[tuple(p)] for p in points]).reshape(
            len(points), len(self.functions)
        )
        return dict(zip(self.functions, rows.T, strict=True))


# What the networks of a search cost: counted, or predicted from a latency table.

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
    from mbv3_jax.latency import cost_model
    from mbv3_jax.latency.measure import LABELS, best_runtime
    from mbv3_jax.latency.table import fill_table, open_table, read_table, unique

    options = config.latency
    if options.table:
        table = read_table(Path(options.table))
    else:
        path, target = folder / "latency.json", options.target or best_runtime()
        table = open_table(path, target, options.threads)
        networks, held_out = (
            [space.to_spec(p) for p in space.sample(np.random.default_rng(seed), count)]
            for seed, count in ((0, options.networks), (1, options.check))
        )
        wanted = unique(networks)
        console.print(f"latency: measuring {len(wanted)} pieces of networks by {LABELS[target]}")
        with tempfile.TemporaryDirectory() as files:
            fill_table(path, table, Path(files), wanted, fitted=networks, held_out=held_out)
    try:
        predict = cost_model.fit(table)
    except ValueError as e:
        raise UsageError(f"config: latency.table: {e}") from e
    if errors := cost_model.judge(predict, table):
        console.print(
            f"latency: mean error {errors.mape:.1f}%, Spearman {errors.spearman:.2f} on "
            f"{errors.networks} networks that the model never saw"
        )
    threads = "one thread" if table.threads == 1 else f"{table.threads} threads"
    machine = table.machine.get("cpu", "unknown machine")
    return predict, f"{LABELS.get(table.target, table.target)}, {threads}, {machine}"


def check_cost(config: ConfigDict, space: Space) -> None:
    """Finds what is wrong with `cost`, `latency` and `relative_to`, before anything is measured.

    Raises:
      UsageError: it names the field, or the table.
    """
    try:
        choose("cost", config.cost, UNITS)
        if config.cost == "ms":
            from mbv3_jax.latency.table import TARGETS, read_table

            for name in ("networks", "check", "threads"):
                check_whole(f"latency.{name}", config.latency[name], 1)
            choose("latency.target", config.latency.target, (None, *TARGETS))
            if config.latency.table:
                read_table(Path(config.latency.table))
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
