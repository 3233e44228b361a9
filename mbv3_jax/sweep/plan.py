"""Turns a sweep file into jobs, and checks all of them before any is started."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.files import expand_user, read_file
from mbv3_jax.run.config import (
    config_differences,
    config_from_json,
    need_one_label,
    parse_config,
    spec_of,
)
from mbv3_jax.run.shipped import call_file
from mbv3_jax.sweep.combinators import SEED, Sweep, Trial, group_of

DESCRIPTIONS = "jobs"  # the folder in a sweep's folder for job descriptions and logs
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=@,+-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A trial as an executor runs it.

    Attributes:
      name: the trial's name.
      group: the name without its seed.
      overrides: the trial's own fields, dotted name -> value.
      arguments: the arguments of the training command, except --workdir.
      folder: the trial's run folder.
      config: the whole configuration.
    """

    name: str
    group: str
    overrides: Mapping[str, object]
    arguments: tuple[str, ...]
    folder: Path
    config: ConfigDict


def load(sweep: str) -> Sweep:
    """Reads a sweep file.

    Args:
      sweep: "stem", "ablations/stem", or the path of a Python file, and after a colon the
        argument of its `get_sweep`: "stem:imagenet".

    Raises:
      UsageError: there is no such file, it fails, or its get_sweep does not return a `Sweep` of
        differently named trials.
    """
    loaded = call_file(sweep, "get_sweep")
    if not isinstance(loaded, Sweep):
        raise UsageError(f"--sweep={sweep}: get_sweep returned {loaded!r}, expected a Sweep")
    _check_names(sweep, loaded.trials)
    return loaded


def of_seeds(sweep: Sweep, wanted: Sequence[int]) -> Sweep:
    """The trials of a sweep with only some of its seeds: fewer trials, or fewer seeds in each.

    Raises:
      UsageError: a seed is not one of the sweep's, or a trial has none of its own.
    """
    trials: list[Trial] = []
    known: set[int] = set()
    for trial in sweep.trials:
        together = "seeds" in trial.overrides
        own: Any = trial.overrides["seeds"] if together else [trial.overrides.get(SEED)]
        if None in own:
            raise UsageError(
                f"--seeds: trial {trial.name!r} has no seeds of its own; set --config.seed=N"
            )
        known |= set(own)
        if left := tuple(seed for seed in own if seed in wanted):
            fields = {"seeds": left} if together else {}
            trials.append(dataclasses.replace(trial, overrides={**trial.overrides, **fields}))
    if missing := [seed for seed in wanted if seed not in known]:
        there = ", ".join(map(str, sorted(known)))
        raise UsageError(f"--seeds: got {missing[0]}, but the seeds of this sweep are {there}")
    return dataclasses.replace(sweep, trials=tuple(trials))


def _check_names(sweep: str, trials: Sequence[Trial]) -> None:
    if not trials:
        raise UsageError(f"--sweep={sweep}: it has no trial")
    seen: dict[str, str] = {}
    for name in (trial.name for trial in trials):
        if not _NAME.fullmatch(name) or name == DESCRIPTIONS:
            raise UsageError(
                f"--sweep={sweep}: trial {name!r}: a name has letters, digits and . _ = @ , + - in "
                f"it, and is not {DESCRIPTIONS!r}; it becomes a folder"
            )
        if other := seen.get(name.casefold()):
            raise UsageError(f"--sweep={sweep}: two trials have the name {other!r}")
        seen[name.casefold()] = name


def make_jobs(sweep: Sweep, folder: Path, overrides: Sequence[str] = ()) -> list[Job]:
    """Makes the jobs of a sweep, each with a valid configuration and network.

    Args:
      sweep: see `load`.
      folder: the sweep's folder, which holds the run folders.
      overrides: flags for every trial: "--config.total_epochs=3".

    Raises:
      UsageError: a trial has an unknown field, a wrong value, an impossible network, a field that
        `overrides` sets too, or a run folder of another configuration. All trials that are wrong
        are listed.
    """
    jobs: list[Job] = []
    wrong: dict[str, list[str]] = {}  # message -> names of trials
    # --noconfig.net.shortcut is --config.net.shortcut=False
    common = {re.sub("^--(no)?config[.]", "", o.partition("=")[0]) for o in overrides}
    for trial in sweep.trials:
        try:
            if both := sorted(common & trial.overrides.keys()):
                raise UsageError(f"the trial sets {', '.join(both)} itself")
            flags = (*overrides, *(_flag(*item) for item in trial.overrides.items()))
            config = parse_config(sweep.config, flags)
            _check_network(config, folder / trial.name)
            _check_choices(config)
            _check_folder(folder / trial.name, config)
        except (UsageError, RunError) as e:
            wrong.setdefault(str(e), []).append(trial.name)
            continue
        jobs.append(
            Job(
                name=trial.name,
                group=group_of(trial),
                overrides=trial.overrides,
                arguments=(f"--config={sweep.config}", *flags),
                folder=folder / trial.name,
                config=config,
            )
        )
    if wrong:
        count = sum(len(names) for names in wrong.values())
        lines = [f"  {_listed(names)}: {message}" for message, names in wrong.items()]
        raise UsageError(
            f"{count} of {len(sweep.trials)} trials are wrong, none was started:\n"
            + "\n".join(lines)
        )
    return jobs


def _flag(field: str, value) -> str:
    return f"--config.{field}={value}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def _check_network(config: ConfigDict, run: Path) -> None:
    if config.init is None:
        spec_of(config)
        return
    folder = expand_user(config.init, "config.init", error=UsageError)
    if folder.exists():  # else it may be where the trial will run
        from mbv3_jax.train.warm_start import read_warm_start

        read_warm_start(config, run)


def _check_choices(config: ConfigDict) -> None:
    """Checks optimizer and schedule; their durations depend on the data and are not checked."""
    from mbv3_jax.train import schedules  # here, so that a wrong flag waits for no jax
    from mbv3_jax.train.optimizers import make_optimizer

    need_one_label(config, "a sweep")
    of_schedule, of_optimizer = config.schedule.to_dict(), config.optimizer.to_dict()
    for unit in ("steps", "epochs", "examples"):
        of_schedule.pop(f"warmup_{unit}")
    try:
        schedule = schedules.make_schedule(
            of_schedule.pop("name"),
            total_steps=1000,
            steps_per_epoch=10.0,
            warmup_steps=0,
            **of_schedule,
        )
        make_optimizer(of_optimizer.pop("name"), schedule, **of_optimizer)
    except ValueError as e:
        raise UsageError(f"config: {e}") from e


def _check_folder(run: Path, config: ConfigDict) -> None:
    """Refuses a run folder of another configuration, by the rule that training applies to it."""
    path = run / "config.json"
    if not path.is_file():
        return
    stored = read_file(path, config_from_json, error=UsageError)
    if differences := config_differences(config, stored):
        listed = ", ".join(
            f"{field} {stored!r}, now {new!r}" for field, (new, stored) in differences.items()
        )
        raise UsageError(f"{run} holds a run of another configuration: {listed}; another --workdir")
