"""A whole search, which `main.py` runs for a configuration with program="search".

The stages: read the configuration, price networks, choose a network for each target by shared
weights, a surrogate or a proxy, narrow it by NetAdapt, train it, report. `configs/search/small.py`
has the fields of the configuration. The folder:

config.json, format.json    the configuration, and the version of the folder's format
table.json                  the table of networks, if a proxy downloaded it
latency.json                the latency table, if costs are measured here
supernet/, candidates/      the shared weights; a run folder for each brief training
rounds.json                 what the surrogate learns from, after every round
found.json                  the choice for each target, with the rewards on the way
NAME_found.json, NAME.json  the network before NetAdapt, and after it for configs/found.py
adapted/NAME                NetAdapt's folders
runs/NAME_found, NAME, ...  run folders of the trainings
references/NAME.json        the networks to compare with
search.json                 the result, which `report` draws

A stage that has ended is read back instead of repeated, and trainings are resumed from their
checkpoints, so that an interrupted search ends with the same result as one that was not.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec, spec_to_json
from mbv3_jax.core.checks import choose, flag
from mbv3_jax.core.errors import RunError, UsageError, plain
from mbv3_jax.core.files import check_storable, write_atomically
from mbv3_jax.core.json_values import Number, read_json
from mbv3_jax.latency.measure import measure_spec
from mbv3_jax.latency.table import read_table
from mbv3_jax.run.config import config_to_json
from mbv3_jax.run.folder import check_same_config, is_before_config, lock_folder, write_format
from mbv3_jax.search import accel_nasbench
from mbv3_jax.search.netadapt.adapt import shrink
from mbv3_jax.search.network_table import write_network_table
from mbv3_jax.search.objective import (
    COUNTS,
    UNITS,
    CostFunction,
    Costs,
    Problem,
    Reward,
    check_cost,
    cost_functions,
    cost_names,
    fit_reference,
    reference_network,
)
from mbv3_jax.search.selection import EVALUATORS, Selection
from mbv3_jax.search.settings import (
    check_numbers,
    open_proxy,
    open_space,
    read_search_config,
    seed_config,
)
from mbv3_jax.search.strategies import Strategy, config_strategy
from mbv3_jax.train.loop import train

_AGAIN = "remove it and run the same command again: it is made of what is in the folder"
_CHOSEN = "the same command chooses again from what has been trained"


class _Cost(TypedDict):
    unit: str


class _Entry(TypedDict):
    cost: Number
    target: Number
    madds: Number
    top1: NotRequired[Number]
    split: NotRequired[str]
    predicted: NotRequired[Number]
    uncertainty: NotRequired[Number]


class Result(TypedDict):
    """What search.json holds, as far as `run` prints it; `report` reads all of it."""

    cost: _Cost
    found: dict[str, _Entry]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pricing:
    """What networks cost in a search.

    Attributes:
      functions: The costs of a network by their names; the first is the one that is reported.
      source: Where their figures come from; None for what is counted.
      targets: The costs that each final network may have, by the target's name.
      problem: What is searched for. NetAdapt goes the last part of the way, so the rewards are for
        `config.netadapt.start` times the targets.
    """

    functions: Mapping[str, CostFunction]
    source: str | None
    targets: Mapping[str, Mapping[str, float]]
    problem: Problem

    def cost(self, spec: NetSpec) -> float:
        """Returns the cost of a network that is reported, and that NetAdapt cuts."""
        return float(self.functions[self.problem.cost_name](spec))


class Search:
    """The stages of one search in a folder.

    Args:
      config: The search's configuration.
      folder: Where everything is written.
      console: Where progress is printed.

    Raises:
      UsageError: A value of the configuration is wrong. Nothing has been measured, trained or
        written yet.
    """

    def __init__(self, config: ConfigDict, folder: Path, console: Console):
        self.config, self.folder, self.console = config, folder, console
        try:
            choose("evaluator", config.evaluator, EVALUATORS)
            self.proxy = open_proxy(config, folder) if config.evaluator == "proxy" else None
            self.space = open_space(config, self.proxy)
            check_cost(config, self.space, self.proxy)
            check_numbers(config)
            self.references: dict[str, NetSpec] = {
                name: reference_network(name, self.space) for name in config.references
            }
            # Absent in folders from before it existed.
            self.fits_references = flag("fit_references", config.get("fit_references", False))
            self.strategy: Strategy | None = config_strategy(config, self.space)
            _rewards(config, {t: dict.fromkeys(cost_names(config), 1.0) for t in config.targets})
        except (TypeError, ValueError) as e:
            raise UsageError(f"config: {e}") from e

    @property
    def trains(self) -> bool:
        """Whether the networks are trained at the end; a search with a proxy needs no training."""
        return self.config.get("train", True)

    def run(self) -> dict:
        """Runs all stages that have not ended; returns the content of search.json."""
        file = self.folder / "search.json"
        if file.exists():
            return dict(read_json(file, Result, advice=_AGAIN))
        pricing = self.price()
        selection = self.choose(pricing.problem)
        if selection["agreement"]["text"]:
            self.console.print(selection["agreement"]["text"])
        networks, references = {}, {}
        for name, choice in selection["found"].items():
            steps = self.adapt(pricing, name)
            path = self.folder / f"{name}.json"
            summary = self.train(name, path, self.config.final) if self.trains else None
            entry = self.entry(pricing, read_json(path, NetSpec), summary)
            target = pricing.targets[name][pricing.problem.cost_name]
            networks[name] = choice | entry | {"target": target, "adapted": steps}
        for name, spec in self.comparisons(pricing).items():
            path = self.folder / "references" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, spec_to_json(spec))
            summary = self.train(name, path, self.config.final) if self.trains else None
            references[name] = self.entry(pricing, spec, summary)
        result = {
            "space": self.space.name,
            "resolution": self.space.base.resolution,
            "num_classes": self.space.base.num_classes,
            "cost": {
                "name": pricing.problem.cost_name,
                "unit": self.unit(pricing.problem.cost_name),
                "source": pricing.source,
            },
            "evaluator": self.config.evaluator,
            "agreement": selection["agreement"],
            "candidates": selection["candidates"],
            "found": networks,
            "references": references,
        }
        write_atomically(file, json.dumps(result, indent=1))
        return result

    def price(self) -> Pricing:
        """Returns the cost functions, the targets, and with both what to search for."""
        config = self.config
        kept = self.folder / "table.json"
        if self.proxy and config.proxy.table == accel_nasbench.NAME and not kept.exists():
            write_network_table(kept, self.proxy.table)
        functions, source = cost_functions(
            config, self.space, self.proxy, self.folder / "latency.json", self.console
        )
        costs = Costs(self.space, COUNTS | functions)
        units = dict.fromkeys(functions, 1.0)
        if config.relative_to == "space":
            points = self.space.sample(np.random.default_rng(0), 100)
            units = {name: float(np.median(costs(points)[name])) for name in functions}
        elif config.relative_to:
            units = self._costs_of(functions, config.relative_to)
        targets = {
            name: self._costs_of(functions, target)
            if isinstance(target, str)
            else {cost: target * unit for cost, unit in units.items()}
            for name, target in config.targets.items()
        }
        start = config.netadapt.start if config.netadapt.enabled else 1.0
        rewards = _rewards(
            config,
            {n: {c: start * value for c, value in target.items()} for n, target in targets.items()},
        )
        problem = Problem(
            space=self.space,
            costs=costs,
            cost_name=next(iter(functions)),
            rewards=rewards,
            proxy=self.proxy,
        )
        return Pricing(functions=functions, source=source, targets=targets, problem=problem)

    def comparisons(self, pricing: Pricing) -> dict[str, NetSpec]:
        """Returns the networks to compare with: as published, or fitted to each target."""
        if not self.fits_references:
            return self.references
        function = pricing.functions[pricing.problem.cost_name]
        return {
            f"{name}_for_{target}": fit_reference(
                name, self.space, function, costs[pricing.problem.cost_name]
            ).replace(name=f"{name}_for_{target}")
            for name in self.references
            for target, costs in pricing.targets.items()
        }

    def _costs_of(self, functions: Mapping[str, CostFunction], network: str) -> dict[str, float]:
        spec = reference_network(network, self.space)
        try:
            return {name: float(function(spec)) for name, function in functions.items()}
        except ValueError as e:  # a proxy knows only the networks of its space
            raise UsageError(f"config: {network} has no predicted cost: {e}") from e

    def unit(self, cost_name: str) -> str:
        """Returns the unit of a cost."""
        if cost_name in UNITS:
            return UNITS[cost_name]
        assert self.proxy is not None, "check_cost has refused it"
        column = self.proxy.table.columns[cost_name]
        return f"1 / ({column.unit})" if column.higher_is_better else column.unit

    def choose(self, problem: Problem) -> dict:
        """Chooses a network for each target; returns the content of found.json."""
        file = self.folder / "found.json"
        if file.exists():
            return self._read_selection(file)
        by_evaluator = EVALUATORS[self.config.evaluator]
        selection = by_evaluator(self.config, problem, self.strategy, self.folder, self.console)
        for name, choice in selection["found"].items():
            spec = self.space.to_spec(choice["point"], name=f"found_{name}")
            write_atomically(self.folder / f"{name}_found.json", spec_to_json(spec))
        write_atomically(file, json.dumps(selection))
        return selection

    def _read_selection(self, file: Path) -> dict:
        advice = f"remove it; {_CHOSEN}"
        selection = read_json(file, Selection, advice=advice)
        if selection["found"].keys() != set(self.config.targets):
            raise RunError(
                f"{file} is damaged: found: got {', '.join(selection['found']) or 'no network'}, "
                f"expected {', '.join(self.config.targets)}; {advice}"
            )
        return dict(selection)

    def adapt(self, pricing: Pricing, name: str) -> list[dict]:
        """Narrows the chosen network down to the target, writes NAME.json; returns the steps."""
        path = self.folder / f"{name}_found.json"
        spec, steps = read_json(path, NetSpec, advice=f"remove it and found.json; {_CHOSEN}"), []
        options = self.config.netadapt
        target = pricing.targets[name][pricing.problem.cost_name]
        if options.enabled and pricing.cost(spec) > target:
            self.train(f"{name}_found", path, seed_config(self.config))
            result = shrink(
                self.folder / "runs" / f"{name}_found",
                pricing.cost,
                target,
                self.folder / "adapted" / name,
                steps=options.steps,
                delta=options.delta,
                max_proposals=options.max_proposals,
                eval_split=options.eval_split,
                seed=self.config.seed,
                console=self.console,
            )
            spec = result["spec"]
            steps = [{k: s[k] for k in ("change", "cost", "accuracy")} for s in result["steps"]]
        spec = spec.replace(name=f"found_{name}")
        write_atomically(self.folder / f"{name}.json", spec_to_json(spec))
        return steps

    def train(self, name: str, spec: Path, config: ConfigDict) -> dict:
        """Trains a network from scratch; returns the run's summary, also if it had ended before."""
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.spec, config.seed = str(spec), self.config.seed
        self.console.print(f"training {name}")
        return train(config.lock(), self.folder / "runs" / name, self.console)

    def entry(self, pricing: Pricing, spec: NetSpec, summary: dict | None) -> dict:
        """Returns what search.json says about a network, with the summary of its training."""
        costs: dict[str, float | None] = {}
        for name, function in pricing.functions.items():
            try:
                costs[name] = float(function(spec))
            except ValueError:  # a reference outside the space of the proxy
                costs[name] = None
        entry = {
            "spec": dataclasses.asdict(spec),
            "cost": costs[pricing.problem.cost_name],
            "costs": costs,
            "measured": self._measured(spec),
            "madds": cost.madds(spec),
        }
        if self.proxy and not self.proxy.predictor(self.proxy.accuracy).outside([spec])[0]:
            accuracy, deviation = self.proxy.evaluate([spec])
            entry |= {"predicted": accuracy.item(), "uncertainty": deviation.item()}
        if summary is not None:
            entry |= {"top1": summary["eval"]["top1"], "split": summary["split"]}
        return entry

    def _measured(self, spec: NetSpec) -> float | None:
        """The milliseconds of the whole network, if the latency table is of this machine."""
        if "ms" not in cost_names(self.config) or self.config.latency.table:
            return None
        table = read_table(self.folder / "latency.json")
        try:
            return measure_spec(spec, table.target, threads=table.threads).ms
        except RunError as e:
            self.console.print(f"{spec.name}: not measured ({e})")
            return None


