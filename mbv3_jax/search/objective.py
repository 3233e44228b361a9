"""What a search maximises: the accuracy of a network against its cost.

`Reward` puts both into one number. `Costs` computes the costs of points, and `cost_functions` gives
the costs that a configuration names: multiply-adds and parameters, which are counted, milliseconds,
which a latency table predicts, or a column of a table of networks, which a proxy predicts.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch import cost, tables
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.arch.width import scale_width
from mbv3_jax.core.checks import check_number, check_whole, choose
from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.latency import cost_model
from mbv3_jax.latency.measure import LABELS, best_runtime
from mbv3_jax.latency.table import (
    TARGETS,
    describe_setup,
    fill_table,
    open_table,
    read_table,
    unique,
)
from mbv3_jax.search.proxy import PredictedCost, Proxy
from mbv3_jax.search.space import Point, Space

CostFunction = Callable[[NetSpec], float]

FORMS = ("soft", "hard", "absolute")
# The form and the exponent that each paper uses.
PUBLISHED = {
    "mnasnet": ("soft", -0.07),  # MnasNet section 3; MobileNetV3-Large
    "mnasnet_hard": ("hard", -1.0),  # MnasNet section 3: cost counts only over the target
    "mobilenet_v3_small": ("soft", -0.15),  # MobileNetV3 section 4.1
    "tunas": ("absolute", -0.07),  # TuNAS section 3, which also tries -0.10
}
# Costs that only need a spec. A latency model is one more such function.
COUNTS: dict[str, CostFunction] = {"madds": cost.madds, "params": cost.params}
# The unit of every cost that `config.cost` can name without a table of networks.
UNITS = {"madds": "MAdds", "params": "parameters", "ms": "ms"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward for an accuracy at a relative cost r = cost / target.

      soft      accuracy * r^exponent                 (MnasNet, equation 2 with equal exponents)
      hard      accuracy * max(1, r)^exponent         (the same with exponent 0 under the target)
      absolute  accuracy + exponent * |r - 1|         (TuNAS, which calls the exponent beta)

    Attributes:
      targets: The target of each cost by the cost's name. With several costs, r is the weighted
        mean of cost / target.
      form: One of `FORMS`.
      exponent: A negative number.
      weights: The weight of each cost by name, divided by their sum; None weighs them equally.
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
        """Returns cost / target [N] for the costs [N] by name."""
        weights = self.weights or dict.fromkeys(self.targets, 1.0)
        total = sum(weights.values())
        terms = [
            weights[name] / total * np.asarray(costs[name], float) / target
            for name, target in self.targets.items()
        ]
        return np.sum(terms, axis=0)

    def __call__(self, accuracy: np.ndarray, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the rewards [N] for accuracies [N] (fractions) and costs [N] by name."""
        accuracy, relative = np.asarray(accuracy, float), self.relative(costs)
        if self.form == "absolute":
            return accuracy + self.exponent * np.abs(relative - 1)
        if self.form == "hard":
            relative = np.maximum(relative, 1)
        return accuracy * relative**self.exponent


