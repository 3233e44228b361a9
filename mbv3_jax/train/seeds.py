"""Several seeds at once: one run per seed, trained together by one program, for error bars.

The step has a further axis over the seeds (`jax.vmap`). Initial weights, the order of the data,
augmentation and dropout are those of each run alone. Only the order of sums may differ, so that
trained weights agree up to float32 rounding. WORKDIR/seed0, WORKDIR/seed1, ... are run folders like
any other, with the configuration of a run of that seed alone; WORKDIR/summary.json has the mean and
the standard deviation over them.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mbv3_jax.core.files import write_atomically
from mbv3_jax.run.metrics import means
from mbv3_jax.train.experiment import Experiment
from mbv3_jax.train.sharding import replicated
from mbv3_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One run: its folder, its configuration and its seed.

    suffix: follows "step 5" in messages, if there are several runs.
    """

    folder: Path
    config: ConfigDict
    seed: int
    suffix: str = ""


def seed_runs(config: ConfigDict, workdir: Path) -> list[SeedRun]:
    """The run of a configuration, or those of its seeds."""
    if config.seeds is None:
        return [SeedRun(workdir, config, config.seed)]
    runs = []
    for seed in config.seeds:
        alone = ConfigDict(config.to_dict())
        alone.seed, alone.seeds = seed, None
        runs.append(SeedRun(workdir / f"seed{seed}", alone.lock(), seed, f" of seed {seed}"))
    return runs


class TrainBatches(Protocol):
    """An iterator of host batches, as `loader.Batches` is one."""

    @property
    def skipped(self) -> dict[str, int]:
        """How many examples could not be read, by message."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def close(self) -> None:
        """Ends reading ahead."""


class Stack:
    """Joins and splits what belongs to several runs; with a single run it changes nothing.

    Args:
      experiment: what is trained; its plan says with how many seeds.
    """

    def __init__(self, experiment: Experiment):
        self._experiment, self._seeds = experiment, experiment.plan.seeds
        self.batch_axis = 1 if self._seeds else 0  # of the examples
        sharding = replicated(experiment.mesh)
        self._join = jax.jit(
            lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), out_shardings=sharding
        )
        self._split = jax.jit(self._take_apart, out_shardings=sharding)

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The states of all runs as one, with a first axis over the runs."""
        return self._join(*states) if self._seeds else states[0]

    def split(self, tree: Any) -> list[Any]:
        """A tree for each run, from one of arrays on the device or on the host."""
        if not self._seeds:
            return [tree]
        on_host = isinstance(jax.tree.leaves(tree)[0], np.ndarray)
        return self._take_apart(tree) if on_host else self._split(tree)

    def _take_apart(self, tree: Any) -> list[Any]:
        return [jax.tree.map(itemgetter(i), tree) for i in range(len(self._seeds))]

    def train_batches(self, start_step: int, *, on_skip: Callable[[str], None]) -> TrainBatches:
        """The training batches of all runs; see `Experiment.train_batches`."""
        if not self._seeds:
            return self._experiment.train_batches(start_step, on_skip=on_skip)
        return _StackedBatches(
            [
                self._experiment.train_batches(start_step, seed=seed, on_skip=on_skip)
                for seed in self._seeds
            ]
        )


class _StackedBatches(Iterator):
    """The batches of several loaders, with a first axis over them."""

    def __init__(self, loaders: Sequence[TrainBatches]):
        self._loaders = loaders

    def __next__(self) -> dict[str, np.ndarray]:
        batches = [next(loader) for loader in self._loaders]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    @property
    def skipped(self) -> dict[str, int]:
        """Of one run: all runs read the same examples."""
        return self._loaders[0].skipped

    def close(self) -> None:
        for loader in self._loaders:
            loader.close()


def summarize(
    workdir: Path, seeds: Sequence[int], summaries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Writes and returns the summary of all seeds.

    Returns:
      {"seeds", "steps", "epochs", "weights", "split", "seconds", "images_per_second", "count",
      "eval"}: "eval" has for each measure the mean, the standard deviation (of the sample, n - 1)
      and the values in the order of the seeds; and "test" the same, if there is a third split.
    """
    first = summaries[0]

    def statistics_of(kind: str) -> dict[str, Any]:
        measured = {}
        for name in means(first[kind]):
            if name not in ("count", "unreadable", "split", "step"):
                values = [summary[kind][name] for summary in summaries]
                std = statistics.stdev(values) if len(values) > 1 else None
                measured[name] = {"mean": statistics.fmean(values), "std": std, "values": values}
        return measured

    summary = {
        "seeds": list(seeds),
        **{name: first[name] for name in ("steps", "epochs", "weights", "split", "seconds")},
        "images_per_second": sum(summary["images_per_second"] for summary in summaries),
        "count": first["eval"]["count"],
        "eval": statistics_of("eval"),
    }
    if "test" in first:
        summary["test"] = statistics_of("test")
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=1))
    return summary