def run(config: ConfigDict, workdir: Path, console: Console) -> str:
    """Searches in a folder, or resumes the search there.

    Args:
      config: The search's configuration.
      workdir: The search's folder.
      console: Where progress is printed.

    Returns:
      The text to print at the end.

    Raises:
      UsageError: The configuration is wrong, there are several processes, or the folder is in use,
        holds something else or was written by a newer version.
      RunError, Preempted, KeyboardInterrupt: As `train.loop.train`.
    """
    if (count := jax.process_count()) > 1:
        raise UsageError(
            f"a search runs in one process, over all of its devices; this is one of {count}"
        )
    check_storable(workdir, "choose another --workdir")
    for name in config.get("targets", ()):  # they become folders
        check_storable(workdir / name, f"config: targets: {name!r} needs another name")
    search = Search(config, workdir, console)
    path = workdir / "config.json"
    if path.exists():
        check_same_config(workdir, config, read_search_config(workdir))
    elif workdir.exists() and not all(is_before_config(p.name) for p in workdir.iterdir()):
        raise UsageError(f"{workdir} is not a search folder; choose another with --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_folder(workdir):
        if not path.exists():
            write_format(workdir)
            write_atomically(path, config_to_json(config))
        result = search.run()
    unit = result["cost"]["unit"]
    lines = [
        f"{name}: {plain(network['cost'])} {unit} (target {plain(network['target'])}), "
        f"{network['madds'] / 1e6:.2f} million MAdds, {_accuracy(network)}, "
        f"spec: {workdir / name}.json"
        for name, network in result["found"].items()
    ]
    return "\n".join([*lines, f"search folder: {workdir}"])


def _accuracy(network: Mapping) -> str:
    if "top1" in network:
        return f"top-1 {network['top1']:.2%} on {network['split']}"
    return f"predicted top-1 {network['predicted']:.2%} ± {network['uncertainty']:.2%}"


def _rewards(config: ConfigDict, targets: Mapping[str, Mapping[str, float]]) -> dict[str, Reward]:
    return {name: Reward(targets=target, **config.reward) for name, target in targets.items()}