class Costs:
    """Computes costs by name, once for each point: costs(points) -> {name: float array [N]}.

    Args:
      space: The space of the points.
      functions: Cost functions by name: those of `COUNTS`, or a latency model.
    """

    def __init__(self, space: Space, functions: Mapping[str, CostFunction]):
        self.space, self.functions = space, dict(functions)
        self._known: dict[Point, tuple[float, ...]] = {}

    def __call__(self, points: Sequence[Point]) -> dict[str, np.ndarray]:
        fresh = [p for p in dict.fromkeys(map(tuple, points)) if p not in self._known]
        if fresh:
            columns = [self._compute(f, fresh).tolist() for f in self.functions.values()]
            self._known.update(zip(fresh, zip(*columns, strict=True), strict=True))
        rows = np.array([self._known[tuple(p)] for p in points]).reshape(
            len(points), len(self.functions)
        )
        return dict(zip(self.functions, rows.T, strict=True))

    def _compute(self, function: CostFunction, points: Sequence[Point]) -> np.ndarray:
        """Returns the costs [N], computed for all points at once if that is quicker."""
        if function in (cost.madds, cost.params):
            return self.space.counts(points)[:, 0 if function is cost.madds else 1]
        if isinstance(function, PredictedCost):
            return function.predictor.expect(points)
        return np.array([float(function(self.space.to_spec(p))) for p in points])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a search looks for: the networks of a space with the highest rewards.

    Attributes:
      space: The space of the networks.
      costs: The costs of points.
      cost_name: The first cost that the rewards take into account, in which costs are reported.
      rewards: One reward for each target, by the target's name.
      proxy: The proxy that predicts accuracy; None for other evaluators.
    """

    space: Space
    costs: Costs
    cost_name: str
    rewards: Mapping[str, Reward]
    proxy: Proxy | None = None


def cost_names(config: ConfigDict) -> list[str]:
    """Returns the names in `config.cost`, which are separated by commas."""
    return [name.strip() for name in config.cost.split(",")]


def check_cost(config: ConfigDict, space: Space, proxy: Proxy | None) -> None:
    """Checks `config.cost`, `.latency`, `.relative_to` and `.targets` before anything is measured.

    Raises:
      UsageError: The latency table cannot be used.
      ValueError: Another value is wrong; the message names its field.
    """
    names = cost_names(config)
    for name in names:
        choose("cost", name, (*UNITS, *(proxy.costs if proxy else ())))
    if len(set(names)) < len(names):
        raise ValueError(f"cost: got {config.cost!r}, which names a cost twice")
    for name, target in config.targets.items():
        if isinstance(target, str):
            reference_network(target, space)
        else:
            check_number(f"targets.{name}", target, above=0)
            if len(names) > 1 and config.relative_to is None:
                raise ValueError(
                    f"targets.{name}: got {target!r} for several costs, {config.cost}; give a "
                    "network's name, or say with relative_to what it is a fraction of"
                )
    if "ms" in names:
        for name in ("networks", "check", "threads"):
            check_whole(f"latency.{name}", config.latency[name], 1)
        choose("latency.target", config.latency.target, (None, *TARGETS))
        if config.latency.get("max_error") is not None:
            check_number("latency.max_error", config.latency.max_error, above=0)
        if config.latency.table:
            read_table(Path(config.latency.table))
    if config.relative_to not in (None, "space"):
        reference_network(config.relative_to, space)


def cost_functions(
    config: ConfigDict, space: Space, proxy: Proxy | None, table_path: Path, console: Console
) -> tuple[dict[str, CostFunction], str | None]:
    """Returns the cost functions that `config.cost` names, and where their figures come from.

    For "ms" the figures come from the latency table `config.latency.table`, which `latency
    measure` or a phone produced. Where that is None, `networks` random networks and another
    `check` networks that are held out from the fit are measured on this machine. An existing
    table at `table_path` is completed.

    Args:
      config: The search's configuration.
      space: The space whose networks are measured.
      proxy: Predicts the columns of its table.
      table_path: Where a table that is measured here is written.
      console: Where progress is printed.

    Returns:
      Functions by the cost's name, and a description of runtime and machine or of the table of
      networks, which is None for what is counted.

    Raises:
      UsageError: The table belongs to another machine or is damaged.
      RunError: A network cannot be run, or latency is predicted worse than
        `config.latency.max_error` allows.
    """
    functions: dict[str, CostFunction] = {}
    sources = []
    for name in cost_names(config):
        if name in COUNTS:
            functions[name] = COUNTS[name]
        elif name == "ms":
            functions[name], source = _latency(config.latency, space, table_path, console)
            sources.append(source)
        else:
            assert proxy is not None, "check_cost has refused it"
            functions[name] = proxy.cost(name)
            sources.append(f"{name} as {proxy.table.name} predicts it")
    return functions, "; ".join(sources) or None


def _latency(
    options: ConfigDict, space: Space, table_path: Path, console: Console
) -> tuple[CostFunction, str]:
    if options.table:
        table = read_table(Path(options.table))
    else:
        target = options.target or best_runtime()
        table = open_table(table_path, target, options.threads)
        fitted, held_out = (
            [space.to_spec(p) for p in space.sample(np.random.default_rng(seed), count)]
            for seed, count in ((0, options.networks), (1, options.check))
        )
        pieces = unique(fitted)
        console.print(f"latency: measuring {len(pieces)} pieces of networks by {LABELS[target]}")
        with tempfile.TemporaryDirectory() as files:
            fill_table(table_path, table, Path(files), pieces, fitted=fitted, held_out=held_out)
    if not table.pieces:
        raise UsageError(f"config: latency.table: {options.table} has no pieces to fit a model on")
    model = cost_model.fit(table)
    if errors := cost_model.judge(model, table):
        console.print(
            f"latency: mean error {errors.mape:.1f}%, Spearman {errors.spearman:.2f} on "
            f"{errors.networks} networks that the model never saw"
        )
        limit = options.get("max_error")  # absent in folders from before it existed
        if limit is not None and errors.mape > limit:
            advice = (
                f"give another latency.table than {options.table} or a higher limit"
                if options.table
                else f"delete {table_path} to measure it again when the machine is quiet, or "
                "choose another --workdir with more latency.networks or a higher limit"
            )
            raise RunError(
                f"latency is predicted with a mean error of {errors.mape:.1f}%, more than "
                f"latency.max_error={limit:g}; {advice}"
            )
    return model, describe_setup(table)


def reference_network(name: str, space: Space) -> NetSpec:
    """Returns a published network with the resolution, classes and other constants of a space.

    Raises:
      ValueError: No network has this name; the message lists the names.
    """
    choose("a network", name, tables.TABLES)
    base = space.base
    kept = ("resolution", "num_classes", "padding", "bn_eps", "bn_decay", "dropout")
    return tables.TABLES[name]().replace(**{field: getattr(base, field) for field in kept})


# The widths of a reference that is fitted to the cost of a target.
_WIDTHS = (0.25, 3.0, 0.01)  # from, to, step


def fit_reference(name: str, space: Space, function: CostFunction, target: float) -> NetSpec:
    """Returns a published network made for the images of a space, at the cost of a target.

    At 32 pixels a network made for 224 would end with a single pixel. So its last strides are left
    out until its last maps are as large as those of the networks of the space, or half as large if
    the target is too low for that. The width is the one whose cost is nearest to the target; it
    also scales the layer before the logits.

    Args:
      name: The name of the network.
      space: The space that gives the resolution, classes, other constants and strides.
      function: The cost function.
      target: The cost to reach.

    Raises:
      ValueError: No network has this name; the message lists the names.
    """
    spec = reference_network(name, space)
    most = space.base.stem.stride * math.prod(stage.stride for stage in space.stages)
    low, high, step = _WIDTHS
    widths = [low + step * i for i in range(round((high - low) / step) + 1)]
    for reduction in (most, 2 * most):
        reduced = _reduce(spec, reduction)
        scaled = [scale_width(reduced, width, "torchvision") for width in widths]
        if function(scaled[0]) <= target:
            break
    return min(scaled, key=lambda s: abs(math.log(function(s) / target)))


def _reduce(spec: NetSpec, most: int) -> NetSpec:
    """Returns the network without the strides after which it would reduce more than `most`."""
    passed, blocks = spec.stem.stride, []
    for block in spec.blocks:
        stride = block.stride if passed * block.stride <= most else 1
        passed *= stride
        blocks.append(dataclasses.replace(block, stride=stride))
    return spec.replace(blocks=tuple(blocks))
