"""Several seeds at once: as many runs, trained in step by one program, for error bars.

The step has a further axis over the seeds (`jax.vmap`). First weights, order of the data, and what
augmentation and dropout draw are those of each run alone; only sums may be added in another order,
so that trained weights agree to float32 rounding. WORKDIR/seed0, WORKDIR/seed1, ... are run folders
like any other, with the configuration of a run of that seed alone; WORKDIR/summary.json has the
mean and the standard deviation over them.
"""

import contextlib
import dataclasses
import functools
import json
import statistics
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from mbv3_jax.core.errors import UsageError
from mbv3_jax.core.files import write_atomically
from mbv3_jax.data import loader
from mbv3_jax.run.folder import claim_folder, read_summary
from mbv3_jax.run.interrupt import Interrupt
from mbv3_jax.run.processes import other_processes
from mbv3_jax.train.experiment import Experiment, make_experiment
from mbv3_jax.train.recorder import Record
from mbv3_jax.train.sharding import replicated


class Seeds:
    """What `loop.Loop` trains, for experiments that differ in their seed alone."""

    batch_axis = 1

    def __init__(self, experiments: Sequence[Experiment]):
        first = experiments[0]
        self.experiments, self.mesh = experiments, first.mesh
        self.total_steps = first.total_steps
        self.eval_every, self.checkpoint_every = first.eval_every, first.checkpoint_every
        whole = replicated(self.mesh)
        self._stack = jax.jit(
            lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), out_shardings=whole
        )
        self._unstack = jax.jit(self._take_apart, out_shardings=whole)

    @functools.cached_property
    def train_step(self):
        """See `step.make_train_step`, of several seeds."""
        return self.experiments[0].make_step([e.config.seed for e in self.experiments])

    def train_batches(self, start_step: int, **options) -> "_Stacked":
        """The batches of all seeds, with a first axis over them."""
        return _Stacked([e.train_batches(start_step, **options) for e in self.experiments])

    def together(self, states: list):
        """One state for all seeds from one of each."""
        return self._stack(*states)

    def members(self, tree) -> list:
        """One tree for each seed."""
        on_host = isinstance(jax.tree.leaves(tree)[0], np.ndarray)
        return self._take_apart(tree) if on_host else self._unstack(tree)

    def _take_apart(self, tree) -> list:
        return [jax.tree.map(itemgetter(i), tree) for i in range(len(self.experiments))]


class _Stacked(Iterator):
    def __init__(self, loaders):
        self._loaders = loaders

    def __next__(self) -> dict[str, np.ndarray]:
        batches = [next(one) for one in self._loaders]
        return {k: np.stack([b[k] for b in batches]) for k in batches[0]}

    @property
    def skipped(self) -> dict[str, int]:
        """As of one run: all read the same examples."""
        return self._loaders[0].skipped

    def close(self) -> None:
        for one in self._loaders:
            one.close()


def lone(config: ConfigDict, seed: int) -> ConfigDict:
    """The configuration of a run of one of the seeds alone."""
    alone = ConfigDict(config.to_dict())
    alone.seed, alone.seeds = seed, None
    return alone.lock()


def open_runs(config: ConfigDict, workdir: Path) -> tuple[list[Experiment], list[Path]]:
    """The experiment and the folder of each seed.

    Raises:
      UsageError: the seeds are none, or something does not go with several of them.
    """
    seeds = config.seeds
    try:
        for seed in seeds:
            loader.check_seed("seeds", seed)
    except ValueError as e:
        raise UsageError(f"config: {e}") from e
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"config: seeds: got {tuple(seeds)}, expected different whole numbers")
    if config.seed:
        raise UsageError(f"config: seed: got {config.seed}, but seeds says which: {tuple(seeds)}")
    if other_processes():
        raise UsageError("config: seeds: several at once take one process, not several")
    if config.compute.shard_optimizer:
        raise UsageError("config: compute.shard_optimizer: got True, expected False with seeds")
    folders = [workdir / f"seed{seed}" for seed in seeds]
    first = make_experiment(lone(config, seeds[0]), folders[0])
    experiments = [
        dataclasses.replace(first, config=lone(config, seed), suffix=f" of seed {seed}")
        for seed in seeds
    ]
    for experiment in experiments:  # one compilation for all
        vars(experiment)["eval_step"] = first.eval_step
    return experiments, folders


def begin(
    experiments: list[Experiment], folders: list[Path], interrupt: Interrupt
) -> tuple[list[Record], int | None]:
    """Opens the records; returns them with the newest step that all have, None for the start.

    Raises:
      UsageError: one of the runs has ended, the others have not.
    """
    records = [
        Record(experiment, folder, interrupt)
        for experiment, folder in zip(experiments, folders, strict=True)
    ]
    have = [set(record.checkpoints.steps()) for record in records]
    common = max(set.intersection(*have), default=None)
    ended = [f.name for f in folders if read_summary(f)]
    if ended and common != experiments[0].total_steps:
        raise UsageError(
            f"{folders[0].parent}: {', '.join(ended)} ended, the others did not: not of one "
            "command; choose another --workdir"
        )
    for record in records:  # a kill came between two of them
        record.checkpoints.discard_after(-1 if common is None else common)
    return records, common


def start(
    experiments: list[Experiment], records: list[Record], common: int | None, console: Console
) -> list:
    """The state of each seed to go on from."""
    if common is not None:
        console.print(f"resuming from step {common} in {records[0].workdir.resolve().parent}")
    return [record.resume(common) for record in records]


def claim(
    workdir: Path, config: ConfigDict, experiments: list[Experiment], folders: list[Path]
) -> contextlib.ExitStack:
    """Claims the folder and those of the seeds, see `run_folder.claim`."""
    claimed = contextlib.ExitStack()
    for folder, own, experiment in (
        (workdir, config, experiments[0]),
        *((f, e.config, e) for f, e in zip(folders, experiments, strict=True)),
    ):
        names, init = experiment.train_source.class_names, experiment.start_record()
        claimed.enter_context(claim_folder(folder, own, experiment.spec, names, init))
    return claimed


def summarise(workdir: Path, seeds: Sequence[int], summaries: list[dict]) -> dict:
    """Writes and returns what all seeds came to.

    Returns:
      {"seeds", "steps", "epochs", "weights", "split", "seconds", "images_per_second", "eval"}:
      "eval" has for each measure the mean, the standard deviation (of the sample, n - 1) and the
      values in the order of the seeds.
    """
    first = summaries[0]

    def spread(name: str) -> dict:
        values = [s["eval"][name] for s in summaries]
        std = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": std, "values": values}

    summary = {
        "seeds": list(seeds),
        **{name: first[name] for name in ("steps", "epochs", "weights", "split", "seconds")},
        "images_per_second": sum(s["images_per_second"] for s in summaries),
        "count": first["eval"]["count"],
        "eval": {n: spread(n) for n in first["eval"] if n not in ("count", "unreadable")},
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=1))
    return summary
