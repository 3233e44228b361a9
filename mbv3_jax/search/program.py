"""A whole search, which `main.py` runs for a configuration with program="search".

Its folder (`configs/search/small.py` has the fields of the configuration):

config.json            what it was started with; another configuration is refused
latency.json           the latency table, where cost is measured here
supernet/, candidates/ the shared weights; a run folder for each brief training
rounds.json            what the surrogate learns from, after every round
found.json             what was chosen for each target, with the controllers' rewards
NAME_found.json        the chosen networks, before NetAdapt
NAME.json              and after it, for configs/found.py:spec=FILE
adapted/NAME           NetAdapt's log and weights
runs/NAME_found, NAME, REFERENCE   their trainings
search.json            the result; `report` draws it

A stage that has ended is read back, not repeated; trainings go on from their checkpoints, so that
a search that was cut off at any moment ends as one that was not.
"""

import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.run.folder import check_same_config, lock_folder, read_config


class Search:
    """The stages of one search; see the module."""

    def __init__(self, config: ConfigDict, folder: Path, console: Console):
        from mbv3_jax.core.checks import choose
        from mbv3_jax.search.objective import check_cost, reference
        from mbv3_jax.search.presets import preset
        from mbv3_jax.search.selection import EVALUATORS

        self.config, self.folder, self.console = config, folder, console
        options = config.space.to_dict()
        try:
            self.space = preset(options.pop("name")).replace(**options)
            choose("evaluator", config.evaluator, EVALUATORS)
        except (TypeError, ValueError) as e:
            raise UsageError(f"config: {e}") from e
        check_cost(config, self.space)
        self._check_numbers()
        self.references = {name: reference(name, self.space) for name in config.references}
        self._rewards({name: 1.0 for name in config.targets})  # wrong values, before anything runs

    def _check_numbers(self) -> None:
        """What the controllers, or NetAdapt, would refuse after hours."""
        from mbv3_jax.core.checks import check_number, check_whole, flag

        options, controller = self.config.netadapt, self.config.controller
        try:
            check_whole("check", self.config.check, 0)
            check_whole("controller.points", controller.points, 1)
            if controller.learning_rate not in (None, "tunas"):
                check_number("controller.learning_rate", controller.learning_rate, above=0)
            if flag("netadapt.enabled", options.enabled):
                check_number("netadapt.start", options.start, at_least=1)
                check_number("netadapt.delta", options.delta, above=0, below=1)
                check_whole("netadapt.steps", options.steps, 1)
                if options.max_proposals is not None:
                    check_whole("netadapt.max_proposals", options.max_proposals, 1)
        except ValueError as e:
            raise UsageError(f"config: {e}") from e

    def price(self) -> None:
        """What networks cost, and the targets in its unit."""
        from mbv3_jax.search.objective import COUNTS, Costs, price, reference

        config = self.config
        self.cost, self.source = price(config, self.space, self.folder, self.console)
        self.costs = Costs(self.space, COUNTS | {config.cost: self.cost})
        unit = 1.0
        if config.relative_to == "space":
            drawn = self.space.sample(np.random.default_rng(0), 100)
            unit = float(np.median(self.costs(drawn)[config.cost]))
        elif config.relative_to:
            unit = float(self.cost(reference(config.relative_to, self.space)))
        self.targets = {name: part * unit for name, part in config.targets.items()}
        # NetAdapt goes the last part of the way.
        start = config.netadapt.start if config.netadapt.enabled else 1.0
        self.rewards = self._rewards({n: start * t for n, t in self.targets.items()})

    def _rewards(self, targets: dict) -> dict:
        from mbv3_jax.search.objective import Reward

        try:
            return {
                name: Reward(targets={self.config.cost: target}, **self.config.reward)
                for name, target in targets.items()
            }
        except (TypeError, ValueError) as e:
            raise UsageError(f"config: {e}") from e

    def find(self) -> dict:
        """Chooses a network for each target; what is in found.json."""
        from mbv3_jax.arch.spec import spec_to_json
        from mbv3_jax.search.selection import EVALUATORS

        file = self.folder / "found.json"
        if file.exists():
            return json.loads(file.read_text())
        found = EVALUATORS[self.config.evaluator](self)
        for name, one in found["found"].items():
            spec = self.space.to_spec(one["point"], name=f"found_{name}")
            write_atomically(self.folder / f"{name}_found.json", spec_to_json(spec))
        write_atomically(file, json.dumps(found))
        return found

    def train(self, name: str, spec: Path) -> dict:
        """Trains a network from scratch, or finds that it has been; returns the run's summary."""
        from mbv3_jax.train.loop import train

        config = self.config.final.copy_and_resolve_references()
        with config.unlocked():
            config.spec, config.seed = str(spec), self.config.seed
        self.console.print(f"training {name}")
        return train(config.lock(), self.folder / "runs" / name, self.console)

    def adapt(self, name: str) -> list[dict]:
        """NetAdapt from what was found down to the target; writes NAME.json, returns its steps."""
        from mbv3_jax.arch.spec import spec_from_json, spec_to_json
        from mbv3_jax.search.netadapt.adapt import shrink

        before = self.folder / f"{name}_found.json"
        spec, steps = spec_from_json(before.read_text()), []
        options = self.config.netadapt
        if options.enabled and self.cost(spec) > self.targets[name]:
            self.train(f"{name}_found", before)
            result = shrink(
                self.folder / "runs" / f"{name}_found",
                self.cost,
                self.targets[name],
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

    def entry(self, spec, summary: dict) -> dict:
        """What search.json says of a network that was trained to the end."""
        from mbv3_jax.arch import cost
        from mbv3_jax.arch.spec import spec_to_json

        return {
            "spec": json.loads(spec_to_json(spec)),
            "cost": float(self.cost(spec)),
            "measured": self._measured(spec),
            "madds": cost.madds(spec),
            "top1": summary["eval"]["top1"],
            "split": summary["split"],
        }

    def _measured(self, spec) -> float | None:
        """Milliseconds of the whole network, where the table is of this machine."""
        if self.config.cost != "ms" or self.config.latency.table:
            return None
        from mbv3_jax.latency.measure import measure_spec
        from mbv3_jax.latency.table import read_table

        table = read_table(self.folder / "latency.json")
        try:
            return measure_spec(spec, table.target, threads=table.threads).ms
        except RunError as e:
            self.console.print(f"{spec.name}: not measured ({e})")
            return None

    def run(self) -> dict:
        """All stages; returns what is in search.json."""
        from mbv3_jax.arch.spec import spec_from_json, spec_to_json

        file = self.folder / "search.json"
        if file.exists():
            return json.loads(file.read_text())
        self.price()
        found = self.find()
        if found["agreement"]["text"]:
            self.console.print(found["agreement"]["text"])
        networks, references = {}, {}
        for name, one in found["found"].items():
            steps = self.adapt(name)
            path = self.folder / f"{name}.json"
            entry = self.entry(spec_from_json(path.read_text()), self.train(name, path))
            networks[name] = one | entry | {"target": self.targets[name], "adapted": steps}
        for name, spec in self.references.items():
            path = self.folder / "references" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, spec_to_json(spec))
            references[name] = self.entry(spec, self.train(name, path))
        from mbv3_jax.search.objective import UNITS

        result = {
            "space": self.space.name,
            "resolution": self.space.base.resolution,
            "num_classes": self.space.base.num_classes,
            "cost": {
                "name": self.config.cost,
                "unit": UNITS[self.config.cost],
                "source": self.source,
            },
            "evaluator": self.config.evaluator,
            "agreement": found["agreement"],
            "candidates": found["candidates"],
            "found": networks,
            "references": references,
        }
        write_atomically(file, json.dumps(result, indent=1))
        return result


