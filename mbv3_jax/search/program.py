"""A whole search, which `main.py` runs for a configuration with program="search".

Its folder (`configs/search/small.py` has the fields of the configuration):

config.json            what it was started with; another configuration is refused
candidates/            a run folder for each brief training, and the specs
rounds.json            what the surrogate learns from, after every round
found.json             what was chosen for each target, with the controllers' rewards
small.json, large.json the chosen networks, for configs/found.py:spec=FILE
runs/small, runs/large their trainings
search.json            the result; the search report is drawn from it

A stage that has ended is read back, not repeated; trainings go on from their checkpoints, so that
a search that was cut off at any moment ends as one that was not.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.train import run_folder
from mbv3_jax.train.errors import UsageError


class Search:
    """The stages of one search; see the module."""

    def __init__(self, config: ConfigDict, folder: Path, console: Console):
        from mbv3_jax.search.costs import Costs
        from mbv3_jax.search.presets import preset
        from mbv3_jax.search.rewards import COUNTS, Reward

        self.config, self.folder, self.console = config, folder, console
        options = config.space.to_dict()
        try:
            self.space = preset(options.pop("name")).replace(**options)
            self.rewards = {
                name: Reward(targets={"madds": target}, **config.reward)
                for name, target in config.targets.items()
            }
        except (TypeError, ValueError) as e:
            raise UsageError(f"config: {e}") from e
        self.costs = Costs(self.space, COUNTS)

    def rounds(self):
        """Trains candidates in rounds; returns the surrogate and its agreement."""
        from mbv3_jax.search.evaluators.surrogate import Rounds
        from mbv3_jax.search.trainings import Trainings

        folder = self.folder / "candidates"
        trainings = Trainings(self.space, self.config.brief, folder, self.console)
        rounds = Rounds(self.space, trainings, self._interleaved, self.config.seed)
        file = self.folder / "rounds.json"
        if file.exists():
            rounds.load(json.loads(file.read_text()))

        def save(rounds):
            run_folder.write_atomically(file, json.dumps(rounds.state()))
            self.console.print(f"candidates trained: {len(rounds.trained)}")

        surrogate = rounds.run(**self.config.rounds, after_round=save)
        return surrogate, rounds

    def find(self, surrogate) -> dict:
        """Chooses a network for each target, and writes found.json and the specs."""
        from mbv3_jax.arch.spec import to_json

        file = self.folder / "found.json"
        if file.exists():
            return json.loads(file.read_text())
        found = {}
        for name, reward in self.rewards.items():
            trace: list[float] = []
            (point,) = self._propose(
                surrogate,
                reward,
                self.config.seed,
                1,
                lambda _, points, rewards, trace=trace: trace.append(float(rewards.mean())),
            )
            accuracy, uncertainty = surrogate.evaluate([point])
            found[name] = {
                "point": point,
                "target": reward.targets["madds"],
                "madds": self.costs([point])["madds"].item(),
                "predicted": accuracy.item(),
                "uncertainty": uncertainty.item(),
                "rewards": trace,
            }
            text = to_json(self.space.to_spec(point, name=f"found_{name}"))
            run_folder.write_atomically(self.folder / f"{name}.json", text)
        run_folder.write_atomically(file, json.dumps(found))
        return found

    def train(self, found: dict) -> dict:
        """Trains each chosen network from scratch; returns the summaries of the runs."""
        from mbv3_jax.train.loop import train

        summaries = {}
        for name in found:
            config = self.config.final.copy_and_resolve_references()
            with config.unlocked():
                config.spec, config.seed = str(self.folder / f"{name}.json"), self.config.seed
            self.console.print(f"training {name}: {found[name]['madds'] / 1e6:.2f} million MAdds")
            summaries[name] = train(config.lock(), self.folder / "runs" / name, self.console)
        return summaries

    def run(self) -> dict:
        """All stages; returns what is in search.json."""
        surrogate, rounds = self.rounds()
        agreement = rounds.agreement
        self.console.print(agreement.describe())
        found = self.find(surrogate)
        summaries = self.train(found)
        points = [p for p, _ in rounds.trained]
        result = {
            "space": self.space.name,
            "resolution": self.space.base.resolution,
            "num_classes": self.space.base.num_classes,
            "agreement": {"spearman": agreement.spearman, "count": agreement.count},
            "candidates": [
                {"point": p, "top1": top1, "madds": madds}
                for (p, top1), madds in zip(
                    rounds.trained, self.costs(points)["madds"].tolist(), strict=True
                )
            ],
            "found": {
                name: found[name] | {"top1": summary["eval"]["top1"], "split": summary["split"]}
                for name, summary in summaries.items()
            },
        }
        run_folder.write_atomically(self.folder / "search.json", json.dumps(result, indent=1))
        return result

    def _propose(self, surrogate, reward, seed, count, after_step=lambda *_: None):
        from mbv3_jax.search.propose import propose

        return propose(
            self.space,
            surrogate,
            self.costs,
            reward,
            seed=seed,
            count=count,
            after_step=after_step,
            **self.config.controller,
        )

    def _interleaved(self, surrogate, seed: int, count: int) -> list:
        """The best for each target in turn."""
        lists = [self._propose(surrogate, r, seed, count) for r in self.rewards.values()]
        return [point for points in zip(*lists, strict=False) for point in points]


def run(config: ConfigDict, workdir: Path, console: Console) -> str:
    """Searches in the folder `workdir`, going on where an earlier search stopped.

    Returns:
      What to print at the end.

    Raises:
      UsageError: the configuration is wrong, or the folder is another's, or in use.
      RunError, Preempted, KeyboardInterrupt: as `train.loop.train`.
    """
    search = Search(config, workdir, console)
    path = workdir / "config.json"
    if path.exists():
        run_folder.check_same(workdir, config, run_folder.read_config(workdir))
    elif workdir.exists() and any(workdir.iterdir()):
        raise UsageError(f"{workdir} is no search folder; choose another with --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    from mbv3_jax.train import config as configs

    with run_folder.hold(workdir):
        if not path.exists():
            run_folder.write_atomically(path, configs.to_json(config))
        result = search.run()
    lines = [
        f"{name}: {one['madds'] / 1e6:.2f} million MAdds (target {one['target'] / 1e6:.2f}), "
        f"top-1 {one['top1']:.2%} on {one['split']}, spec: {workdir / name}.json"
        for name, one in result["found"].items()
    ]
    return "\n".join([*lines, f"search folder: {workdir}"])