def run(config: ConfigDict, workdir: Path, console: Console) -> str:
    """Searches in the folder `workdir`, going on where an earlier search stopped.

    Returns:
      What to print at the end.

    Raises:
      UsageError: the configuration is wrong, the folder is another's, or in use, or there are
        several processes.
      RunError, Preempted, KeyboardInterrupt: as `train.loop.train`.
    """
    if (count := jax.process_count()) > 1:
        raise UsageError(
            f"a search runs in one process, over all of its devices; this is one of {count}"
        )
    search = Search(config, workdir, console)
    path = workdir / "config.json"
    if path.exists():
        check_same_config(workdir, config, read_config(workdir))
    elif workdir.exists() and any(workdir.iterdir()):
        raise UsageError(f"{workdir} is no search folder; choose another with --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    from mbv3_jax.run.config import config_to_json

    with lock_folder(workdir):
        if not path.exists():
            write_atomically(path, config_to_json(config))
        result = search.run()
    unit = result["cost"]["unit"]
    lines = [
        f"{name}: {one['cost']:.4g} {unit} (target {one['target']:.4g}), "
        f"{one['madds'] / 1e6:.2f} million MAdds, top-1 {one['top1']:.2%} on {one['split']}, "
        f"spec: {workdir / name}.json"
        for name, one in result["found"].items()
    ]
    return "\n".join([*lines, f"search folder: {workdir}"])
